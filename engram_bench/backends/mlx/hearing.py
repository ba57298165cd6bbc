"""The hearing memory as an adapter of the MLX backend, in the format of all backends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn

from engram_bench.backends.hearing import Hearing
from engram_bench.backends.mlx.adapters import arrays_of, fill, is_table, numbers_in, together
from engram_bench.memory import weights
from engram_bench.memory.addresses import damaged
from engram_bench.memory.hearing import KIND, HeardKeys
from engram_bench.memory.mlx import MemoryLayer, injected
from engram_bench.memory.mlx_hearing import Reader, RowLayer
from engram_bench.prompts import Pair, PromptEncoder
from engram_bench.variants.configs import HearingConfig


class HearingAdapter(Hearing):
    """`RowLayer`s on the inputs of the configured layers, and a `Reader`."""

    def __init__(self, model: nn.Module, config: HearingConfig, keys: HeardKeys) -> None:
        depth, size = len(model.layers), model.args.hidden_size
        self.config, self.keys = config, keys
        self.rows = {layer: RowLayer(keys, config.width, size) for layer in config.row_layers(depth)}
        self.reader = Reader(model, config.reader_layers(depth), config.rank, config.alpha)
        self.trained = together(
            {**{str(layer): memory for layer, memory in self.rows.items()}, "reader": self.reader.parts}
        )

    @classmethod
    def create(
        cls, model: nn.Module, config: HearingConfig, encoder: PromptEncoder, pairs: Sequence[Pair]
    ) -> HearingAdapter:
        return cls(model, config, HeardKeys.of_training(pairs))

    @classmethod
    def load(
        cls, model: nn.Module, config: HearingConfig, encoder: PromptEncoder, folder: Path, damage: str | None = None
    ) -> HearingAdapter:
        """Load a memory; `damage` changes its rows for a control, see `addresses.damaged`."""
        arrays = weights.load(folder, KIND, asdict(config))
        adapter = cls(model, config, HeardKeys.from_array(arrays.pop("keys", np.empty(0, np.uint8))))
        fill(folder, adapter.trained, arrays)
        for memory in adapter.rows.values() if damage else ():
            memory.table = mx.array(damaged(np.array(memory.table), damage or ""))
        return adapter

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        with self.reader.on(model), injected(model, self.rows):
            yield

    def memories(self) -> Sequence[MemoryLayer]:
        return [*self.rows.values(), self.reader]

    def is_table(self, name: str) -> bool:
        return is_table(name)

    def parameter_count(self) -> int:
        return numbers_in(self.trained)

    def save(self, folder: Path) -> None:
        weights.save(folder, KIND, asdict(self.config), {**arrays_of(self.trained), "keys": self.keys.to_array()})
