"""The layers of a hearing memory in MLX, with the same parameters and names as `memory.torch_hearing`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from engram_bench.memory.hearing import HeardKeys, active, part_name


class RowLayer(nn.Module):  # type: ignore[misc]
    """Rows of one layer, added to the hidden states of the tokens that end a key; a `memory.mlx.MemoryLayer`.

    Args:
        keys: the known keys.
        width: numbers of a row; 0: the hidden size, and no projection.
        hidden_size: d of the backbone.
    """

    taps, values = (), None  # it has no convolution

    def __init__(self, keys: HeardKeys, width: int, hidden_size: int) -> None:
        super().__init__()
        self.table = mx.zeros((1 + len(keys.names), width or hidden_size))
        if width:
            self.up = nn.Linear(width, hidden_size, bias=False)
        self._width, self._heard = width, keys  # MLX does not treat names with a leading underscore as parameters
        self._slots: mx.array | None = None

    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the tokens, int64 [batch, tokens, 1]; of size 0 if no token ends a key."""
        rows = self._heard.rows(windows)
        return rows if rows.any() else rows[..., :0]

    def set_slots(self, slots: NDArray[np.int64], earlier: mx.array | None = None) -> None:
        """Set what the next forward reads: the result of `slots_for`."""
        self._slots = mx.array(slots) if slots.size else None

    def __call__(self, hidden: mx.array) -> mx.array:
        """hidden [batch, tokens, d] -> the same, with the rows added."""
        if self._slots is None:
            return hidden
        rows = self.table[self._slots[..., 0]] * (self._slots > 0)  # row 0 does not train
        return (hidden + (self.up(rows) if self._width else rows)).astype(hidden.dtype)


class LowRank(nn.Module):  # type: ignore[misc]
    """A low-rank addition to a linear layer (arXiv:2106.09685)."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down = mx.random.uniform(-1, 1, (rank, inputs)) / math.sqrt(inputs)
        self.up = mx.zeros((outputs, rank))
        self._scale = scale

    def __call__(self, x: mx.array) -> mx.array:
        """[..., inputs] -> [..., outputs], computed in the input's data type."""
        return (x @ self.down.astype(x.dtype).T) @ self.up.astype(x.dtype).T * self._scale


class Reader:
    """A LoRA on all linear layers of some decoder layers that acts on some tokens; a `memory.mlx.MemoryLayer`.

    Args:
        model: the backbone.
        layers: numbers of the decoder layers.
        rank, alpha: of the LoRA.
    """

    taps, values = (), None

    def __init__(self, model: nn.Module, layers: Sequence[int], rank: int, alpha: float) -> None:
        self.parts = nn.Module()
        self.layers = list(layers)
        for layer in layers:
            for name, product in _products(model.layers[layer]):
                outputs, inputs = product.weight.shape
                if isinstance(product, nn.QuantizedLinear):  # whose weights are packed
                    inputs = inputs * 32 // product.bits
                self.parts[part_name(layer, name)] = LowRank(inputs, outputs, rank, alpha / rank)
        self._acts: mx.array | None = None

    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Whether it acts on each token, int64 [batch, tokens, 1]; of size 0 if it acts on none."""
        acts = active(windows)
        return acts if acts.any() else acts[..., :0]

    def set_slots(self, slots: NDArray[np.int64], earlier: mx.array | None = None) -> None:
        """Set what the next forward reads: the result of `slots_for`."""
        self._acts = mx.array(slots) if slots.size else None

    def __call__(self, hidden: mx.array) -> mx.array:
        raise AssertionError("a reader acts on the products within the layers; see `on`")

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Act on the model's products inside the context. Only the classes of these objects change."""
        products = {
            part_name(layer, name): product for layer in self.layers for name, product in _products(model.layers[layer])
        }
        classes = {name: type(product) for name, product in products.items()}
        for name, product in products.items():
            product.__class__ = self._with_part(classes[name], self.parts[name])
        try:
            yield
        finally:
            for name, product in products.items():
                product.__class__ = classes[name]

    def _with_part(self, cls: Any, part: LowRank) -> type:
        reader = self

        class WithPart(cls):  # type: ignore[misc]
            def __call__(self, x: mx.array) -> mx.array:
                output, acts = super().__call__(x), reader._acts
                return output if acts is None else output + acts.astype(output.dtype) * part(x)

        return WithPart


def _products(layer: nn.Module) -> list[tuple[str, Any]]:
    return [
        (name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear | nn.QuantizedLinear)
    ]
