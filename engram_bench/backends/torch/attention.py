"""Attention that is fast on short rows: plain matrix products.

On a CPU, with rows of about 50 tokens, torch's fused kernel takes ten times as long as plain products. On an H200,
torch 2.11 chose cuDNN's kernel for rows with a mask. It prepares a plan for each new shape, and each new token is one:
that took half of a decoding step's time (docs/gpu.md).

transformers' eager attention copies keys and values once per query head. `GROUPED` stacks a group's query heads along
the token axis instead, so nothing is copied and each product is larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, softmax
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

GROUPED = "grouped"

States = tuple[Tensor, Tensor]  # keys and values
Stems = Sequence[tuple[States, Tensor]]  # shared states, and the rows that they come before, int64 [rows]


def after_shared(shared: States | None, keys: Tensor) -> Tensor:
    """Attach the states of the shared tokens to `keys`, so that `grouped_attention` puts them first.

    The model's own code calls the attention function and passes only keys and values, so the keys carry the states.

    Args:
        shared: keys and values of the shared tokens, [1, key heads, tokens, size]; None without shared tokens.
        keys: the rows' own keys, [rows, key heads, tokens, size].
    """
    keys.shared = shared  # type: ignore[attr-defined]
    return keys


def after_stems(stems: Stems, keys: Tensor) -> Tensor:
    """Attach the states of several shared prefixes to `keys`, as `after_shared` attaches those of one."""
    keys.stems = stems  # type: ignore[attr-defined]
    return keys


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax attention in transformers' calling convention.

    Args:
        query: [rows, heads, tokens, size].
        key, value: [rows, key heads, own tokens, size]; heads is a multiple of key heads. Shared tokens attached
            to `key` come before these; every row sees all of them, or all of its own stem.
        attention_mask: additive, [rows, 1, tokens, all tokens]; keys beyond its end are free buffer space.
        scaling: factor on the scores.
        dropout: not supported; the models measured here have none.

    Returns:
        [rows, tokens, heads, size], and None in place of the attention weights.
    """
    assert not dropout, "attention dropout is not supported"
    rows, heads, tokens, size = query.shape
    groups = key.shape[1]
    shared: States | None = getattr(key, "shared", None)
    stems: Stems = getattr(key, "stems", ())
    first_keys = [shared[0]] if shared else [keys for (keys, _), _ in stems]
    before = max((keys.shape[2] for keys in first_keys), default=0)
    stacked = (query * scaling).reshape(rows, groups, heads // groups * tokens, size)
    scores = stacked @ key.transpose(2, 3)
    if attention_mask is not None:
        room = key.shape[2] - (attention_mask.shape[3] - before)
        assert room >= 0, "the mask covers more keys than there are"
        mask = pad(attention_mask[..., before:], (0, room), value=torch.finfo(query.dtype).min)
        scores = (scores.view(rows, groups, -1, tokens, key.shape[2]) + mask.unsqueeze(2)).flatten(2, 3)
    if shared:
        scores = torch.cat([_for_all_rows(stacked, shared[0].transpose(2, 3)), scores], dim=-1)
    if stems:
        first = scores.new_full((*scores.shape[:3], before), torch.finfo(query.dtype).min)
        for states, which in stems:
            first[which, ..., before - states[0].shape[2] :] = _for_all_rows(stacked[which], states[0].transpose(2, 3))
        scores = torch.cat([first, scores], dim=-1)
    weights = softmax(scores.float(), dim=-1).to(query.dtype)  # softmax in bfloat16 takes three times as long
    output = weights[..., before:] @ value
    if shared:
        output = output + _for_all_rows(weights[..., :before], shared[1])
    for states, which in stems:
        output[which] += _for_all_rows(weights[which, ..., before - states[1].shape[2] : before], states[1])
    return output.reshape(rows, heads, tokens, size).transpose(1, 2).contiguous(), None


def _for_all_rows(left: Tensor, right: Tensor) -> Tensor:
    """Multiply [rows, groups, n, k] by [1, groups, k, m] to [rows, groups, n, m], with one product per group."""
    rows, groups, n, k = left.shape
    product = left.transpose(0, 1).reshape(groups, rows * n, k) @ right[0]
    return product.view(groups, rows, n, right.shape[-1]).transpose(0, 1)


def additive_mask(*, dtype: torch.dtype, **asked: Any) -> Tensor | None:
    """The mask of `grouped_attention`: zero where a token is seen, the lowest number where it is hidden.

    transformers' own `eager_mask` copies a number from the host to the device in some versions (5.17), at every step.
    """
    seen = sdpa_mask(**{**asked, "allow_is_causal_skip": False})
    if seen is None:
        return None
    return torch.where(seen, torch.zeros((), device=seen.device, dtype=dtype), torch.finfo(dtype).min)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, additive_mask)
