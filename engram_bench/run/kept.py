"""Answers and divergences that an earlier run has measured, in place of new ones; see `store.answers`.

They depend on the model, the adapter's files, what is asked together, the decoding, the device, the code and the
libraries. Times and speeds are never kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engram_bench.backends.base import Backend
from engram_bench.prompts import Prompt
from engram_bench.records import Record
from engram_bench.run.metadata import texts_sha256
from engram_bench.run.trained import TrainedAdapters
from engram_bench.store.adapters import CODE, code_sha256
from engram_bench.store.answers import Answers
from engram_bench.store.models import Model
from engram_bench.variants import Variant


class Kept:
    """What earlier runs know.

    Args:
        answers: the store.
        model: the model that is asked.
        backend: that model, loaded.
        adapters: the run's adapters.
        max_new_tokens: limit of the untouched model's answers to texts on which variants are compared with it.
    """

    def __init__(
        self, answers: Answers, model: Model, backend: Backend, adapters: TrainedAdapters, max_new_tokens: int
    ) -> None:
        self._answers, self._backend, self._adapters, self._most = answers, backend, adapters, max_new_tokens
        self._model = {
            "model": model.sha256,
            "backend": [backend.name, backend.device.split(":")[0], backend.dtype, backend.batch_size],
            "stop_ids": sorted(backend.stop_ids),
            "versions": backend.versions(),
            "code": code_sha256((*CODE, "run/passages.py", "run/soundness.py")),
        }

    def asking(self, variant: Variant | None, seed: int) -> Asking:
        """`Backend.generate` with the adapter of a variant attached; None: the untouched model."""
        return Asking(self._answers, self._backend, self._identity(variant, seed))

    def record(
        self, kind: str, variant: Variant, seed: int, texts: Sequence[str], measure: Callable[[], Record]
    ) -> Record:
        """What `measure` returns for a variant on some texts; it must not hold a time."""
        question = {**self._identity(variant, seed), "kind": kind, "texts": texts_sha256(texts), "most": self._most}
        return self._answers.once(question, measure)[0]

    def _identity(self, variant: Variant | None, seed: int) -> Record:
        if variant is None or variant.config is None:
            return self._model
        trained = self._adapters.trained(variant, seed)
        return {**self._model, "adapter": [trained.folder.name, trained.sha256, variant.changes]}


class Asking:
    """`Backend.generate`, except that a batch which an earlier run has asked is not asked again.

    Attributes:
        kept: answers that came from an earlier run.
    """

    def __init__(self, answers: Answers, backend: Backend, identity: Record) -> None:
        self._answers, self._backend, self._identity = answers, backend, identity
        self.kept = 0

    def __call__(
        self, prompts: Sequence[Prompt], max_new_tokens: int | Sequence[int], **options: Any
    ) -> list[list[int]]:
        question = {
            **self._identity,
            "prompts": [[prompt.ids, prompt.text] for prompt in prompts],
            "max_new_tokens": max_new_tokens,
            **{name: list(value) if name == "seeds" else value for name, value in options.items()},
        }
        made, kept = self._answers.once(question, lambda: self._backend.generate(prompts, max_new_tokens, **options))
        self.kept += len(made) if kept else 0
        return made
