"""Which rows of its tables an n-gram memory reads: numpy only, so that every backend reads the same ones.

A memory looks at one span of the user's text (see `keys`), hashes the n-grams there (see `hashing`), and holds no more
of its tables than the rows some training n-gram hashes to; all others are the zeros they started as.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_bench.memory import routing
from engram_bench.memory.hashing import ABSENT_ROW, Int64Array, NgramHasher, compress_vocabulary
from engram_bench.memory.keys import KeyIndex
from engram_bench.prompts import Pair, Prompt, PromptEncoder, ngram_windows
from engram_bench.variants import EngramConfig

CONTROL_SEED = 0

Spans = Callable[[Prompt], tuple[int, int] | None]  # which content tokens of a prompt a memory looks at


def make_hasher(config: EngramConfig, compressed_ids: Int64Array, pad_id: int) -> NgramHasher:
    """The hash functions a memory of this shape asks for, over a given vocabulary."""
    return NgramHasher(
        compressed_ids=compressed_ids,
        vocab_size_per_ngram=[config.rows] * len(config.orders),
        max_ngram_size=max(config.orders),
        heads_per_ngram=config.heads,
        layer_ids=config.layers,
        pad_id=pad_id,
        seed=config.hash_seed,
        orders=config.orders,
    )


def slots(hasher: NgramHasher, layer: int, row_ids: Int64Array, windows: NDArray[np.int64]) -> Int64Array:
    """Where a table of the rows `row_ids` alone (sorted) keeps each n-gram's row.

    Returns:
        int64 [..., columns]: 1 + position in `row_ids`, 0 where the n-gram is absent or its row never trained.
    """
    rows = hasher.rows(windows, layer)
    if not len(row_ids):
        return np.zeros_like(rows)
    at = np.searchsorted(row_ids, rows).clip(max=len(row_ids) - 1)
    return np.where(row_ids[at] == rows, at + 1, 0)


def touched_rows(hasher: NgramHasher, layer: int, windows: Sequence[NDArray[np.int64]]) -> Int64Array:
    """The rows that the n-grams of `windows` (each [tokens, N]) hash to: int64, sorted, unique."""
    rows = np.unique(np.concatenate([hasher.rows(w, layer).ravel() for w in windows]))
    touched: Int64Array = rows[rows != ABSENT_ROW]
    return touched


def shuffled(rows: int) -> Int64Array:
    """An order of that many rows, always the same one: what the shuffled control reads instead of its own."""
    return np.random.default_rng(CONTROL_SEED).permutation(rows)


@dataclass(frozen=True)
class Addresses:
    """The hash functions of a memory, the keys it was trained on, and for each layer the rows it holds (sorted)."""

    config: EngramConfig
    hasher: NgramHasher
    keys: KeyIndex
    rows: dict[int, Int64Array]

    @classmethod
    def of_training(cls, config: EngramConfig, encoder: PromptEncoder, pairs: Sequence[Pair]) -> Addresses:
        """Those that prompts with known keys, and their answers, will need."""
        hasher = make_hasher(config, compress_vocabulary(encoder.tokenizer), encoder.eos_id)
        size = max(config.orders)
        found = (hasher.compressed_ids[p.content_ids()[slice(*p.key)]].tolist() for p, _ in pairs if p.key)
        blank = cls(config, hasher, KeyIndex(found, size), {})
        windows = [ngram_windows(p, a[:-1], size, blank.span(p), encoder.eos_id) for p, a in pairs]
        rows = {layer: touched_rows(hasher, layer, windows) for layer in config.layers}
        return cls(config, hasher, blank.keys, rows)

    @classmethod
    def from_arrays(cls, config: EngramConfig, encoder: PromptEncoder, arrays: dict[str, NDArray[Any]]) -> Addresses:
        """From what `to_arrays` gave, taken out of `arrays`; a missing array stands for an empty one."""
        hasher = make_hasher(config, compress_vocabulary(encoder.tokenizer), encoder.eos_id)
        keys = KeyIndex.from_array(arrays.pop("keys", np.empty((0, max(config.orders)), np.int64)))
        rows = {layer: arrays.pop(f"{layer}.row_ids", np.empty(0, np.int64)) for layer in config.layers}
        return cls(config, hasher, keys, rows)

    def to_arrays(self) -> dict[str, NDArray[np.int64]]:
        return {"keys": self.keys.to_array(), **{f"{layer}.row_ids": rows for layer, rows in self.rows.items()}}

    def span(self, prompt: Prompt) -> tuple[int, int] | None:
        """The content tokens the memory looks at; see `EngramConfig.span`."""
        content = prompt.content_ids()
        if self.config.span == "text":
            return (0, len(content))
        return self.keys.find(self.hasher.compressed_ids[content].tolist(), prompt.joined)

    def found(self, prompt: Prompt, mark: int) -> list[list[int]]:
        """Token ids of the n-grams, shortest first, whose rows the first answer token finds in every layer's tables.

        `mark` stands for the start of a span, as in `ngram_windows`.
        """
        window = ngram_windows(prompt, (), max(self.config.orders), self.span(prompt), mark)[-1]
        hit = np.stack([slots(self.hasher, layer, rows, window) > 0 for layer, rows in self.rows.items()]).all(axis=0)
        by_order = hit.reshape(len(self.config.orders), -1)
        return [window[:n][::-1].tolist() for n, heads in zip(self.config.orders, by_order, strict=True) if heads.all()]

    def routed_span(self, encoder: PromptEncoder) -> Spans:
        """`span`, but nothing where the rules of `routing` hear no question in the user's text."""

        def span(prompt: Prompt) -> tuple[int, int] | None:
            asked = routing.confidence(encoder.decode(prompt.content_ids().tolist())) >= routing.THRESHOLD
            return self.span(prompt) if asked else None

        return span
