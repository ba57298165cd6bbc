"""The torch backend: one causal language model on cpu, cuda or mps, trained, decoded and scored in batches."""

from __future__ import annotations

import importlib.metadata
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import cast

import numpy as np
import torch
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
from engram_bench.backends.replay import Untouched, answered, read_by, touched
from engram_bench.backends.routed import loaded
from engram_bench.backends.torch import prefill, scoring, training, unsloth
from engram_bench.backends.torch.adapters import EngramAdapter, TorchAdapter
from engram_bench.backends.torch.decoding import Decoding
from engram_bench.backends.torch.device import matrix_rate, pick_batch_size
from engram_bench.backends.torch.device import pick_device as pick_device
from engram_bench.backends.torch.device import pick_dtype as pick_dtype
from engram_bench.backends.torch.hearing import HearingAdapter
from engram_bench.backends.torch.network import Network
from engram_bench.backends.torch.prefill import KnownPrompts
from engram_bench.backends.torch.unsloth import pick_engine as pick_engine
from engram_bench.backends.torch.writing import WritableMemory
from engram_bench.backends.training import with_validation
from engram_bench.data.items import Example
from engram_bench.errors import UsageError
from engram_bench.memory import weights
from engram_bench.memory.hearing import KIND
from engram_bench.prompts import Prompt
from engram_bench.variants import Variant


def load(folder: Path, device: str, lora_engine: tuple[str, str]) -> Backend:
    """The backend on a model folder; see `TorchModel`."""
    return TorchModel(folder, device, lora_engine)


class TorchModel(Network):
    """A `Backend` (see base.py for the contract of its public methods).

    Args:
        folder: local model folder, safetensors.
        device: "cpu", "cuda" or "mps".
        lora_engine: from `pick_engine`.

    Raises:
        UsageError: transformers cannot read the folder.
    """

    name = "torch"

    def __init__(self, folder: Path, device: str, lora_engine: tuple[str, str] = ("peft", "as asked")) -> None:
        super().__init__(folder, device)
        self._folder = folder
        self.lora_engine, self.lora_engine_reason = lora_engine
        self.batch_size = pick_batch_size(device, self.token_bytes())
        self.context = int(getattr(self._config, "max_position_embeddings", None) or sys.maxsize)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self._known_prompts: KnownPrompts | None = None  # set only while `generate` may reuse prompts
        self._kept_prompts: KnownPrompts = {}
        self._untouched = Untouched(self)

    def versions(self) -> dict[str, str]:
        names = ["torch", "transformers", "peft", "numpy", *(["unsloth"] if self.lora_engine == "unsloth" else [])]
        return {name: importlib.metadata.version(name) for name in names}

    def peak_memory(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def matrix_rate(self) -> float:
        return matrix_rate(self.device, self.dtype)

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
        self._kept_prompts.clear()  # frees memory for training
        pairs = trained_on(variant, examples, self.encoder)
        if variant.kind == "lora" and self.lora_engine == "unsloth":
            texts = answered(self, replay)
            found = unsloth.train(self._folder, self.dtype, variant, pairs, seed, folder, progress, texts)
            with self.attached(self.load_adapter(variant, folder)):
                return with_validation(found, self, validation)
        untouched = self._untouched.on(replay)
        torch.manual_seed(seed)
        adapter = adapter_class(variant, self.name).create(self.model, variant.config, self.encoder, pairs)
        pairs, targets = read_by(adapter, pairs), touched(adapter, untouched)
        with self.attached(adapter):
            own = cast(TorchAdapter, adapter)
            found = training.train(self, own, variant.training, pairs, seed, progress, targets)
            adapter.save(folder)
            return with_validation(found, self, validation)

    def load_adapter(self, variant: Variant, folder: Path) -> Adapter:
        return loaded(self, self.model, variant, folder)

    def load_writable(self, folder: Path) -> Writable:
        if weights.kind_of(folder) == KIND:
            adapter = HearingAdapter.load(self.model, weights.hearing_config(folder), self.encoder, folder)
            return WritableHearing(self.encoder, self.stop_ids, adapter)
        if weights.beside_lora(folder):
            raise UsageError(
                f"{folder}: a memory trained together with a LoRA takes no facts; train one without a LoRA"
            )
        memory = EngramAdapter.load(self.model, weights.engram_config(folder), self.encoder, folder)
        return WritableMemory(self, memory)

    # --- decoding -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int | Sequence[int],
        *,
        seeds: Sequence[int | None] | None = None,
        temperature: float = 1.0,
        recurring: bool = False,
    ) -> list[list[int]]:
        with self._keeping_prompts() if recurring else nullcontext():
            return decoding.generate(self, prompts, max_new_tokens, seeds, temperature)

    @torch.inference_mode()
    def with_distributions(
        self, prompts: Sequence[Prompt], max_new_tokens: int
    ) -> list[tuple[list[int], NDArray[np.float16]]]:
        return decoding.with_distributions(self, prompts, max_new_tokens)

    @contextmanager
    def _keeping_prompts(self) -> Iterator[None]:
        """Inside the context, adapters that leave the prompt unchanged share one prefill of it; only on a CPU."""
        adapter = self._adapter
        if self.device == "cpu" and not (adapter and (adapter.acts_on_template or adapter.acts_on_text)):
            self._known_prompts = self._kept_prompts
        try:
            yield
        finally:
            self._known_prompts = None

    @torch.inference_mode()
    def stream(self, prompt: Prompt, max_new_tokens: int, *, ignore_eos: bool = False) -> Iterator[int]:
        yield from decoding.stream(self, prompt, max_new_tokens, ignore_eos)

    @property
    def joins(self) -> bool:
        """See `decoding.Model`. A memory's convolution reads the values of one stem; elsewhere it is unmeasured."""
        return self.holds_shared_apart and self._adapter is None

    def begin(self, prompts: Sequence[Prompt], most_rows: int, stems: Sequence[Stem], max_new_tokens: int) -> Decoding:
        """See `decoding.Model.begin`."""
        return prefill.begin(self, prompts, most_rows, stems, max_new_tokens, self._known_prompts)

    # --- scoring --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def log_probabilities(self, texts: Sequence[Text]) -> list[list[float]]:
        return scoring.log_probabilities(self, texts)

    @torch.inference_mode()
    def collateral(self, adapter: Adapter | None, texts: Sequence[Text], *, answers_only: bool = False) -> Collateral:
        return scoring.collateral(self, adapter, texts, answers_only=answers_only)
