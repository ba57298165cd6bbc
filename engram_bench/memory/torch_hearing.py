"""The layers of a hearing memory in torch: rows at keys, and the reader. See `memory.hearing` for where they act."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from engram_bench.memory.hearing import HeardKeys, active, part_name
from engram_bench.memory.torch import Earlier, Forward, decoder_layers


class RowLayer(nn.Module):
    """Rows of one layer, added to the hidden states of the tokens that end a key; a `memory.torch.MemoryLayer`.

    Args:
        keys: the known keys.
        width: numbers of a row; 0: the hidden size, and no projection.
        hidden_size: d of the backbone.
    """

    taps, values = (), None  # it has no convolution

    def __init__(self, keys: HeardKeys, width: int, hidden_size: int) -> None:
        super().__init__()
        self.keys = keys
        self.table = nn.Parameter(torch.zeros(1 + len(keys.names), width or hidden_size))
        self.up = nn.Linear(width, hidden_size, bias=False) if width else None
        self._forward = Forward()

    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the tokens, int64 [batch, tokens, 1]; of size 0 if no token ends a key."""
        rows = self.keys.rows(windows)
        return rows if rows.any() else rows[..., :0]

    def set_slots(self, slots: Tensor, earlier: Earlier | None = None) -> None:
        """Set what the next forward reads: the result of `slots_for`, on this layer's device."""
        self._forward.slots = slots if slots.numel() else None

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [batch, tokens, d] -> the same, with the rows added."""
        slots = self._forward.slots
        if slots is None:
            return hidden
        rows = embedding(slots[..., 0], self.table, padding_idx=0)
        return (hidden + (self.up(rows) if self.up else rows)).to(hidden.dtype)


class LowRank(nn.Module):
    """A low-rank addition to a linear layer (arXiv:2106.09685)."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs).uniform_(-1, 1) / math.sqrt(inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs], computed in the input's data type."""
        return linear(linear(x, self.down.to(x.dtype)), self.up.to(x.dtype)) * self.scale


class Reader(nn.Module):
    """A LoRA on all linear layers of some decoder layers that acts on some tokens; a `memory.torch.MemoryLayer`.

    Args:
        model: the backbone.
        layers: numbers of the decoder layers.
        rank, alpha: of the LoRA.
    """

    taps, values = (), None

    def __init__(self, model: nn.Module, layers: Sequence[int], rank: int, alpha: float) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        for layer in layers:
            for name, product in _products(decoder_layers(model)[layer]):
                outputs, inputs = product.weight.shape if isinstance(product, nn.Linear) else product.weight.T.shape
                self.parts[part_name(layer, name)] = LowRank(inputs, outputs, rank, alpha / rank)
        self.layers = list(layers)
        self._forward = Forward()

    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Whether it acts on each token, int64 [batch, tokens, 1]; of size 0 if it acts on none."""
        acts = active(windows)
        return acts if acts.any() else acts[..., :0]

    def set_slots(self, slots: Tensor, earlier: Earlier | None = None) -> None:
        """Set what the next forward reads: the result of `slots_for`, on the reader's device."""
        self._forward.slots = slots if slots.numel() else None

    def __call__(self, hidden: Tensor) -> Tensor:
        raise AssertionError("a reader acts on the products within the layers; see `on`")

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Act on the model's products inside the context, by hooks."""
        handles = [
            product.register_forward_hook(self._hook(self.parts[part_name(layer, name)]))
            for layer in self.layers
            for name, product in _products(decoder_layers(model)[layer])
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, part: nn.Module) -> Callable[..., Any]:
        def after(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            acts = self._forward.slots
            return None if acts is None else output + acts.to(output.dtype) * part(args[0])

        return after


def _products(layer: nn.Module) -> list[tuple[str, Any]]:
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    return [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)]
