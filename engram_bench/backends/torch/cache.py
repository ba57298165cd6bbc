"""Key-value caches for many rows that begin alike.

transformers' own cache copies everything it holds at every decoded token, and holds what all rows share once a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from engram_bench.backends.torch.attention import States, after_shared


class OwnLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [rows, heads, tokens, size] of rows that are read at once, after the tokens that all share.

    Args:
        shared: keys and values of those, [1, heads, tokens, size]; for attention that knows what to do with them.
    """

    def __init__(self, shared: States) -> None:
        super().__init__()
        self.shared = shared

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> States:
        """Keep the rows' own tokens, behind those that are there already."""
        if self.is_initialized:
            key_states, value_states = super().update(key_states, value_states)
        else:  # without a copy
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
        return after_shared(self.shared, key_states), value_states

    def get_seq_length(self) -> int:
        """How many tokens a row holds, shared ones included."""
        return int(self.shared[0].shape[-2]) + int(super().get_seq_length())


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [rows, heads, tokens, size] at the start of buffers with room for more rows and tokens.

    Written in place, so for inference only.

    Args:
        pieces: layers that have read tokens, [rows, heads, tokens, size] each.
        places: which of all those tokens, rows and tokens counted through, make a row: [rows, tokens + room], int64.
            For the room any token will do: it is masked until it is written over.
        tokens: how many of a row's places hold tokens; the others are room.
        most_rows: how many rows there is room for.
        whole: give attention all tokens of the buffers, for it to mask what is free: a product with a part of them
            copies that part first, and takes four times as long.
    """

    def __init__(
        self, pieces: Sequence[DynamicLayer], places: Tensor, tokens: int, most_rows: int, whole: bool
    ) -> None:
        super().__init__()
        self._shared: States | None = getattr(pieces[0], "shared", None)
        self._whole = whole
        keys, values = ([getattr(piece, name) for piece in pieces] for name in ("keys", "values"))
        self._buffers = [_gathered(states, places, most_rows) for states in (keys, values)]
        self.dtype, self.device, self.is_initialized = keys[0].dtype, keys[0].device, True
        self._show(len(places), tokens)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> States:
        """Store the new tokens; returns all of them, or with the room behind them."""
        rows, start = len(self.keys), self.keys.shape[-2]
        end = start + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, start:end] = states
        self._show(rows, end)
        keys, values = (buffer[:rows] for buffer in self._buffers) if self._whole else (self.keys, self.values)
        return after_shared(self._shared, keys), values

    def get_seq_length(self) -> int:
        """How many tokens a row holds, shared ones included."""
        return int(self.keys.shape[-2]) + (int(self._shared[0].shape[-2]) if self._shared else 0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Hold these rows, a row as often as it is named; where all stay and others follow, only those are copied."""
        count, tokens = len(self.keys), self.keys.shape[-2]
        if torch.equal(indices[:count], torch.arange(count, device=indices.device)):
            for buffer in self._buffers:
                buffer[count : len(indices)] = buffer[indices[count:]]
        else:
            self._buffers = [_taken(buffer, indices, len(buffer)) for buffer in self._buffers]
        self._show(len(indices), tokens)

    def _show(self, rows: int, end: int) -> None:
        self.keys, self.values = (buffer[:rows, :, :end] for buffer in self._buffers)


def _taken(rows: Tensor, indices: Tensor, room: int) -> Tensor:
    """These of `rows` at the start of a buffer with room for so many."""
    buffer = rows.new_empty(room, *rows.shape[1:])
    torch.index_select(rows, 0, indices, out=buffer[: len(indices)])
    return buffer


def _gathered(pieces: Sequence[Tensor], places: Tensor, room: int) -> Tensor:
    """Of pieces [rows, heads, tokens, size] the places [rows, tokens] for every head: [room, heads, tokens, size]."""
    flat = torch.cat([piece.transpose(0, 1).flatten(1, 2) for piece in pieces], dim=1)
    heads, count, size = flat.shape
    starts = torch.arange(heads, device=flat.device)[:, None] * count
    found = _taken(flat.view(-1, size), (starts + places[:, None]).flatten(), room * heads * places.shape[1])
    return found.view(room, heads, -1, size)


def roomy_cache(pieces: Sequence[Cache], places: NDArray[np.int64], tokens: int, most_rows: int, whole: bool) -> Cache:
    """A cache of `RoomyLayer`s."""
    at = torch.from_numpy(places).to(pieces[0].layers[0].keys.device)
    layers = zip(*(piece.layers for piece in pieces), strict=True)
    return Cache(layers=[RoomyLayer(layer, at, tokens, most_rows, whole) for layer in layers])
