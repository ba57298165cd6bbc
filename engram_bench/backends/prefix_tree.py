"""Prompts that begin alike, laid out as the tree that they are: one row in which every token stands once.

Questions of one phrasing share their first words, and all the prompts of a category many; read side by side, a third of
what is computed is computed twice. In a causal model a token depends on those before it alone, so a tree gives each
prompt what it would get by itself, as long as a token sees its own line of ancestors and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_bench.prompts import ABSENT


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


def trees(prompts: Sequence[Sequence[int]], windows: Sequence[NDArray[np.int64]], most: int) -> Iterator[Tree]:
    """Trees that hold each prompt once, none of more than `most` tokens unless it is of a single prompt.

    The trees are a matter of the prompts alone, so that one that an n-gram memory has nothing to say to is read, to the
    bit, as without the memory. A prompt whose windows do not fit into its tree is left to others, that come at the end.

    Args:
        prompts: token ids, none empty.
        windows: the n-grams a prompt's tokens see, int64 [tokens, N] each.
        most: tokens.
    """
    left = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))  # neighbours share the most
    while left:
        later: list[int] = []
        while left:
            nodes, paths = _grown(left, prompts, most)
            here, left = left[: len(paths)], left[len(paths) :]
            tree = _tree(nodes, dict(zip(here, paths, strict=True)), windows)
            later += sorted(set(here) - set(tree.which), key=here.index)
            yield tree
        left = later


Nodes = dict[tuple[int, int], int]  # by parent, -1 above the first, and token; a parent comes before its children


def _grown(left: Sequence[int], prompts: Sequence[Sequence[int]], most: int) -> tuple[Nodes, list[list[int]]]:
    """The nodes of as many prompts as there is room for, and the path of each."""
    nodes: Nodes = {}
    paths: list[list[int]] = []
    for i in left:
        before, path = len(nodes), [-1]
        for token in prompts[i]:
            path.append(nodes.setdefault((path[-1], token), len(nodes)))
        if len(nodes) > most and paths:
            while len(nodes) > before:
                nodes.popitem()
            break
        paths.append(path[1:])
    return nodes, paths


def _tree(nodes: Nodes, paths: dict[int, list[int]], windows: Sequence[NDArray[np.int64]]) -> Tree:
    """The tree of all nodes, with those prompts that agree on what its tokens see; what sees nothing goes first."""
    seen = np.full((len(nodes), windows[0].shape[1]), ABSENT, dtype=np.int64)
    taken = np.zeros(len(nodes), dtype=bool)
    which = []
    for i in sorted(paths, key=lambda i: bool((windows[i] != ABSENT).any())):
        known = taken[paths[i]]
        if np.array_equal(seen[paths[i]][known], windows[i][known]):
            seen[paths[i]], taken[paths[i]] = windows[i], True
            which.append(i)
    sees = np.eye(len(nodes), dtype=bool)
    depths = np.zeros(len(nodes), dtype=np.int64)
    for (parent, _), node in nodes.items():
        if parent >= 0:
            sees[node] |= sees[parent]
            depths[node] = depths[parent] + 1
    ids = np.array([token for _, token in nodes], dtype=np.int64)
    return Tree(which, [paths[i] for i in which], ids, depths, seen, sees)
