"""Reading prompts before they are answered: as trees where a model's positions allow it, elsewhere as padded rows."""

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
from engram_bench.prompts import Prompt

if TYPE_CHECKING:
    from engram_bench.backends.torch import Prefix, TorchModel

TREE_TOKENS = 256  # more make wider products, but ever more attention among tokens that do not see each other
ROWS = 64


@dataclass
class Read:
    """Prompts that were read in one forward.

    Attributes:
        which: the numbers of these prompts.
        logits: [ends, vocabulary], at last tokens of prompts.
        ends: int64 [prompts], which of these is each prompt's.
        cache: keys and values [rows, heads, tokens, size] a layer.
        places: int64 [tokens] of each prompt: where they stand in those, rows and tokens counted through.
    """

    which: Sequence[int]
    logits: Tensor
    ends: NDArray[np.int64]
    cache: Cache
    places: list[NDArray[np.int64]]


def begin(
    model: TorchModel,
    prompts: Sequence[Prompt],
    which: NDArray[np.int64],
    state: Prefix,
    prefix: int,
    max_new_tokens: int,
) -> Decoding:
    """See `decoding.Model.begin`."""
    windows = [model.windows(prompt, ())[prefix:] for prompt in prompts]
    reader = _as_trees if _branches(model, max(len(prompt.ids) for prompt in prompts)) else _as_rows
    inside = 0 if model.holds_shared_apart else prefix
    longest = max(map(len, windows))
    places = np.zeros((len(prompts), inside + longest + max_new_tokens), dtype=np.int64)  # padding and room: any
    mask = np.ones((len(prompts), prefix + longest), dtype=np.int64)
    ends = np.zeros(len(prompts), dtype=np.int64)
    logits: list[Tensor] = []
    caches: list[Cache] = []
    ends_before = tokens_before = 0
    for piece in reader(model, prompts, windows, state, prefix):
        for i, end, at in zip(piece.which, piece.ends, piece.places, strict=True):
            own = inside + longest - len(windows[i])
            places[i, :inside] = tokens_before + at[:inside]
            places[i, own : inside + longest] = tokens_before + at[inside:]
            mask[i, prefix : prefix + longest - len(windows[i])] = 0
            ends[i] = ends_before + end
        logits.append(piece.logits)
        caches.append(piece.cache)
        rows, _, tokens, _ = piece.cache.layers[0].keys.shape
        ends_before, tokens_before = ends_before + len(piece.logits), tokens_before + rows * tokens
    last = torch.cat(logits)[torch.from_numpy(ends[which]).to(model.device)]
    cache = roomy_cache(caches, places[which], inside + longest, whole=model.holds_shared_apart)
    return Decoding(model.step, last, cache, mask[which], np.stack([windows[i][-1] for i in which]))


def _branches(model: TorchModel, longest: int) -> bool:
    """Whether tokens may stand anywhere in a row: positions are given, by rotation, and no layer has its own mask."""
    config = model.model.config
    window = getattr(config, "sliding_window", None)
    return hasattr(config, "rope_parameters") and (window is None or longest <= window)


def _as_trees(
    model: TorchModel, prompts: Sequence[Prompt], windows: Sequence[NDArray[np.int64]], state: Prefix, prefix: int
) -> Iterator[Read]:
    inside = 0 if model.holds_shared_apart else prefix
    for tree in trees([prompt.ids[prefix:] for prompt in prompts], windows, TREE_TOKENS):
        last = np.array([path[-1] for path in tree.paths])
        ends, rank = np.unique(last, return_inverse=True)  # two prompts end together where only their keys differ
        logits, cache = _read_tree(model, tree, ends, state, prefix)
        places = [np.concatenate([np.arange(inside), inside + np.array(path)]) for path in tree.paths]
        yield Read(tree.which, logits, rank, cache, places)


def _read_tree(
    model: TorchModel, tree: Tree, ends: NDArray[np.int64], state: Prefix, prefix: int
) -> tuple[Tensor, Cache]:
    """Logits [ends, vocabulary], and the cache [1, heads, tokens, size]."""
    count = len(tree.ids)
    sees = np.concatenate([np.ones((count, prefix), dtype=bool), tree.sees], axis=1).astype(np.int64)
    wanted = torch.zeros(1, count, dtype=torch.bool)
    wanted[0, ends] = True
    cache = model.cache(state, 1)
    at = prefix + tree.depths[None]
    with model.wanting(wanted.to(model.device)):
        return model.step(tree.ids[None], sees[None], at, tree.windows[None], cache, keep=0), cache


def _as_rows(
    model: TorchModel, prompts: Sequence[Prompt], windows: Sequence[NDArray[np.int64]], state: Prefix, prefix: int
) -> Iterator[Read]:
    inside = 0 if model.holds_shared_apart else prefix
    for start in range(0, len(prompts), ROWS):
        rows = model.rows([(prompt, ()) for prompt in prompts[start : start + ROWS]], prefix)
        logits, cache = model.forward(state, rows, keep=1)
        width = inside + rows.ids.shape[1]
        places = [
            row * width + np.concatenate([np.arange(inside), np.arange(width - len(own), width)])
            for row, own in enumerate(windows[start : start + ROWS])
        ]
        which = range(start, start + len(logits))
        yield Read(which, logits[:, -1], np.arange(len(logits)), cache, places)
