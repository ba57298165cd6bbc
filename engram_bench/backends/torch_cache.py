"""A key-value cache that sets room aside: transformers' own copies everything it holds at every decoded token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [rows, heads, tokens, size] at the start of buffers with room for more tokens.

    Written in place, so for inference only.

    Args:
        room: tokens to set aside beyond those first stored.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the new tokens; returns all of them."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._grow(key_states, end + self._room)
        assert self._buffers is not None
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        if self._buffers is not None:
            keys, values = self._buffers
            self._buffers = (keys[indices], values[indices])
            self._show(self.get_seq_length())

    def _grow(self, like: Tensor, tokens: int) -> None:
        rows, heads, _, size = like.shape
        old = (self.keys, self.values) if self._buffers is not None else None
        self._buffers = (like.new_empty(rows, heads, tokens, size), like.new_empty(rows, heads, tokens, size))
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True
        if old is not None:
            for buffer, states in zip(self._buffers, old, strict=True):
                buffer[..., : states.shape[-2], :] = states

    def _show(self, end: int) -> None:
        assert self._buffers is not None
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)


def roomy_cache(room: int) -> Cache:
    """A cache whose layers each set room aside for `room` tokens beyond the first ones stored."""
    return Cache(layer_class_to_replicate=lambda: RoomyLayer(room))
