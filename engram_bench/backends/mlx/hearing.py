"""The hearing memory as an adapter of the MLX backend, in the format of all backends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from mlx import nn

from engram_bench.backends.hearing import Hearing, alike
from engram_bench.backends.mlx.adapters import arrays_of, fill, is_table, numbers_in, together
from engram_bench.memory import weights
from engram_bench.memory.hearing import KIND, Facts
from engram_bench.memory.mlx import MemoryLayer
from engram_bench.memory.mlx_hearing import Reader
from engram_bench.prompts import Pair, PromptEncoder
from engram_bench.variants.configs import HearingConfig


class HearingAdapter(Hearing):
    """Facts, and the `Reader` that hears them."""

    reader: Reader

    def __init__(self, model: nn.Module, config: HearingConfig, encoder: PromptEncoder, facts: Facts) -> None:
        self.config, self.encoder = config, encoder
        layers = config.layers(len(model.layers))
        self.reader = Reader(model, layers, config.rank, config.alpha, facts, encoder, reads=config.rows)
        self.trained = together({"reader": self.reader.parts})

    @classmethod
    def create(
        cls, model: nn.Module, config: HearingConfig, encoder: PromptEncoder, pairs: Sequence[Pair]
    ) -> HearingAdapter:
        adapter = cls(model, config, encoder, Facts.of_training(pairs))
        adapter.alike = alike(pairs)
        return adapter

    @classmethod
    def load(
        cls, model: nn.Module, config: HearingConfig, encoder: PromptEncoder, folder: Path, damage: str | None = None
    ) -> HearingAdapter:
        """Load a memory; `damage` changes what it hears for a control, see `Facts.damaged`."""
        arrays = weights.load(folder, KIND, asdict(config))
        facts = Facts.from_array(arrays.pop("facts", np.empty(0, np.uint8)))
        adapter = cls(model, config, encoder, facts.damaged(damage) if damage else facts)
        fill(folder, adapter.trained, arrays)
        return adapter

    def on(self, model: nn.Module) -> AbstractContextManager[None]:
        return self.reader.on(model)

    def memories(self) -> Sequence[MemoryLayer]:
        return [self.reader]

    def is_table(self, name: str) -> bool:
        return is_table(name)

    def parameter_count(self) -> int:
        return numbers_in(self.trained)

    def save(self, folder: Path) -> None:
        weights.save(folder, KIND, asdict(self.config), {**arrays_of(self.trained), "facts": self.facts.to_array()})
