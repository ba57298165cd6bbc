"""The hearing memory as an adapter of the torch backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from engram_bench.backends.hearing import Hearing
from engram_bench.backends.torch.adapters import arrays_of, fill
from engram_bench.memory import weights
from engram_bench.memory.addresses import damaged
from engram_bench.memory.hearing import KIND, HeardKeys
from engram_bench.memory.torch import MemoryLayer, decoder_layers, injected
from engram_bench.memory.torch_hearing import Reader, RowLayer
from engram_bench.prompts import Pair, PromptEncoder
from engram_bench.variants.configs import HearingConfig


class HearingAdapter(Hearing):
    """`RowLayer`s on the inputs of the configured layers, and a `Reader`."""

    def __init__(self, config: HearingConfig, keys: HeardKeys, rows: dict[int, RowLayer], reader: Reader) -> None:
        self.config, self.keys, self.rows, self.reader = config, keys, rows, reader
        self.first_layer = min([*rows, *reader.layers])

    @classmethod
    def create(cls, model: Any, config: HearingConfig, encoder: PromptEncoder, pairs: Sequence[Pair]) -> HearingAdapter:
        return cls._build(model, config, HeardKeys.of_training(pairs))

    @classmethod
    def _build(cls, model: Any, config: HearingConfig, keys: HeardKeys) -> HearingAdapter:
        depth, size = len(decoder_layers(model)), model.config.hidden_size
        rows = {layer: RowLayer(keys, config.width, size).to(model.device) for layer in config.row_layers(depth)}
        reader = Reader(model, config.reader_layers(depth), config.rank, config.alpha).to(model.device)
        return cls(config, keys, rows, reader)

    @classmethod
    def load(
        cls, model: Any, config: HearingConfig, encoder: PromptEncoder, folder: Path, damage: str | None = None
    ) -> HearingAdapter:
        """Load a memory; `damage` changes its rows for a control, see `addresses.damaged`."""
        arrays = weights.load(folder, KIND, asdict(config))
        adapter = cls._build(model, config, HeardKeys.from_array(arrays.pop("keys", np.empty(0, np.uint8))))
        fill(folder, adapter._modules(), arrays)
        for memory in adapter.rows.values() if damage else ():
            memory.table.data.copy_(torch.from_numpy(damaged(memory.table.detach().cpu().numpy(), damage or "")))
        return adapter

    def know(self, keys: HeardKeys, tables: Sequence[nn.Parameter]) -> None:
        """Switch to other keys and their rows: a table for each layer with rows, whose row 0 is zero."""
        self.keys = keys
        for memory, table in zip(self.rows.values(), tables, strict=True):
            memory.keys, memory.table = keys, table

    def add(self, names: Sequence[str]) -> None:
        """Know more names; each starts with the mean of all rows."""
        keys = HeardKeys([*self.keys.names, *names])
        tables = []
        for memory in self.rows.values():
            mean = memory.table.detach()[1:].mean(dim=0, keepdim=True).nan_to_num()
            tables.append(nn.Parameter(torch.cat([memory.table.detach(), mean.repeat(len(names), 1)])))
        self.know(keys, tables)

    def _modules(self) -> dict[str, nn.Module]:
        return {**{str(layer): memory for layer, memory in self.rows.items()}, "reader": self.reader.parts}

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        with self.reader.on(model), injected(model, self.rows):
            yield

    def memories(self) -> Sequence[MemoryLayer]:
        return [*self.rows.values(), self.reader]

    def parameter_groups(self) -> list[dict[str, Any]]:
        up = [memory.up.weight for memory in self.rows.values() if memory.up is not None]
        return [
            {"params": [memory.table for memory in self.rows.values()], "tables": True},
            {"params": [*up, *self.reader.parameters()], "tables": False},
        ]

    def parameter_count(self) -> int:
        every = sum(p.numel() for module in self._modules().values() for p in module.parameters())
        return every - sum(memory.table.shape[1] for memory in self.rows.values())  # row 0 stays zero

    def save(self, folder: Path) -> None:
        weights.save(folder, KIND, asdict(self.config), {**arrays_of(self._modules()), "keys": self.keys.to_array()})
