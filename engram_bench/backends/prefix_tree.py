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

Window = tuple[int, ...]  # the n-gram a token sees


@dataclass
class Tree:
    """Some prompts as one row of n tokens.

    Attributes:
        ids: int64 [n].
        depths: int64 [n], a token's place in its prompt.
        windows: int64 [n, N].
        sees: bool [n, n], whether a token (first axis) sees another: its ancestors, and itself.
        paths: where each prompt's tokens stand, in their order.
    """

    ids: NDArray[np.int64]
    depths: NDArray[np.int64]
    windows: NDArray[np.int64]
    sees: NDArray[np.bool_]
    paths: list[list[int]]


def trees(prompts: Sequence[Sequence[int]], windows: Sequence[NDArray[np.int64]], most: int) -> Iterator[Tree]:
    """Trees of consecutive prompts, none of more than `most` tokens unless it is of a single prompt.

    What shares a tree is a matter of the prompts alone: where two differ in their windows and not in their tokens, both
    get their own, behind all others. So a prompt that an n-gram memory has nothing to say to stands where it stands
    without the memory.

    Args:
        prompts: token ids, none empty; sorted, they share the most.
        windows: of each prompt, int64 [tokens, N].
        most: tokens.
    """
    start = 0
    while start < len(prompts):
        nodes: dict[tuple[int, int], int] = {}
        end = start
        while end < len(prompts):
            found = dict(nodes)
            _walk(found, prompts[end])
            if len(found) > most and end > start:
                break
            nodes, end = found, end + 1
        yield _tree(nodes, prompts[start:end], windows[start:end])
        start = end


def _walk(nodes: dict[tuple[int, int], int], ids: Sequence[int]) -> list[int]:
    """The path of a prompt; nodes, by parent and token, that are not there yet are added. -1 is above the first."""
    path = [-1]
    for token in ids:
        path.append(nodes.setdefault((path[-1], token), len(nodes)))
    return path[1:]


def _tree(
    nodes: dict[tuple[int, int], int], prompts: Sequence[Sequence[int]], windows: Sequence[NDArray[np.int64]]
) -> Tree:
    parents = [parent for parent, _ in nodes]
    ids = [token for _, token in nodes]
    seen: list[Window | None] = [None] * len(nodes)
    apart: dict[tuple[int, int, Window], int] = {}
    paths = []
    for prompt, own in zip(prompts, windows, strict=True):
        path = [-1]
        for token, window in zip(prompt, map(tuple, own.tolist()), strict=True):
            node = nodes.get((path[-1], token))
            if node is None or seen[node] not in (None, window):
                node = apart.setdefault((path[-1], token, window), len(ids))
                if node == len(ids):
                    parents.append(path[-1])
                    ids.append(token)
                    seen.append(None)
            seen[node] = window
            path.append(node)
        paths.append(path[1:])
    sees = np.eye(len(ids), dtype=bool)
    depths = np.zeros(len(ids), dtype=np.int64)
    for node, parent in enumerate(parents):  # which comes before its children
        if parent >= 0:
            sees[node] |= sees[parent]
            depths[node] = depths[parent] + 1
    nothing = (ABSENT,) * windows[0].shape[1]
    return Tree(np.array(ids), depths, np.array([window or nothing for window in seen]), sees, paths)
