"""Positions of tokens in a batch of left-padded rows. Works on arrays only, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_bench.backends.base import Text
from engram_bench.prompts import ABSENT

NOWHERE = np.zeros((1, 1), dtype=bool)  # `places` that select no position in a batch of any shape


@dataclass
class Rows:
    """The part of a batch after the shared prefix: left-padded [rows, tokens]; windows [rows, tokens, N + 1]."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    windows: NDArray[np.int64]


def padded(texts: Sequence[Sequence[int]], windows: Sequence[NDArray[np.int64]], pad_id: int) -> Rows:
    """Left-pad token ids and their n-gram windows [tokens, N + 1] into rows."""
    mask = ends([len(text) for text in texts])
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    seen = np.full((*mask.shape, windows[0].shape[1]), ABSENT, dtype=np.int64)
    for row, (text, own) in enumerate(zip(texts, windows, strict=True)):
        start = mask.shape[1] - len(text)
        ids[row, start:], seen[row, start:] = text, own
    return Rows(ids, mask, seen)


def ends(lengths: Sequence[int]) -> NDArray[np.int64]:
    """A mask [rows, longest] that marks the last `lengths[i]` positions of each row i."""
    longest = max(lengths)
    return (np.arange(longest) >= longest - np.array(lengths)[:, None]).astype(np.int64)


def answer_places(pairs: Sequence[Text]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Positions that predict answer tokens, in rows that end at the answer's second-to-last token.

    Returns:
        bool [rows, positions], over as many last positions as the longest answer needs; and the predicted tokens row by
        row, int64 [answer tokens].
    """
    places = ends([max(1, len(answer)) for _, answer in pairs]).astype(bool)
    places[[not answer for _, answer in pairs]] = False
    return places, np.array([token for _, answer in pairs for token in answer], dtype=np.int64)
