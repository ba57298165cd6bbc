"""Map n-grams to table rows: tokenizer compression, and multiplicative-XOR hashing into prime-sized tables.

The algorithm is the one published with Engram (arXiv:2601.07372, section 2.2). It uses numpy only and all backends
share it, so an adapter trained in one reads the same rows in another. Tests compare it with golden vectors.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
LAYER_SEED_STRIDE = 10007
ABSENT_ROW = -1


def normalize(text: str) -> str:
    """Fold case, accents and width, and collapse white space (arXiv:2601.07372, tokenizer compression)."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    text = "".join(ch for ch in text if not unicodedata.combining(ch)).lower()
    text = re.sub(r"[ \t\r\n]+", " ", text)
    return " " if text == " " else text.strip()


def compress_vocabulary(tokenizer: Any) -> Int64Array:
    """Map every token id to a compressed id; tokens equal up to case, accents and spaces share one.

    Args:
        tokenizer: a transformers tokenizer (``len``, ``decode``, ``convert_ids_to_tokens``).

    Returns:
        int64 [vocabulary size]: compressed ids, numbered in order of first appearance.
    """
    seen: dict[str, int] = {}
    compressed = np.empty(len(tokenizer), dtype=np.int64)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    for token_id, token in enumerate(tokens):
        text = tokenizer.decode([token_id], skip_special_tokens=False)
        # Every fragment of a UTF-8 character decodes to U+FFFD; its raw token distinguishes it.
        key = token if "\ufffd" in text else (normalize(text) or text)
        compressed[token_id] = seen.setdefault(key, len(seen))
    return compressed


def _is_prime(n: int) -> bool:
    if n < 2 or n % 2 == 0:
        return n == 2
    return all(n % d for d in range(3, int(n**0.5) + 1, 2))


def _next_unused_prime(above: int, used: set[int]) -> int:
    candidate = above + 1
    while candidate in used or not _is_prime(candidate):
        candidate += 1
    used.add(candidate)
    return candidate


class _Tables(NamedTuple):
    """Number of rows of each table in a layer, and number of rows in all tables before it: [orders * heads]."""

    sizes: Int64Array
    offsets: Int64Array


class NgramHasher:
    """Hashes the n-grams that end at each token to table rows.

    Args:
        compressed_ids: int64 [vocabulary size] from `compress_vocabulary`.
        vocab_size_per_ngram: minimum table size per head, one number per order.
        max_ngram_size: N, the longest n-gram.
        heads_per_ngram: independent hash tables per order.
        layer_ids: the layers that carry a memory; each gets its own multipliers and primes.
        pad_id: token id that pads the text on the left, before compression.
        seed: drives the multipliers of all layers.
        orders: the n-gram lengths, ascending; all of 2..N unless given.
        keyed: beyond the paper: also hash the longest n-gram together with the whole key, like one more order. Missing
            tokens of the n-gram count as padding here.

    Attributes:
        multipliers: layer -> int64 [N], odd; ``multipliers[l][0]`` applies to the current token.
        primes: layer -> table sizes, one list per order with one prime per head.

    Raises:
        ValueError: the orders do not fit N or the number of table sizes.
    """

    def __init__(
        self,
        *,
        compressed_ids: Int64Array,
        vocab_size_per_ngram: Sequence[int],
        max_ngram_size: int,
        heads_per_ngram: int,
        layer_ids: Sequence[int],
        pad_id: int,
        seed: int,
        orders: Sequence[int] | None = None,
        keyed: bool = False,
    ) -> None:
        self.orders = list(range(2, max_ngram_size + 1)) if orders is None else list(orders)
        if not self.orders or sorted(set(self.orders)) != self.orders or not self.orders[0] >= 1:
            raise ValueError(f"orders must ascend from 1 or more, got {self.orders}")
        if self.orders[-1] != max_ngram_size:
            raise ValueError(f"the longest order is {self.orders[-1]} but max_ngram_size is {max_ngram_size}")
        if len(vocab_size_per_ngram) != len(self.orders) + keyed:
            count = f"{len(vocab_size_per_ngram)} table sizes for {len(self.orders)} orders {self.orders}"
            raise ValueError(count + " and the whole key" * keyed)
        self.keyed = keyed
        self.compressed_ids = np.asarray(compressed_ids, dtype=np.int64)
        self.max_ngram_size = max_ngram_size
        self.heads_per_ngram = heads_per_ngram
        self.layer_ids = list(layer_ids)
        self.pad = int(self.compressed_ids[pad_id])

        # Bounded so that token * multiplier never overflows int64: the products stay exact on every backend.
        vocabulary = int(self.compressed_ids.max()) + 1
        bound = max(1, (np.iinfo(np.int64).max // vocabulary) // 2)
        used: set[int] = set()
        self.multipliers: dict[int, Int64Array] = {}
        self.primes: dict[int, list[list[int]]] = {}
        for layer in self.layer_ids:
            rng = np.random.default_rng(seed + LAYER_SEED_STRIDE * layer)
            self.multipliers[layer] = rng.integers(0, bound, size=max_ngram_size, dtype=np.int64) * 2 + 1
            self.primes[layer] = []
            for size in vocab_size_per_ngram:
                heads: list[int] = []
                for _ in range(heads_per_ngram):
                    heads.append(_next_unused_prime(heads[-1] if heads else size - 1, used))
                self.primes[layer].append(heads)

    def indices(self, input_ids: NDArray[Any], layer_id: int) -> Int64Array:
        """Table rows of the n-grams at each token, each counted from the start of its own table.

        Args:
            input_ids: [batch, tokens] token ids.
            layer_id: one of `layer_ids`.

        Returns:
            int64 [batch, tokens, orders * heads], by order then head.

        Raises:
            ValueError: a token id is negative.
        """
        ids = np.asarray(input_ids)
        if (ids < 0).any():
            raise ValueError(f"input_ids has {ids.min()}; token ids are 0 or more (-100 is for labels only)")
        tokens = self.compressed_ids[ids]
        left = np.full((len(tokens), self.max_ngram_size - 1), self.pad)
        padded = np.concatenate([left, tokens], axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.max_ngram_size, axis=1)[..., ::-1]
        return self._hash(windows, layer_id)

    def rows(self, windows: NDArray[np.int64], layer_id: int) -> Int64Array:
        """Like `indices`, but takes n-gram windows and counts rows through all tables of the layer.

        Args:
            windows: int64 [..., N + 1]: token ids, current token first, and the key (see `prompts.ngram_windows`);
                negative for missing tokens and for no key.
            layer_id: one of `layer_ids`.

        Returns:
            int64 [..., orders * heads], with `keyed` [..., (orders + 1) * heads]; `ABSENT_ROW` if the n-gram includes
            missing tokens, or if there is no key. It gets no row, because all short contexts would share this row.
        """
        grams, key = windows[..., :-1], windows[..., -1:]
        present = grams >= 0
        tokens = self.compressed_ids.take(grams, mode="clip")  # a model can have more token ids than its tokenizer
        rows = self._hash(np.where(present, tokens, self.pad), layer_id, key if self.keyed else None)
        there = present[..., self._first_tokens]
        if self.keyed:
            there = np.concatenate([there, np.repeat(key >= 0, self.heads_per_ngram, axis=-1)], axis=-1)
        return np.where(there, rows + self._tables[layer_id].offsets, ABSENT_ROW)

    def _hash(self, grams: Int64Array, layer_id: int, key: Int64Array | None = None) -> Int64Array:
        """n-grams [..., N] of compressed ids -> rows [..., orders * heads], each within its own table.

        With `key` [..., 1], the columns of the whole key follow.
        """
        mixed = np.bitwise_xor.accumulate(grams * self.multipliers[layer_id], axis=-1)
        mixes = mixed[..., self._first_tokens]
        if key is not None:
            whole = np.repeat(mixed[..., -1:] ^ key, self.heads_per_ngram, axis=-1)
            mixes = np.concatenate([mixes, whole], axis=-1)
        return mixes % self._tables[layer_id].sizes

    # Computed only once, because every decoding step needs it.

    @cached_property
    def _first_tokens(self) -> Int64Array:
        """Position in a window of each n-gram's first token: [orders * heads]."""
        return np.repeat(np.array(self.orders) - 1, self.heads_per_ngram)

    @cached_property
    def _tables(self) -> dict[int, _Tables]:
        sizes = {layer: np.array(heads).ravel() for layer, heads in self.primes.items()}
        return {layer: _Tables(own, np.cumsum([0, *own])[:-1]) for layer, own in sizes.items()}
