"""Reading many texts that begin alike: as trees where a model's positions allow it, elsewhere as padded rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache

from engram_bench.backends.prefix_tree import Tree, trees
from engram_bench.backends.torch_cache import roomy_cache
from engram_bench.backends.torch_decoding import Decoding
from engram_bench.backends.torch_layout import padded
from engram_bench.prompts import ABSENT, Prompt

if TYPE_CHECKING:
    from engram_bench.backends.torch import Prefix, TorchModel

TREE_TOKENS = 128  # more save few tokens, and attention is among all of a tree's, most of which do not see each other
TREES = 4  # read at once: wide products
ROWS = 64


@dataclass
class Read:
    """Texts that were read in one forward.

    Attributes:
        which: the numbers of these texts.
        rows: the row each of them stands in.
        paths: int64 [tokens] each, which tokens of that row are its own.
        ends: which of the logits are at the last token of each.
        logits: [ends, vocabulary].
        cache: keys and values [rows, heads, tokens, size] a layer; what all texts share comes first, where it is there.
    """

    which: Sequence[int]
    rows: Sequence[int]
    paths: Sequence[NDArray[np.int64]]
    ends: Sequence[int]
    logits: Tensor
    cache: Cache


def begin(
    model: TorchModel,
    prompts: Sequence[Prompt],
    which: NDArray[np.int64],
    state: Prefix,
    prefix: int,
    max_new_tokens: int,
) -> Decoding:
    """See `decoding.Model.begin`."""
    texts, windows = [p.ids[prefix:] for p in prompts], [model.windows(p, ())[prefix:] for p in prompts]
    inside, longest = 0 if model.holds_shared_apart else prefix, max(map(len, windows))
    places = np.zeros((len(prompts), inside + longest + max_new_tokens), dtype=np.int64)  # padding and room: any
    mask = np.ones((len(prompts), prefix + longest), dtype=np.int64)
    ends = np.zeros(len(prompts), dtype=np.int64)
    pieces = []
    ends_before = tokens_before = 0
    for piece in read(model, texts, windows, state, prefix):
        count, _, tokens, _ = piece.cache.layers[0].keys.shape
        for i, row, path, end in zip(piece.which, piece.rows, piece.paths, piece.ends, strict=True):
            start, padding = tokens_before + row * tokens, longest - len(path)
            places[i, :inside] = start + np.arange(inside)
            places[i, inside + padding : inside + longest] = start + inside + path
            mask[i, prefix : prefix + padding] = 0
            ends[i] = ends_before + end
        ends_before, tokens_before = ends_before + len(piece.logits), tokens_before + count * tokens
        pieces.append(piece)
    logits = torch.cat([piece.logits for piece in pieces])[torch.from_numpy(ends[which]).to(model.device)]
    cache = roomy_cache([piece.cache for piece in pieces], places[which], inside + longest, model.holds_shared_apart)
    return Decoding(model.step, logits, cache, mask[which], np.stack([windows[i][-1] for i in which]))


Texts = Sequence[Sequence[int]]
Windows = Sequence[NDArray[np.int64]]


def read(model: TorchModel, texts: Texts, windows: Windows, state: Prefix, prefix: int) -> Iterator[Read]:
    """Read distinct texts, each less the `prefix` tokens that all begin with.

    Args:
        model: the backend.
        texts: token ids.
        windows: the n-grams a text's tokens see, int64 [tokens, N] each.
        state: keys and values of the tokens that all begin with.
        prefix: how many these are.
    """
    reader = _as_trees if model.takes_any_layout(prefix + max(map(len, texts))) else _as_rows
    return reader(model, texts, windows, state, prefix)


def _as_trees(model: TorchModel, texts: Texts, windows: Windows, state: Prefix, prefix: int) -> Iterator[Read]:
    for few in _alike(trees(texts, windows, TREE_TOKENS)):
        wanted = np.zeros((len(few), max(len(tree.ids) for tree in few)), dtype=bool)
        for row, tree in enumerate(few):
            wanted[row, [path[-1] for path in tree.paths]] = True
        logits, cache = _read_trees(model, few, wanted, state, prefix)
        ends = wanted.cumsum().reshape(wanted.shape) - 1  # equal texts end together
        each = [
            (row, i, np.array(path))
            for row, tree in enumerate(few)
            for i, path in zip(tree.which, tree.paths, strict=True)
        ]
        rows, which, paths = zip(*each, strict=True)
        yield Read(which, rows, paths, [int(ends[row, path[-1]]) for row, _, path in each], logits, cache)


def _alike(found: Sequence[Tree]) -> Iterator[list[Tree]]:
    """Up to `TREES` of like size each: what is short of the largest is padding."""
    few: list[Tree] = []
    for tree in sorted(found, key=lambda tree: -len(tree.ids)):
        if few and (len(few) == TREES or len(tree.ids) < 0.75 * len(few[0].ids)):
            yield few
            few = []
        few.append(tree)
    yield few


def _read_trees(
    model: TorchModel, few: Sequence[Tree], wanted: NDArray[np.bool_], state: Prefix, prefix: int
) -> tuple[Tensor, Cache]:
    """Logits [ends, vocabulary] where `wanted` [trees, tokens], and the cache [trees, heads, tokens, size]."""
    ids, positions = np.zeros((2, *wanted.shape), dtype=np.int64)
    windows = np.full((*wanted.shape, few[0].windows.shape[1]), ABSENT, dtype=np.int64)
    sees = np.zeros((*wanted.shape, prefix + wanted.shape[1]), dtype=np.int64)
    sees[..., :prefix] = 1
    for row, tree in enumerate(few):
        size = len(tree.ids)
        ids[row, :size], positions[row, :size], windows[row, :size] = tree.ids, prefix + tree.depths, tree.windows
        sees[row, :size, prefix : prefix + size] = tree.sees
    cache = model.cache(state, len(few))
    with model.wanting(wanted):
        return model.step(ids, sees, positions, windows, cache, keep=0), cache


def _as_rows(model: TorchModel, texts: Texts, windows: Windows, state: Prefix, prefix: int) -> Iterator[Read]:
    for start in range(0, len(texts), ROWS):
        some = slice(start, start + ROWS)
        rows = padded(texts[some], windows[some], model.encoder.eos_id)
        logits, cache = model.forward(state, rows, keep=1)
        count, width = rows.ids.shape
        paths = [np.arange(width - own, width) for own in rows.mask.sum(axis=1)]
        yield Read(range(start, start + count), range(count), paths, range(count), logits[:, -1], cache)
