"""Prefill many texts with a common beginning: as prefix trees if the model supports it, else as padded rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers import Cache

from engram_bench.backends.decoding import Stem
from engram_bench.backends.torch.cache import joined_cache, roomy_cache
from engram_bench.backends.torch.decoding import Decoding
from engram_bench.backends.torch.layout import NOWHERE, ends, padded
from engram_bench.backends.torch.network import Network, Prefix
from engram_bench.backends.torch.prefix_tree import Tree, trees
from engram_bench.prompts import ABSENT, Prompt

TREE_TOKENS = 128  # larger trees share few more tokens, and attention cost is quadratic, mostly for masked pairs
TREES = 4  # per forward pass, for large matrix products; on an accelerator more, which has not been measured yet
TREES_ACCELERATOR = 32
ROWS = 64  # per forward pass
MOST_BYTES = 1 << 30  # limit for the prompts kept in `known`


@dataclass
class Read:
    """Texts that were read in one forward.

    Attributes:
        which: indices of these texts.
        rows: the cache row of each text.
        paths: for each text, int64 [tokens], the positions of its tokens in that row.
        cache: keys and values [rows, heads, tokens, size] per layer. The shared prefix comes first, unless the cache
            holds it apart.
    """

    which: Sequence[int]
    rows: Sequence[int]
    paths: Sequence[NDArray[np.int64]]
    cache: Cache

    @property
    def nbytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def begin(
    model: Network,
    prompts: Sequence[Prompt],
    most_rows: int,
    stems: Sequence[Stem],
    max_new_tokens: int,
    known: KnownPrompts | None,
) -> Decoding:
    """See `decoding.Model.begin`. `Decoding` feeds the last token of each prompt like an answer token.

    `known` holds prompts from earlier calls and receives the new ones; None turns this cache off.
    """
    before = np.zeros(len(prompts), dtype=np.int64)
    for stem in stems:
        before[list(stem.which)] = stem.tokens
    windows = [model.windows(prompt, ())[start:] for prompt, start in zip(prompts, before, strict=True)]
    prefix, longest = int(before.max()), max(map(len, windows)) - 1
    inside = 0 if model.holds_shared_apart else prefix
    places = np.zeros((len(prompts), inside + longest + max_new_tokens), dtype=np.int64)  # padding, free positions: any
    places[:, :inside] = np.arange(inside)  # for prompts that are in no piece
    mask = np.concatenate([ends(before), ends([len(own) - 1 for own in windows])], axis=1)
    tokens_before = 0
    pieces: list[Read] = []
    for stem in stems:
        which = list(stem.which)
        found = _pieces(model, [prompts[i] for i in which], [windows[i] for i in which], stem.state, stem.tokens, known)
        pieces += found
        for piece in found:
            count, _, tokens, _ = piece.cache.layers[0].keys.shape
            for i, row, path in zip(piece.which, piece.rows, piece.paths, strict=True):
                start, at = tokens_before + row * tokens, which[i]
                places[at, :inside] = start + np.arange(inside)
                places[at, inside + longest - len(path) : inside + longest] = start + inside + path
            tokens_before += count * tokens
    caches = [piece.cache for piece in pieces]
    if len(stems) > 1:
        assert model.holds_shared_apart, "without a prefix held apart, a batch has one stem"
        cache = joined_cache(caches, places, longest, most_rows, [(stem.which, stem.state) for stem in stems])
    elif pieces:
        cache = roomy_cache(caches, places, inside + longest, most_rows, model.holds_shared_apart)
    else:
        cache = model.cache(stems[0].state, len(prompts))
    last = np.array([prompt.ids[-1] for prompt in prompts]), np.stack([own[-1] for own in windows])
    return Decoding(model.step, cache, mask, *last)


# Key: the length of the shared prefix, and the prompts without their last token.
KnownPrompts = dict[tuple[int, tuple[tuple[int, ...], ...]], list[Read]]


def _pieces(
    model: Network,
    prompts: Sequence[Prompt],
    windows: Windows,
    state: Prefix,
    prefix: int,
    known: KnownPrompts | None,
) -> Sequence[Read]:
    """Prefill the prompts, without the shared prefix and the last token, or return them from `known`."""
    key = prefix, tuple(prompt.ids[:-1] for prompt in prompts)
    if known is not None and key in known:
        return known[key]
    texts = [prompt.ids[prefix:-1] for prompt in prompts]
    pieces = list(read(model, texts, [own[:-1] for own in windows], state, prefix))
    if known is not None:  # a convolution's values differ from adapter to adapter; here they are zeros
        for piece in pieces:
            del piece.cache.layers[model.depth :]
    if known is not None and sum(piece.nbytes for some in (*known.values(), pieces) for piece in some) <= MOST_BYTES:
        known[key] = pieces
    return pieces


Texts = Sequence[Sequence[int]]
Windows = Sequence[NDArray[np.int64]]


def read(model: Network, texts: Texts, windows: Windows, state: Prefix, prefix: int) -> Iterator[Read]:
    """Prefill distinct texts, given without their shared prefix. Empty texts appear in no piece.

    Args:
        model: the backend.
        texts: token ids.
        windows: n-gram windows of each text's tokens, int64 [tokens, N + 1].
        state: keys and values of the shared prefix.
        prefix: number of tokens in the shared prefix.
    """
    nonempty = [i for i, text in enumerate(texts) if len(text)]
    if nonempty:
        reader = _as_trees if model.takes_any_layout(prefix + max(map(len, texts))) else _as_rows
        for piece in reader(model, [texts[i] for i in nonempty], [windows[i] for i in nonempty], state, prefix):
            yield replace(piece, which=[nonempty[i] for i in piece.which])


def _as_trees(model: Network, texts: Texts, windows: Windows, state: Prefix, prefix: int) -> Iterator[Read]:
    for few in _alike(trees(texts, windows, TREE_TOKENS), TREES if model.device == "cpu" else TREES_ACCELERATOR):
        rows = [row for row, tree in enumerate(few) for _ in tree.which]
        which = [i for tree in few for i in tree.which]
        paths = [np.array(path) for tree in few for path in tree.paths]
        yield Read(which, rows, paths, _read_trees(model, few, state, prefix))


def _alike(found: Sequence[Tree], most: int) -> Iterator[list[Tree]]:
    """Group up to `most` trees of similar size, because smaller trees are padded to the largest."""
    few: list[Tree] = []
    for tree in sorted(found, key=lambda tree: -len(tree.ids)):
        if few and (len(few) == most or len(tree.ids) < 0.75 * len(few[0].ids)):
            yield few
            few = []
        few.append(tree)
    yield few


def _read_trees(model: Network, few: Sequence[Tree], state: Prefix, prefix: int) -> Cache:
    """Prefill trees, one per row; returns the cache [trees, heads, tokens, size]."""
    shape = len(few), max(len(tree.ids) for tree in few)
    ids, positions = np.zeros((2, *shape), dtype=np.int64)
    windows = np.full((*shape, few[0].windows.shape[1]), ABSENT, dtype=np.int64)
    sees = np.zeros((*shape, prefix + shape[1]), dtype=np.int64)
    sees[..., :prefix] = 1
    for row, tree in enumerate(few):
        size = len(tree.ids)
        ids[row, :size], positions[row, :size], windows[row, :size] = tree.ids, prefix + tree.depths, tree.windows
        sees[row, :size, prefix : prefix + size] = tree.sees
    cache = model.cache(state, len(few))
    model.step(ids, sees, positions, windows, cache, keep=1, places=NOWHERE)
    return cache


def _as_rows(model: Network, texts: Texts, windows: Windows, state: Prefix, prefix: int) -> Iterator[Read]:
    for start in range(0, len(texts), ROWS):
        some = slice(start, start + ROWS)
        rows = padded(texts[some], windows[some], model.encoder.eos_id)
        count, width = rows.ids.shape
        _, cache = model.forward(state, rows, keep=1, places=NOWHERE)
        paths = [np.arange(width - own, width) for own in rows.mask.sum(axis=1)]
        yield Read(range(start, start + count), range(count), paths, cache)
