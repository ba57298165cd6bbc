"""Lay out prompts with common beginnings as a prefix tree: one row in which shared tokens occur once.

Questions of one phrasing share their first words, and so do many questions of one category. Separate rows would do a
third of the work twice. In a causal model, a token depends only on the tokens before it. So a tree gives each prompt
the same states as a row of its own, if each token sees only itself and its ancestors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Tree:
    """Several prompts in one row of n tokens.

    Attributes:
        which: indices of these prompts.
        paths: for each of them, the positions of its tokens in the row, in order.
        ids: int64 [n].
        depths: int64 [n], position of each token in its prompt.
        windows: int64 [n, N], n-gram window of each token.
        sees: bool [n, n], whether a token (first axis) sees another (second axis): itself and its ancestors.
    """

    which: list[int]
    paths: list[list[int]]
    ids: NDArray[np.int64]
    depths: NDArray[np.int64]
    windows: NDArray[np.int64]
    sees: NDArray[np.bool_]


def trees(prompts: Sequence[Sequence[int]], windows: Sequence[NDArray[np.int64]], most: int) -> list[Tree]:
    """Build trees that hold each prompt once. Only a tree of a single prompt may exceed `most` tokens.

    Equal tokens with different n-gram windows become separate nodes.

    Args:
        prompts: token ids, none empty.
        windows: n-gram windows of each prompt's tokens, int64 [tokens, N + 1].
        most: maximum number of tokens per tree.
    """
    left = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))  # sorted neighbours share the most tokens
    found = []
    while left:
        nodes, paths = _grow(left, prompts, windows, most)
        found.append(_tree(left[: len(paths)], paths, nodes))
        left = left[len(paths) :]
    return found


Nodes = dict[tuple[int, ...], int]  # (parent or -1, token, *window) -> node; parents come first


def _grow(
    left: Sequence[int], prompts: Sequence[Sequence[int]], windows: Sequence[NDArray[np.int64]], most: int
) -> tuple[Nodes, list[list[int]]]:
    """Insert prompts until the tree is full; returns its nodes, and the path of each inserted prompt."""
    nodes: Nodes = {}
    paths: list[list[int]] = []
    for i in left:
        before, path = len(nodes), [-1]
        for token, window in zip(prompts[i], windows[i].tolist(), strict=True):
            path.append(nodes.setdefault((path[-1], token, *window), len(nodes)))
        if len(nodes) > most and paths:
            while len(nodes) > before:
                nodes.popitem()
            break
        paths.append(path[1:])
    return nodes, paths


def _tree(which: list[int], paths: list[list[int]], nodes: Nodes) -> Tree:
    sees = np.eye(len(nodes), dtype=bool)
    depths = np.zeros(len(nodes), dtype=np.int64)
    for (parent, *_), node in nodes.items():
        if parent >= 0:
            sees[node] |= sees[parent]
            depths[node] = depths[parent] + 1
    columns = np.array([node[1:] for node in nodes], dtype=np.int64)
    return Tree(which, paths, columns[:, 0], depths, columns[:, 1:], sees)
