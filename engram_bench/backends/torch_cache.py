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
        pieces: layers that hold rows: of each first the shared tokens, then its own, which end together in the end.
        rows: which rows of each piece are taken, in order, repeats allowed; int64.
        shared: how many tokens all rows of all pieces share.
        room: tokens to set aside for.
        whole: give attention the whole buffers, zeros in what is free, for it to mask: a product with a part of a
            buffer copies that part first, and takes four times as long.
    """

    def __init__(
        self, pieces: Sequence[DynamicLayer], rows: Sequence[Tensor], shared: int, room: int, whole: bool
    ) -> None:
        super().__init__()
        like = pieces[0].keys
        heads, _, size = like.shape[1:]
        tokens = max(piece.keys.shape[-2] for piece in pieces)
        shape = (sum(map(len, rows)), heads, tokens + room, size)
        self._buffers, self._whole = (like.new_zeros(shape), like.new_zeros(shape)), whole
        parts = [buffer[:, :, :tokens].split([len(taken) for taken in rows]) for buffer in self._buffers]
        for piece, taken, *found in zip(pieces, rows, *parts, strict=True):
            for part, states in zip(found, (piece.keys, piece.values), strict=True):
                part[:, :, :shared] = states[taken, :, :shared]
                part[:, :, tokens - (states.shape[-2] - shared) :] = states[taken, :, shared:]
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


def roomy_cache(pieces: Sequence[Cache], rows: Sequence[Tensor], shared: int, room: int, *, whole: bool) -> Cache:
    """A cache of `RoomyLayer`s."""
    layers = zip(*(piece.layers for piece in pieces), strict=True)
    return Cache(layers=[RoomyLayer(layer, rows, shared, room, whole) for layer in layers])
