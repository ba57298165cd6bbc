"""What one forward of a transformers model is given: its KV cache, and which of its tokens are padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache

from engram_bench.errors import UsageError
from engram_bench.memory.reading import PADDING

PACKED = "an n-gram memory reads one text per row; pass each text in a row of its own, padded, with its attention_mask"
CACHES = ("past_key_values", "cache_params", "state")  # what models call their cache


class ReadingLayer(DynamicLayer):  # type: ignore[misc]
    """What a memory knows after each cached token, int64 [batch, 1, tokens, width], as an extra layer of the KV cache.

    In the place of a layer's values are those that a convolution reads, float32 [batch, memories, tokens, d].

    So reordering beams, dropping rows and cropping tokens of the cache changes it too.

    Args:
        memory: number of the memory that it belongs to.
        compileable: whether the cache's other layers are, because transformers takes masks for all layers from that.
    """

    def __init__(self, memory: int, compileable: bool) -> None:
        super().__init__()
        self.memory, self.is_compileable = memory, compileable

    @property
    def padding(self) -> Tensor:
        """Bool [batch, tokens]."""
        found: Tensor = self.keys[:, 0, :, 0] == PADDING
        return found

    def numbers(self, rows: int | slice, count: int = 0) -> NDArray[np.int64]:
        """Those of some rows and of the newest `count` tokens, 0: all. int64 [rows, tokens, width]"""
        found: NDArray[np.int64] = self.keys[rows, 0, -count:].cpu().numpy()
        return found

    def newest(self, count: int) -> NDArray[np.int64]:
        """At least the newest `count` tokens that are not padding, or all there are: int64 [batch, tokens, width]."""
        found = self.numbers(slice(None), count)
        return self.numbers(slice(None)) if (found[..., 0] == PADDING).any() else found

    def add(self, numbers: NDArray[np.int64], device: torch.device, values: Tensor | None = None) -> None:
        new = torch.from_numpy(numbers)[:, None].to(device)
        self.update(new, new[..., :0] if values is None else values)

    def replace(self, numbers: NDArray[np.int64]) -> None:
        self.keys: Tensor = torch.from_numpy(numbers)[:, None].to(self.keys.device)


def cache_of(kwargs: dict[str, Any]) -> Cache | None:
    """The cache that a forward is given, or None.

    Raises:
        UsageError: it is of a kind that a memory cannot use.
    """
    cache = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
    if cache is not None and (not isinstance(cache, Cache) or isinstance(cache, EncoderDecoderCache)):
        name = type(cache).__name__
        raise UsageError(
            f"an n-gram memory cannot use a cache of class {name}; pass a DynamicCache, or use_cache=False"
        )
    return cache


def layer_of(cache: Cache, memory: int) -> ReadingLayer | None:
    """The memory's layer of a cache, or one that holds nothing, or None."""
    every = [layer for layer in cache.layers if isinstance(layer, ReadingLayer)]
    own = (layer for layer in every if layer.memory == memory)
    return next(own, None) or next((layer for layer in every if not layer.get_seq_length()), None)


def seen_layer(cache: Cache | None, memory: int) -> ReadingLayer | None:
    """The layer of a cache that holds tokens; None if there is no cache or an empty one.

    Raises:
        UsageError: the cache holds tokens that this memory has not seen.
    """
    if cache is None:
        return None
    layer = layer_of(cache, memory)
    seen = 0 if layer is None else layer.get_seq_length()
    if _held(cache) != seen:
        raise UsageError(
            "the KV cache holds tokens that this memory has not seen; make the cache with the memory attached"
        )
    return layer if seen else None


def _held(cache: Cache) -> int:
    """Number of tokens in a cache."""
    kinds = list(zip(cache.layers, cache.is_linear, strict=True))
    own = [linear for at, linear in kinds if not isinstance(at, ReadingLayer)]
    if own and all(own):  # such a cache counts no tokens, and never loses any
        known = max((at.get_seq_length() for at, _ in kinds if isinstance(at, ReadingLayer)), default=0)
        return known or int(cache.has_previous_state())
    return int(cache.get_seq_length())


def mask_of(kwargs: dict[str, Any], cache: Cache | None, ids: Tensor, seen: int) -> Tensor | None:
    """Which tokens are not padding: bool [batch, cached tokens and new], or [batch, new tokens]; None: all.

    Args:
        kwargs: the forward's arguments.
        cache: its cache.
        ids: its token ids, [batch, new tokens].
        seen: number of cached tokens.

    Raises:
        UsageError: a row holds several texts.
    """
    mask, count = kwargs.get("attention_mask"), ids.shape[1]
    if kwargs.get("cu_seq_lens_q") is not None:
        raise UsageError(PACKED)
    if isinstance(mask, dict):  # one for each kind of layer
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None:
        positions = kwargs.get("position_ids")
        if not seen and count > 1 and positions is not None and bool((positions.diff(dim=-1) != 1).any()):
            raise UsageError(PACKED)
        return None
    if mask.ndim == 2:
        shown: Tensor = mask > 0
        return shown
    # [batch, 1, new tokens, columns], as `generate` makes it for a static cache; a column is a token of the cache
    allowed = (mask if mask.dtype == torch.bool else mask == 0).expand(len(ids), -1, -1, -1)[:, 0]
    layers = [] if cache is None else [layer for layer in cache.layers if not isinstance(layer, ReadingLayer)]
    sliding = [getattr(layer, "is_sliding", False) for layer in layers]
    whole = next((n for n, slides in enumerate(sliding) if not slides), None)  # a layer that sees all tokens
    first = cache.get_mask_sizes(count, whole or 0)[1] if cache is not None and sliding else 0
    real = allowed.diagonal(seen - first, dim1=1, dim2=2)[:, :count]
    before = allowed.diagonal(seen - first - 1, dim1=1, dim2=2)[:, -count + 1 :] if count > 1 else real[:, 1:]
    if bool(((before != real[:, :-1]) & real[:, 1:]).any()):  # a token does not see the one before it
        raise UsageError(f"{PACKED} of two dimensions")
    return real if whole is None else torch.cat([allowed[:, -1, :seen], real], dim=1)
