"""The memory in MLX: the layers of `memory.torch` with the same parameters and names, and their injection.

It works with any mlx-lm model, because it needs only `model.layers`, as mlx-lm's own tuner and cache do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from engram_bench.memory.addresses import slots
from engram_bench.memory.hashing import Int64Array, NgramHasher
from engram_bench.prompts import ABSENT
from engram_bench.variants.configs import EngramConfig


class MemoryLayer(Protocol):
    """The memory of one layer, as the injector sees it; see `memory.torch.MemoryLayer`."""

    @property
    def taps(self) -> Sequence[int]: ...
    @property
    def values(self) -> mx.array | None: ...
    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def set_slots(self, slots: NDArray[np.int64], earlier: mx.array | None = None) -> None: ...
    def __call__(self, hidden: mx.array) -> mx.array: ...


class EngramLayer(nn.Module):  # type: ignore[misc]
    """Conditional memory of one layer (arXiv:2601.07372, section 2.3); see `memory.torch`.

    Args:
        config: the shape.
        layer: which layer this is.
        hasher: from `make_hasher`.
        row_ids: int64 [touched], sorted and unique: the rows the table holds.
        hidden_size: d of the backbone.
    """

    def __init__(
        self, config: EngramConfig, layer: int, hasher: NgramHasher, row_ids: Int64Array, hidden_size: int
    ) -> None:
        super().__init__()
        width = config.hashes * config.heads * config.width
        self.layer, self.hasher, self.row_ids = layer, hasher, row_ids
        self.hashes, self.order_dropout = config.hashes, config.order_dropout
        self.gated, self.without_rows, self.taps = config.gate, config.acts_without_rows, tuple(config.taps)
        self.table = mx.zeros((1 + len(row_ids), config.width))  # row 0: for n-grams without a row
        if config.gate:
            self.key = nn.Linear(width, hidden_size, bias=config.bias)
        self.value = nn.Linear(width, hidden_size, bias=config.bias)
        if config.bias:  # so that training starts from the untouched model
            for product in (self.key, self.value) if config.gate else (self.value,):
                product.bias = mx.zeros(hidden_size)
        if config.gate:
            self.key_norm = nn.RMSNorm(hidden_size, eps=1e-6)
            self.query_norm = nn.RMSNorm(hidden_size, eps=1e-6)
        if config.kernel:
            self.conv_norm = nn.RMSNorm(hidden_size, eps=1e-5)
            self.conv = mx.zeros((config.kernel, hidden_size))
        self.scale = 1 / math.sqrt(hidden_size)
        self._slots: mx.array | None = None  # MLX does not treat names with a leading underscore as parameters
        self._gate: mx.array | None = None
        self._earlier: mx.array | None = None
        self._values: mx.array | None = None

    @property
    def gate(self) -> mx.array | None:
        """[batch, tokens, 1], of the last forward outside training; None if it found no n-gram, or has no gate."""
        return self._gate

    @property
    def values(self) -> mx.array | None:
        """What the convolution of later tokens reads: [batch, tokens, d], of the last forward; None: all zero."""
        return self._values

    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the n-grams' rows in the table; see `memory.torch.EngramLayer.slots_for`."""
        found = slots(self.hasher, self.layer, self.row_ids, windows)
        if self.without_rows:
            found = np.concatenate([found, windows[..., :1] != ABSENT], axis=-1)
        return found if found.any() else found[..., :0]

    def set_slots(self, slots: NDArray[np.int64], earlier: mx.array | None = None) -> None:
        """Set what the next forward reads.

        Args:
            slots: from `slots_for`.
            earlier: the values of as many earlier tokens as the convolution reaches back, [batch, earlier tokens, d].
        """
        self._slots = mx.array(slots) if slots.size else None
        self._earlier = earlier
        self._gate = self._values = None

    def __call__(self, hidden: mx.array) -> mx.array:
        """hidden [batch, tokens, d] -> the same, with the memory's output added; unchanged if it found no n-gram."""
        if self._slots is None:
            return hidden
        slots, reads = (self._slots[..., :-1], self._slots[..., -1:]) if self.without_rows else (self._slots, 1)
        hit = (slots > 0)[..., None]
        if self.training and self.order_dropout:
            hit = hit & self._kept(hit.shape)
        e = (self.table[slots] * hit).flatten(-2)  # `hit` is 0 for row 0, so that it does not train
        query = hidden.astype(mx.float32)
        value = self.value(e)
        if self.gated:
            score = (self.key_norm(self.key(e)) * self.query_norm(query)).sum(-1, keepdims=True) * self.scale
            gate = mx.sigmoid(score * mx.rsqrt(mx.maximum(mx.abs(score), 1e-6)))
            value = gate * value
            if not self.training:
                self._gate = gate
        if self.without_rows:
            value = reads * value
        if self.taps:
            self._values = value
            value = value + reads * nn.silu(self._convolved(value))
        return (query + value).astype(hidden.dtype)

    def _convolved(self, value: mx.array) -> mx.array:
        """The short convolution over each token and those before it: [batch, tokens, d] -> the same shape."""
        assert self._earlier is not None, "a convolution needs the earlier tokens' values"
        every, count = self.conv_norm(mx.concatenate([self._earlier, value], axis=1)), value.shape[1]
        starts = [self.taps[0] - back for back in (*self.taps, 0)]
        return sum(every[:, start : start + count] * tap for start, tap in zip(starts, self.conv, strict=True))

    def _kept(self, shape: tuple[int, ...]) -> mx.array:
        """Dropout mask, bool [..., columns, 1]: drops whole orders of a token, so that none becomes indispensable."""
        kept = mx.random.uniform(shape=(*shape[:-2], self.hashes, 1)) >= self.order_dropout
        return mx.repeat(kept, shape[-2] // self.hashes, axis=-2)


class UnigramLayer(nn.Module):  # type: ignore[misc]
    """The EnhancedEngramModule of the engram-poc project, as published; see `memory.torch`.

    Args:
        slots: rows of the table (published runs: 500).
        hidden_size: d of the backbone; a row is as wide.
    """

    MULTIPLIERS = np.array([17, 31, 53, 79])
    taps, values = (), None  # it has no convolution

    def __init__(self, slots: int, hidden_size: int) -> None:
        super().__init__()
        self.table = mx.random.normal((slots, hidden_size), scale=0.02)
        self.gate_in = nn.Linear(2 * hidden_size, hidden_size)
        self.gate_out = nn.Linear(hidden_size, 1)
        self.merge = nn.Linear(hidden_size, hidden_size)
        self.gate_out.weight = mx.full((1, hidden_size), 0.01)
        self.gate_out.bias = mx.full((1,), -5.0)
        self.merge.weight = mx.random.normal((hidden_size, hidden_size), scale=0.01)
        self.merge.bias = mx.zeros(hidden_size)
        self._slots: mx.array | None = None

    def slots_for(self, ids: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Table rows of each token, int64 [batch, tokens, heads]. Template tokens have rows like any other token."""
        rows: NDArray[np.int64] = ids[..., None] * self.MULTIPLIERS % len(self.table)
        return rows

    def set_slots(self, slots: NDArray[np.int64], earlier: mx.array | None = None) -> None:
        """Set the table rows that the next forward reads."""
        self._slots = mx.array(slots)

    def __call__(self, hidden: mx.array) -> mx.array:
        """hidden [batch, tokens, d] -> the same plus the gated, merged mean of the token's rows."""
        assert self._slots is not None, "set_slots comes first"
        memory = self.table[self._slots].mean(axis=-2)
        gate_in = mx.concatenate([hidden.astype(mx.float32), memory], axis=-1)
        gate = mx.sigmoid(self.gate_out(nn.relu(self.gate_in(gate_in))))
        return hidden + self.merge(gate * memory).astype(hidden.dtype)


@contextmanager
def injected(
    model: nn.Module, memories: Mapping[int, Callable[[mx.array], mx.array]], *, after: bool = False
) -> Iterator[None]:
    """Run each memory on the input (or, `after`, the output) of its layer while the context lasts.

    Only the class of the layer object changes. Weights and modules stay the same, so leaving restores the model bit for
    bit. The layer's attributes, which some models read, stay available.
    """
    classes = {layer: type(model.layers[layer]) for layer in memories}
    for layer, memory in memories.items():
        model.layers[layer].__class__ = _with_memory(classes[layer], memory, after)
    try:
        yield
    finally:
        for layer, cls in classes.items():
            model.layers[layer].__class__ = cls


def _with_memory(cls: Any, memory: Callable[[mx.array], mx.array], after: bool) -> type:
    class WithMemory(cls):  # type: ignore[misc]
        def __call__(self, hidden: mx.array, *args: Any, **kwargs: Any) -> mx.array:
            if after:
                return memory(super().__call__(hidden, *args, **kwargs))
            return super().__call__(memory(hidden), *args, **kwargs)

    return WithMemory
