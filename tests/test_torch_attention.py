"""Attention with shared tokens stored once equals attention over every row's full tokens."""

import pytest
import torch

from engram_bench.backends.torch.attention import after_shared, grouped_attention

ROWS, HEADS, GROUPS, TOKENS, SIZE = 3, 6, 2, 4, 8


@pytest.mark.parametrize("room", [0, 5])
@pytest.mark.parametrize("before", [0, 7])
def test_shared_tokens_held_once_are_seen_by_every_row(before, room):
    torch.manual_seed(0)
    query = torch.randn(ROWS, HEADS, TOKENS, SIZE)
    keys, values = torch.randn(2, ROWS, GROUPS, before + TOKENS, SIZE)
    keys[:, :, :before], values[:, :, :before] = keys[:1, :, :before], values[:1, :, :before]
    mask = torch.zeros(ROWS, 1, TOKENS, before + TOKENS)
    mask[:, :, :, before:] = torch.full((TOKENS, TOKENS), torch.finfo(torch.float32).min).triu(1)
    mask[1, :, 1:, before] = torch.finfo(torch.float32).min  # as padding is
    wide = keys.repeat_interleave(HEADS // GROUPS, 1), values.repeat_interleave(HEADS // GROUPS, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=mask, scale=0.3).transpose(1, 2)

    own = [torch.cat([states[:, :, before:], torch.randn(ROWS, GROUPS, room, SIZE)], 2) for states in (keys, values)]
    shared = (keys[:1, :, :before], values[:1, :, :before]) if before else None
    found, _ = grouped_attention(None, query, after_shared(shared, own[0]), own[1], mask, 0.3)
    torch.testing.assert_close(found, expected)


def test_keys_that_are_missing_are_not_passed_over():
    query, keys = torch.randn(1, 2, 1, 4), torch.randn(1, 1, 3, 4)
    with pytest.raises(AssertionError, match="more keys than there are"):
        grouped_attention(None, query, keys, keys, torch.zeros(1, 1, 1, 5), 1.0)
