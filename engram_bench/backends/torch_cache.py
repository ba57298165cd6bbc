"""A key-value cache that sets room aside: transformers' own copies everything it holds at every decoded token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [rows, heads, tokens, size] at the start of buffers with room for more tokens.

    Written in place, so for inference only.

    Args:
        pieces: layers that hold rows of equally many tokens.
        rows: which rows of each piece are taken, in order, repeats allowed; int64.
        room: tokens to set aside for.
        whole: give attention the whole buffers, zeros in what is free, for it to mask: a product with a part of a
            buffer copies that part first, and takes four times as long.
    """

    def __init__(self, pieces: Sequence[DynamicLayer], rows: Sequence[Tensor], room: int, whole: bool) -> None:
        super().__init__()
        like = pieces[0].keys
        heads, tokens, size = like.shape[1:]
        shape = (sum(map(len, rows)), heads, tokens + room, size)
        self._buffers, self._whole = (like.new_zeros(shape), like.new_zeros(shape)), whole
        start = 0
        for piece, taken in zip(pieces, rows, strict=True):
            for buffer, states in zip(self._buffers, (piece.keys, piece.values), strict=True):
                buffer[start : start + len(taken), :, :tokens] = states[taken]
            start += len(taken)
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True
        self._show(tokens)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the new tokens; returns all of them, or the buffers."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        self._show(end)
        return self._buffers if self._whole else (self.keys, self.values)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        keys, values = self._buffers
        self._buffers = (keys[indices], values[indices])
        self._show(self.get_seq_length())

    def _show(self, end: int) -> None:
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)


def roomy_cache(pieces: Sequence[Cache], rows: Sequence[Tensor], room: int, *, whole: bool) -> Cache:
    """A cache of `RoomyLayer`s."""
    layers = zip(*(piece.layers for piece in pieces), strict=True)
    return Cache(layers=[RoomyLayer(layer, rows, room, whole) for layer in layers])
