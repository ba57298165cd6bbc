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

from engram_bench.backends.torch_attention import States, after_shared


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
    """Keys and values [rows, heads, tokens, size] at the start of buffers with room for more tokens.

    Written in place, so for inference only.

    Args:
        pieces: layers that have read tokens, [rows, heads, tokens, size] each.
        places: which of all those tokens, rows and tokens counted through, make a row: [rows, tokens + room], int64.
            For the room any token will do: it is masked until it is written over.
        tokens: how many of a row's places hold tokens; the others are room.
        whole: give attention the whole buffers, for it to mask what is free: a product with a part of a buffer copies
            that part first, and takes four times as long.
    """

    def __init__(self, pieces: Sequence[DynamicLayer], places: Tensor, tokens: int, whole: bool) -> None:
        super().__init__()
        self._shared: States | None = getattr(pieces[0], "shared", None)
        self._whole = whole
        keys, values = ([getattr(piece, name) for piece in pieces] for name in ("keys", "values"))
        self._buffers = _gathered(keys, places), _gathered(values, places)
        self.dtype, self.device, self.is_initialized = keys[0].dtype, keys[0].device, True
        self._show(tokens)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> States:
        """Store the new tokens; returns all of them, or the buffers."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        self._show(end)
        keys, values = self._buffers if self._whole else (self.keys, self.values)
        return after_shared(self._shared, keys), values

    def get_seq_length(self) -> int:
        """How many tokens a row holds, shared ones included."""
        return int(self.keys.shape[-2]) + (int(self._shared[0].shape[-2]) if self._shared else 0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        keys, values = self._buffers
        self._buffers, used = (keys.index_select(0, indices), values.index_select(0, indices)), self.keys.shape[-2]
        self._show(used)

    def _show(self, end: int) -> None:
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)


def _gathered(pieces: Sequence[Tensor], places: Tensor) -> Tensor:
    """Of pieces [rows, heads, tokens, size] the places [rows, tokens] for every head: [rows, heads, tokens, size]."""
    flat = torch.cat([piece.transpose(0, 1).flatten(1, 2) for piece in pieces], dim=1)
    heads, count, size = flat.shape
    starts = torch.arange(heads, device=flat.device)[:, None] * count
    found = flat.view(-1, size).index_select(0, (starts + places[:, None]).flatten())
    return found.view(len(places), heads, -1, size)


def roomy_cache(pieces: Sequence[Cache], places: NDArray[np.int64], tokens: int, whole: bool) -> Cache:
    """A cache of `RoomyLayer`s."""
    at = torch.from_numpy(places).to(pieces[0].layers[0].keys.device)
    layers = zip(*(piece.layers for piece in pieces), strict=True)
    return Cache(layers=[RoomyLayer(layer, at, tokens, whole) for layer in layers])
