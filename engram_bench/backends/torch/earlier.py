"""The values of earlier tokens, which a memory's short convolution reads.

They are kept beside the tokens' keys and values, in one more layer of the KV cache: [rows, memories, tokens, d]. So
what expands, selects, gathers or crops the cache does the same to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from engram_bench.memory.torch import MemoryLayer


def taps_of(memories: Sequence[MemoryLayer]) -> Sequence[int]:
    """The taps of a model's memories, which all have the same; () without a convolution."""
    return memories[0].taps if memories else ()


def columns_back(mask: NDArray[Any], tokens: int, taps: Sequence[int]) -> NDArray[np.int64]:
    """Where the tokens stand that are so many tokens before each new one in its text, padding left out.

    Args:
        mask: bool or int64. Which columns hold tokens, [rows, all columns], or which columns each new token sees,
            [rows, tokens, all columns]. The new tokens' columns are last.
        tokens: number of new tokens.
        taps: how many tokens back.

    Returns:
        int64 [rows, tokens, taps]: columns, or -1 where the text begins later.
    """
    shown = mask > 0
    seen = shown.sum(axis=-1) if mask.ndim == 3 else shown.cumsum(axis=-1)[:, -tokens:]
    order = np.argsort(~shown, axis=-1, kind="stable")  # columns of tokens first
    place = seen[..., None] - 1 - np.array(taps)
    if mask.ndim == 3:
        found = np.take_along_axis(order, place.clip(min=0), axis=-1)
    else:
        found = np.take_along_axis(order, place.clip(min=0).reshape(len(mask), -1), axis=-1).reshape(place.shape)
    return np.where(place >= 0, found, -1)


def places_of(columns: NDArray[np.int64], shared: int, seen: int) -> tuple[NDArray[np.int64], int]:
    """The places of columns among what `values_from` returns, as `memory.torch.Earlier` counts them.

    Args:
        columns: int64 [rows, tokens, taps] from `columns_back`.
        shared: number of leading columns that the cache holds once for all rows.
        seen: number of columns in the cache.

    Returns:
        int64 [rows, tokens, taps], and the first column that is needed of those that each row has for itself.
    """
    rows, tokens, _ = columns.shape
    row = np.arange(rows)[:, None, None]
    first = int(columns.min(initial=seen, where=columns >= shared))
    old = 1 + shared + row * (seen - first) + columns - first
    new = 1 + shared + rows * (seen - first) + row * tokens + columns - seen
    return np.where(columns >= seen, new, np.where(columns >= shared, old, 1 + columns)), first


def values_from(values: Tensor, shared: Tensor | None, first: int) -> Tensor:
    """Values of one memory, [n, d]: the shared tokens', then those of each row from column `first` on.

    Args:
        values: [rows, columns, d], without the shared columns.
        shared: [shared columns, d]; None: there are none.
        first: see `places_of`.
    """
    before = 0 if shared is None else len(shared)
    own = values[:, first - before :].flatten(0, 1)
    return own if shared is None else torch.cat([shared, own])


def before(
    cache: Cache, at: int, memories: Sequence[MemoryLayer], mask: NDArray[np.int64], tokens: int, blank: Tensor
) -> tuple[NDArray[np.int64], list[Tensor]]:
    """What the memories' convolutions read in the next forward.

    Args:
        cache: of the previous tokens. Those whose values it does not hold count as tokens that read no n-gram.
        at: number of the cache's layer for the values.
        memories: the model's memories, in order of their layers.
        mask, tokens: see `columns_back`.
        blank: float32 [d], zeros.

    Returns:
        int64 [rows, tokens, taps] and, for each memory, float32 [n, d], see `memory.torch.Earlier`.
    """
    while len(cache.layers) <= at:
        cache.layers.append(DynamicLayer())
    layer, seen = cache.layers[at], mask.shape[-1] - tokens
    missing = seen - layer.get_seq_length()
    if missing or not layer.is_initialized:
        _add(layer, blank.expand(len(mask), len(memories), missing, -1))
    shared = layer.shared[0][0] if getattr(layer, "shared", None) else None
    columns = columns_back(mask, tokens, taps_of(memories))
    places, first = places_of(columns, 0 if shared is None else shared.shape[1], seen)
    parts = [(layer.keys[:, n], None if shared is None else shared[n]) for n in range(len(memories))]
    return places, [values_from(own, of_all, first) for own, of_all in parts]


def keep(layer: CacheLayerMixin, memories: Sequence[MemoryLayer], shape: Sequence[int], blank: Tensor) -> None:
    """Add the values of the last forward to a cache's layer; see `together`."""
    _add(layer, together(memories, shape, blank))


def together(memories: Sequence[MemoryLayer], shape: Sequence[int], blank: Tensor) -> Tensor:
    """The values of the last forward, float32 [rows, memories, tokens, d].

    Args:
        memories: see `before`.
        shape: rows and tokens.
        blank: see `before`.
    """
    values = [blank.expand(*shape, -1) if memory.values is None else memory.values for memory in memories]
    return torch.stack(values, dim=1)


def _add(layer: CacheLayerMixin, values: Tensor) -> None:
    layer.update(values, values[..., :0])
