"""Positions of tokens in a batch of left-padded rows. Works on arrays only, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

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


@dataclass
class Packed:
    """Several texts one after the other in each row, each of which sees the shared prefix and itself.

    Attributes:
        at: int64 [tokens], where each text's tokens stand in the rows, counted row by row.
        positions: int64 [rows, width], of each token in its text, the prefix included.
        sees: int64 [rows, width, prefix + width], which columns each token sees.
        places: bool [rows, width], tokens that predict an answer's token.
    """

    at: NDArray[np.int64]
    positions: NDArray[np.int64]
    sees: NDArray[np.int64]
    places: NDArray[np.bool_]


def packed(texts: Sequence[tuple[int, int]], prefix: int, most: int) -> Packed:
    """Pack texts, in their order, into as few and as full rows as this order allows.

    Args:
        texts: for each, its tokens without the prefix, and how many of them, at its end, predict an answer's token.
        prefix: number of tokens that all share.
        most: tokens in a row; only a longer text has a longer row.
    """
    lengths = [length for length, _ in texts]
    longest = max(lengths)
    tried = (_filled(lengths, width) for width in range(longest, max(most, longest) + 1))
    rows = min(tried, key=lambda rows: len(rows) * max(map(sum, rows)))
    width = max(map(sum, rows))
    positions = np.zeros((len(rows), width), dtype=np.int64)
    sees = np.zeros((len(rows), width, prefix + width), dtype=np.int64)
    sees[..., :prefix] = 1
    places, at = np.zeros((len(rows), width), dtype=bool), []
    left = iter(texts)
    for row, inside in enumerate(rows):
        start = 0
        for length, predicting in islice(left, len(inside)):
            end = start + length
            positions[row, start:end] = prefix + np.arange(length)
            sees[row, start:end, prefix + start : prefix + end] = np.tri(length)
            places[row, end - predicting : end] = True
            at.append(row * width + np.arange(start, end))
            start = end
    return Packed(np.concatenate(at), positions, sees, places)


def _filled(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Lengths in their order, in rows of at most this width."""
    rows: list[list[int]] = [[]]
    for length in lengths:
        if sum(rows[-1]) + length > width:
            rows.append([])
        rows[-1].append(length)
    return rows


def ends(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
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
