"""Prompts that begin alike, laid out as the tree that they are: one row in which every token stands once.

Questions of one phrasing share their first words, and those of a category share many of them; read as separate rows, a
third of the work is done twice. In a causal model a token depends on those before it alone, so a tree gives each
prompt what it would get by itself, as long as a token sees its own line of ancestors and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Tree:
    """Some prompts as one row of n tokens.

    Attributes:
        which: the numbers of these prompts.
        paths: where each of them has its tokens, in their order.
        ids: int64 [n].
        depths: int64 [n], a token's place in its prompt.
        windows: int64 [n, N].
        sees: bool [n, n], whether a token (first axis) sees another: its ancestors, and itself.
    """

    which: list[int]
    paths: list[list[int]]
    ids: NDArray[np.int64]
    depths: NDArray[np.int64]
    windows: NDArray[np.int64]
    sees: NDArray[np.bool_]


def trees(prompts: Sequence[Sequence[int]], windows: Sequence[NDArray[np.int64]], most: int) -> list[Tree]:
    """Trees that hold each prompt once, none of more than `most` tokens unless it is of a single prompt.

    Tokens that are the same and yet see different n-grams stand beside each other.

    Args:
        prompts: token ids, none empty.
        windows: the n-grams a prompt's tokens see, int64 [tokens, N] each.
        most: tokens.
    """
    left = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))  # neighbours share the most
    found = []
    while left:
        nodes, paths = _grown(left, prompts, windows, most)
        found.append(_tree(left[: len(paths)], paths, nodes))
        left = left[len(paths) :]
    return found


Nodes = dict[tuple[int, ...], int]  # by parent, -1 above the first, token, and window; a parent is before its children


def _grown(
    left: Sequence[int], prompts: Sequence[Sequence[int]], windows: Sequence[NDArray[np.int64]], most: int
) -> tuple[Nodes, list[list[int]]]:
    """The nodes of as many prompts as there is room for, and the path of each."""
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
    told = np.array([node[1:] for node in nodes], dtype=np.int64)
    return Tree(which, paths, told[:, 0], depths, told[:, 1:], sees)
