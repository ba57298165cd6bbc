"""The hearing memory as an adapter of the torch backend."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from engram_bench.backends.hearing import Hearing, alike
from engram_bench.backends.torch.adapters import arrays_of, fill
from engram_bench.memory import weights
from engram_bench.memory.hearing import KIND, Facts
from engram_bench.memory.torch import MemoryLayer, decoder_layers
from engram_bench.memory.torch_hearing import Reader
from engram_bench.prompts import Pair, PromptEncoder
from engram_bench.variants.configs import HearingConfig


class HearingAdapter(Hearing):
    """Facts, and the `Reader` that hears them."""

    reader: Reader

    def __init__(self, model: Any, config: HearingConfig, encoder: PromptEncoder, facts: Facts) -> None:
        self.config, self.encoder = config, encoder
        layers = config.layers(len(decoder_layers(model)))
        self.reader = Reader(model, layers, config.rank, config.alpha, facts, encoder, reads=config.rows)
        self.first_layer = layers[0]

    @classmethod
    def create(cls, model: Any, config: HearingConfig, encoder: PromptEncoder, pairs: Sequence[Pair]) -> HearingAdapter:
        adapter = cls(model, config, encoder, Facts.of_training(pairs))
        adapter.alike = alike(pairs)
        return adapter

    @classmethod
    def load(
        cls, model: Any, config: HearingConfig, encoder: PromptEncoder, folder: Path, damage: str | None = None
    ) -> HearingAdapter:
        """Load a memory; `damage` changes what it hears for a control, see `Facts.damaged`."""
        arrays = weights.load(folder, KIND, asdict(config))
        facts = Facts.from_array(arrays.pop("facts", np.empty(0, np.uint8)))
        adapter = cls(model, config, encoder, facts.damaged(damage) if damage else facts)
        fill(folder, {"reader": adapter.reader.parts}, arrays)
        return adapter

    def on(self, model: nn.Module) -> AbstractContextManager[None]:
        return self.reader.on(model)

    def memories(self) -> Sequence[MemoryLayer]:
        return [self.reader]

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.reader.parts.parameters()), "tables": False}]

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.reader.parts.parameters())

    def save(self, folder: Path) -> None:
        arrays = arrays_of({"reader": self.reader.parts})
        weights.save(folder, KIND, asdict(self.config), {**arrays, "facts": self.facts.to_array()})
