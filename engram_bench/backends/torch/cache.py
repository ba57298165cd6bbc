"""KV caches for many rows with a common beginning.

transformers' own cache copies all its contents at every decoded token, and stores the shared tokens once per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from engram_bench.backends.torch.attention import States, Stems, after_shared, after_stems


class OwnLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [rows, heads, tokens, size] of the tokens after a shared prefix, for prefill.

    Args:
        shared: keys and values of the prefix, [1, heads, tokens, size]; only `grouped_attention` supports them.
    """

    def __init__(self, shared: States) -> None:
        super().__init__()
        self.shared = shared

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> States:
        """Append the rows' own tokens to those already stored."""
        if self.is_initialized:
            key_states, value_states = super().update(key_states, value_states)
        else:  # avoids a copy
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
        return after_shared(self.shared, key_states), value_states

    def get_seq_length(self) -> int:
        """Number of tokens per row, shared ones included."""
        return int(self.shared[0].shape[-2]) + int(super().get_seq_length())


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [rows, heads, tokens, size] at the start of buffers with room for more rows and tokens.

    Updates happen in place, so it is for inference only.

    Args:
        pieces: cache layers that have read tokens, [rows, heads, tokens, size] each.
        places: for each row, which tokens of the pieces it consists of: int64 [rows, tokens + room]. The numbers count
            all tokens of all rows of all pieces. Free positions may name any token: they are masked until overwritten.
        tokens: number of positions per row that hold tokens; the rest are free.
        most_rows: capacity of the buffers in rows.
        whole: pass the full token axis of the buffers to attention, which masks the free positions. A product with a
            slice copies it first and takes four times as long.
    """

    def __init__(
        self, pieces: Sequence[DynamicLayer], places: Tensor, tokens: int, most_rows: int, whole: bool
    ) -> None:
        super().__init__()
        self.shared: States | None = getattr(pieces[0], "shared", None)
        self.stems: Stems = ()
        self._owner: Tensor | None = None
        self._whole = whole
        keys, values = ([getattr(piece, name) for piece in pieces] for name in ("keys", "values"))
        self._buffers = [_gathered(states, places, most_rows) for states in (keys, values)]
        self.dtype, self.device, self.is_initialized = keys[0].dtype, keys[0].device, True
        self._show(len(places), tokens)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> States:
        """Store the new tokens; returns all tokens, followed by the free positions if `whole`."""
        rows, start = len(self.keys), self.keys.shape[-2]
        end = start + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, start:end] = states
        self._show(rows, end)
        keys, values = (buffer[:rows] for buffer in self._buffers) if self._whole else (self.keys, self.values)
        return (after_stems(self.stems, keys) if self.stems else after_shared(self.shared, keys)), values

    def join(self, states: Sequence[States], owner: Tensor) -> None:
        """Let rows have different shared prefixes.

        Args:
            states: keys and values of each, [1, heads, tokens, size].
            owner: int64 [rows], which of them comes before a row.
        """
        self.shared, self._owner = None, owner
        self.stems = [(shared, torch.nonzero(owner == n)[:, 0]) for n, shared in enumerate(states)]

    def get_seq_length(self) -> int:
        """Number of tokens per row, shared ones included."""
        shared = [*([self.shared] if self.shared else []), *(states for states, _ in self.stems)]
        return int(self.keys.shape[-2]) + max((int(keys.shape[-2]) for keys, _ in shared), default=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows; a repeated index duplicates its row. Rows added after all existing ones cost least."""
        count, tokens = len(self.keys), self.keys.shape[-2]
        if torch.equal(indices[:count], torch.arange(count, device=indices.device)):
            for buffer in self._buffers:
                buffer[count : len(indices)] = buffer[indices[count:]]
        else:
            self._buffers = [_selected(buffer, indices, len(buffer)) for buffer in self._buffers]
        self._show(len(indices), tokens)
        if self._owner is not None:
            self.join([states for states, _ in self.stems], self._owner[indices])

    def _show(self, rows: int, end: int) -> None:
        self.keys, self.values = (buffer[:rows, :, :end] for buffer in self._buffers)


def _selected(rows: Tensor, indices: Tensor, room: int) -> Tensor:
    """Copy the rows at `indices` to the start of a new buffer of `room` rows."""
    buffer = rows.new_empty(room, *rows.shape[1:])
    torch.index_select(rows, 0, indices, out=buffer[: len(indices)])
    return buffer


def _gathered(pieces: Sequence[Tensor], places: Tensor, room: int) -> Tensor:
    """Gather `places` [rows, tokens] from pieces [rows, heads, tokens, size] into [room, heads, tokens, size]."""
    flat = torch.cat([piece.transpose(0, 1).flatten(1, 2) for piece in pieces], dim=1)
    heads, count, size = flat.shape
    starts = torch.arange(heads, device=flat.device)[:, None] * count
    tokens = places.shape[1]
    found = _selected(flat.view(heads * count, size), (starts + places[:, None]).flatten(), room * heads * tokens)
    return found.view(room, heads, tokens, size)


def roomy_cache(pieces: Sequence[Cache], places: NDArray[np.int64], tokens: int, most_rows: int, whole: bool) -> Cache:
    """Build a cache of `RoomyLayer`s; see there for the arguments."""
    at = torch.from_numpy(places).to(pieces[0].layers[0].keys.device)
    layers = zip(*(piece.layers for piece in pieces), strict=True)
    return Cache(layers=[RoomyLayer(layer, at, tokens, most_rows, whole) for layer in layers])


def joined_cache(
    pieces: Sequence[Cache],
    places: NDArray[np.int64],
    tokens: int,
    most_rows: int,
    stems: Sequence[tuple[Sequence[int], Sequence[States]]],
) -> Cache:
    """Build a cache of rows with different shared prefixes, held apart.

    Args:
        pieces, places, tokens, most_rows: see `RoomyLayer`.
        stems: the rows of each prefix, and its keys and values per layer; none for an empty prefix.
    """
    if not pieces:  # no row has tokens of its own yet
        state = next(state for _, state in stems if state)
        pieces = [Cache(layers=[_one_token(keys, values) for keys, values in state])]
    cache = roomy_cache(pieces, places, tokens, most_rows, whole=True)
    owner = torch.full((len(places),), -1)
    shared = [(rows, state) for rows, state in stems if state]
    for n, (rows, _) in enumerate(shared):
        owner[list(rows)] = n
    for layer, *states in zip(cache.layers, *(state for _, state in shared), strict=True):
        layer.join(states, owner)
    return cache


def _one_token(keys: Tensor, values: Tensor) -> DynamicLayer:
    layer = DynamicLayer()
    layer.update(keys[..., :1, :], values[..., :1, :])
    return layer
