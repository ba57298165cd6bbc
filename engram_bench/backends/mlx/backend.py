"""The MLX backend: one causal language model by mlx-lm, on Apple Silicon or on a Linux machine."""

from __future__ import annotations

import importlib.metadata
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.utils import get_total_parameters
from numpy.typing import NDArray

from engram_bench.backends import decoding
from engram_bench.backends.base import (
    Adapter,
    Backend,
    Collateral,
    Progress,
    Text,
    Training,
    Writable,
    adapter_class,
    trained_on,
)
from engram_bench.backends.decoding import Stem
from engram_bench.backends.hearing import WritableHearing
from engram_bench.backends.mlx import training
from engram_bench.backends.mlx.adapters import MlxAdapter
from engram_bench.backends.mlx.decoding import Decoding, log_softmax
from engram_bench.backends.mlx.hearing import HearingAdapter
from engram_bench.backends.mlx.network import Network
from engram_bench.backends.mlx.network import pick_device as pick_device
from engram_bench.backends.mlx.network import pick_dtype as pick_dtype
from engram_bench.backends.replay import Untouched, read_by, touched
from engram_bench.backends.routed import loaded
from engram_bench.backends.training import with_validation
from engram_bench.data.items import Example
from engram_bench.errors import UsageError
from engram_bench.memory import weights
from engram_bench.memory.hearing import KIND
from engram_bench.prompts import Prompt, shared_prefix
from engram_bench.variants import Variant

BATCH_SIZE = 64
SCORING_BATCH_SIZE = 8  # each row needs about 10 MB: [tokens, vocabulary] float32


def pick_engine(wanted: str, _: str) -> tuple[str, str]:
    """Return the library that trains a LoRA, and the reason.

    Raises:
        UsageError: an engine of the torch backend is requested.
    """
    if wanted != "auto":
        raise UsageError(
            f"--engram-lora-engine {wanted}: on MLX only mlx-lm trains a LoRA; use auto, or a torch backend"
        )
    return "mlx-lm", "on MLX"


def load(folder: Path, device: str, lora_engine: tuple[str, str]) -> Backend:
    """The backend on a model folder; see `MlxModel`."""
    return MlxModel(folder, device, lora_engine)


class MlxModel(Network):
    """A `Backend` (see base.py for the contract of its public methods).

    Args:
        folder: local model folder, safetensors.
        device: from `pick_device`.
        lora_engine: from `pick_engine`.

    Raises:
        UsageError: mlx-lm cannot read the folder.
    """

    name = "mlx"
    batch_size = BATCH_SIZE
    joins = False  # see `decoding.Model`

    def __init__(self, folder: Path, device: str, lora_engine: tuple[str, str] = ("mlx-lm", "on MLX")) -> None:
        super().__init__(folder, device)
        self.lora_engine, self.lora_engine_reason = lora_engine
        self.depth = len(self.model.layers)
        text = self.config.get("text_config", self.config)  # the text part of a multimodal model
        self.context = int(text.get("max_position_embeddings") or sys.maxsize)
        self.parameters = get_total_parameters(self.model)
        self.stop_ids = decoding.stop_ids(self.encoder.eos_id, self.config.get("eos_token_id"))
        self._untouched = Untouched(self)

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm", "transformers", "numpy")}

    def peak_memory(self) -> int:
        return int(mx.get_peak_memory())

    def matrix_rate(self) -> float:
        size, best = 1024, math.inf
        left, right = (mx.random.uniform(shape=(size, size)).astype(getattr(mx, self.dtype)) for _ in range(2))
        mx.eval(left, right)
        for _ in range(5):
            started = time.perf_counter()
            mx.eval(left @ right)
            best = min(best, time.perf_counter() - started)
        return 2 * size**3 / best / 1e9

    # --- adapters -------------------------------------------------------------------------------------------------

    def train(
        self,
        variant: Variant,
        examples: Sequence[Example],
        seed: int,
        folder: Path,
        progress: Progress,
        validation: Sequence[Example] = (),
        replay: Sequence[str] = (),
    ) -> Training:
        assert variant.training is not None, f"{variant.name} has nothing to train"
        pairs = trained_on(variant, examples, self.encoder)
        untouched = self._untouched.on(replay)
        mx.random.seed(seed)
        adapter = adapter_class(variant, self.name).create(self.model, variant.config, self.encoder, pairs)
        pairs, targets = read_by(adapter, pairs), touched(adapter, untouched)
        with self.attached(adapter):
            own = cast(MlxAdapter, adapter)
            found = training.train(self, own, variant.training, pairs, seed, progress, targets)
            adapter.save(folder)
            return with_validation(found, self, validation)

    def load_adapter(self, variant: Variant, folder: Path) -> Adapter:
        return loaded(self, self.model, variant, folder)

    def load_writable(self, folder: Path) -> Writable:
        if weights.kind_of(folder) == KIND:
            adapter = HearingAdapter.load(self.model, weights.hearing_config(folder), self.encoder, folder)
            return WritableHearing(self.encoder, self.stop_ids, adapter)
        raise UsageError("--backend: MLX cannot write facts; use cpu, cuda or mps (MLX can load the result)")

    # --- decoding -------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int | Sequence[int],
        *,
        seeds: Sequence[int | None] | None = None,
        temperature: float = 1.0,
        recurring: bool = False,
    ) -> list[list[int]]:
        return decoding.generate(self, prompts, max_new_tokens, seeds, temperature)

    def with_distributions(
        self, prompts: Sequence[Prompt], max_new_tokens: int
    ) -> list[tuple[list[int], NDArray[np.float16]]]:
        return decoding.with_distributions(self, prompts, max_new_tokens)

    def stream(self, prompt: Prompt, max_new_tokens: int, *, ignore_eos: bool = False) -> Iterator[int]:
        yield from decoding.stream(self, prompt, max_new_tokens, ignore_eos)

    def begin(self, prompts: Sequence[Prompt], most_rows: int, stems: Sequence[Stem], max_new_tokens: int) -> Decoding:
        ((_, prefix, state),) = stems
        rows = self.rows([(prompt, ()) for prompt in prompts], prefix)
        last = rows.mask.sum(axis=1) - 1
        at = np.arange(rows.mask.shape[1])[None] == last[:, None]
        logits, caches = self.forward(state, rows, at)
        for cache in caches:
            cache.finalize()
        return Decoding(self.step, logits, caches, rows.windows[at])

    # --- scoring --------------------------------------------------------------------------------------------------

    def log_probabilities(self, texts: Sequence[Text]) -> list[list[float]]:
        found: list[list[float]] = []
        for start in range(0, len(texts), SCORING_BATCH_SIZE):
            batch = texts[start : start + SCORING_BATCH_SIZE]
            prefix = shared_prefix([prompt for prompt, _ in batch])
            logits, tokens = self.answer_logits(batch, self.prefix_state(batch[0][0], prefix), prefix)
            logs = (-nn.losses.cross_entropy(logits.astype(mx.float32), tokens)).tolist()
            ends = np.cumsum([len(answer) for _, answer in batch]).tolist()
            found += [logs[first:last] for first, last in zip([0, *ends], ends, strict=False)]
        return found

    def collateral(self, adapter: Adapter | None, texts: Sequence[Text], *, answers_only: bool = False) -> Collateral:
        kl: list[NDArray[np.float64]] = []
        same: list[NDArray[np.bool_]] = []
        # Compare batch by batch: the distributions of all texts together do not fit in memory.
        for start in range(0, len(texts), SCORING_BATCH_SIZE):
            batch = texts[start : start + SCORING_BATCH_SIZE]
            with self.attached(None):
                base = self._score(batch, answers_only)
            with self.attached(adapter):
                variant = self._score(batch, answers_only)
            kl.append(np.array((mx.exp(base) * (base - variant)).sum(-1), dtype=np.float64))
            same.append(np.array(base.argmax(-1) == variant.argmax(-1)))
        return Collateral.over(kl, same)

    def _score(self, batch: Sequence[Text], answers_only: bool) -> mx.array:
        """Log-probabilities of all tokens, or of the answers' tokens, row by row: float32 [tokens, vocabulary]."""
        prefix = shared_prefix([prompt for prompt, _ in batch])
        state = self.prefix_state(batch[0][0], prefix)
        if answers_only:
            logits, _ = self.answer_logits(batch, state, prefix)
        else:
            rows = self.rows(batch, prefix)
            logits, _ = self.forward(state, rows, rows.mask)
        logs = log_softmax(logits)
        mx.eval(logs)
        return logs
