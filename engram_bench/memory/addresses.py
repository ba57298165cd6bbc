"""Which table rows an n-gram memory reads. Uses numpy only, so that every backend reads the same rows.

A memory reads one span of the user's text (see `keys`) and hashes the n-grams there (see `hashing`). It stores only the
table rows that training n-grams hash to; all other rows keep their initial zeros.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_bench.errors import UsageError
from engram_bench.memory.hashing import ABSENT_ROW, Int64Array, NgramHasher, compress_vocabulary
from engram_bench.memory.keys import KeyIndex, key_id, key_name
from engram_bench.memory.routing import THRESHOLD
from engram_bench.prompts import ABSENT, Pair, Prompt, PromptEncoder, Span, ngram_windows
from engram_bench.variants.configs import EngramConfig

CONTROL_SEED = 0
KNOWN = ("keys", "facts")  # arrays
FACT_PHRASINGS = ("{key}", "What belongs to {key}?")

Spans = Callable[[Prompt], Span | None]  # the part of a prompt that a memory reads
Confidence = Callable[[Sequence[Prompt]], Sequence[float]]  # how sure a router is that prompts ask for stored things


def placed(config: EngramConfig, depth: int) -> EngramConfig:
    """The config with the numbers of its layers in a model of `depth` layers.

    Raises:
        UsageError: the model has no such layer.
    """
    try:
        return config.for_depth(depth)
    except ValueError as error:
        raise UsageError(str(error)) from error


def make_hasher(config: EngramConfig, compressed_ids: Int64Array, pad_id: int) -> NgramHasher:
    """Build the hash functions for a memory of this shape and a given vocabulary."""
    hasher = NgramHasher(
        compressed_ids=compressed_ids if config.compression else np.arange(len(compressed_ids)),
        vocab_size_per_ngram=[config.rows] * config.hashes,
        max_ngram_size=max(config.orders),
        heads_per_ngram=config.heads,
        layer_ids=config.layer_ids,
        pad_id=pad_id,
        seed=config.hash_seed,
        orders=config.orders,
        keyed=config.keyed,
    )
    if config.rows == 1:  # `NgramHasher` takes primes, and the smallest is 2
        hasher.primes = {layer: [[1] * config.heads for _ in range(config.hashes)] for layer in config.layer_ids}
    return hasher


def slots(hasher: NgramHasher, layer: int, row_ids: Int64Array | None, windows: NDArray[np.int64]) -> Int64Array:
    """Positions of the n-grams' rows in a stored table.

    The stored table is one row of zeros, followed by the rows `row_ids` (sorted). None stands for all possible rows.

    Returns:
        int64 [..., columns]: 1 + position in `row_ids`; 0 if the n-gram is absent or its row is not stored.
    """
    rows = hasher.rows(windows, layer)
    if row_ids is None:
        return rows - ABSENT_ROW  # an absent n-gram (-1) gets 0
    if not len(row_ids):
        return np.zeros_like(rows)
    at = np.minimum(row_ids.searchsorted(rows), len(row_ids) - 1)
    return np.where(row_ids[at] == rows, at + 1, 0)


def touched_rows(hasher: NgramHasher, layer: int, windows: Sequence[NDArray[np.int64]]) -> Int64Array:
    """The rows that the n-grams of `windows` (each [tokens, N + 1]) hash to: int64, sorted, unique."""
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *(hasher.rows(w, layer).ravel() for w in windows)]))
    touched: Int64Array = rows[rows != ABSENT_ROW]
    return touched


def fact_pairs(key: str, value: str, encoder: PromptEncoder) -> list[Pair]:
    """Training examples for one fact: its key alone, and within a sentence, where it may be tokenized differently."""
    answer = encoder.answer(value)
    starts = [(text, text.index("{key}")) for text in FACT_PHRASINGS]
    return [(encoder.prompt(text.format(key=key), (at, at + len(key))), answer) for text, at in starts]


def key_tokens(key: str, encoder: PromptEncoder) -> tuple[int, ...]:
    """The token ids that stand for a key, however a text writes it: those of the key by itself."""
    return encoder.answer(key)[:-1]


def check_new(key: str, config: EngramConfig, keys: KeyIndex, facts: Mapping[str, str]) -> None:
    """Check whether a memory with these keys and written facts can take a fact under `key`.

    Raises:
        UsageError: the key is blank or already known; or the memory looks for no key, so that other texts would
            read the same rows.
    """
    if not config.keyed:
        why = "takes no facts, because every text would read them; use one with span: key"
        raise UsageError(f"a memory with span: {config.span} {why}")
    if not key_name(key):  # also of marks alone, such as an accent
        raise UsageError("the key is blank; give a key that a prompt can contain")
    if key_name(key) in keys:
        why = "written earlier" if key in facts else "up to case, accents, width and white space"
        raise UsageError(f"{key!r} is already known ({why}); forget it first, or choose another key")


def check_value(value: str) -> None:
    """Raise a UsageError if nothing would be stored."""
    if not value.strip():
        raise UsageError("the value is blank; give the answer to store")


def check_apart(keys: Iterable[str]) -> None:
    """Raise a UsageError if a memory could not tell two new keys apart."""
    named: dict[str, str] = {}
    for key in keys:
        if (other := named.setdefault(key_name(key), key)) != key:
            raise UsageError(f"{key!r} and {other!r} are one key up to case, accents, width and white space; keep one")


def check_written(key: str, facts: Mapping[str, str]) -> None:
    """Raise a UsageError if no fact was written under this key."""
    if key not in facts:
        listed = ", ".join(map(repr, facts)) or "none"
        raise UsageError(f"{key!r} was not written into this memory; written keys: {listed}")


def known(arrays: Mapping[str, NDArray[Any]]) -> tuple[KeyIndex, dict[str, str]]:
    """The keys and the written facts in the arrays of `Addresses.to_arrays`; a missing array counts as empty."""
    keys, facts = (arrays.get(name, np.empty(0, np.uint8)) for name in KNOWN)
    return KeyIndex.from_array(keys), json.loads(facts.tobytes() or b"{}")


def _vocabulary(compressed_ids: Int64Array) -> NDArray[np.uint8]:
    """SHA-256 of the compressed vocabulary; it identifies the vocabulary that a memory was trained with."""
    return np.frombuffer(hashlib.sha256(compressed_ids.astype("<i8").tobytes()).digest(), np.uint8)


def damaged(table: NDArray[Any], how: str) -> NDArray[Any]:
    """Return the table that a control reads instead of the trained one, [rows, width].

    Args:
        table: one row of zeros, then the trained rows.
        how: "shuffle" permutes the trained rows, in the same way every time; "zero" sets all rows to zero.
    """
    if how == "zero":
        return np.zeros_like(table)
    return np.concatenate([table[:1], table[1:][np.random.default_rng(CONTROL_SEED).permutation(len(table) - 1)]])


@dataclass(frozen=True)
class Addresses:
    """The hash functions of a memory, its known keys, and the table rows that each layer stores (sorted).

    `mark` is the token id that marks the start of a span, see `ngram_windows`. `vocabulary` identifies the tokenizer
    of a memory that is saved. `facts` are the facts written after training, by key. Their rows are in the last layer's
    table; `written` lists those that training did not use.
    """

    config: EngramConfig
    hasher: NgramHasher
    mark: int
    keys: KeyIndex
    rows: dict[int, Int64Array]
    vocabulary: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    facts: dict[str, str] = field(default_factory=dict)
    written: Int64Array = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def last(self) -> int:
        """The last layer that has a memory."""
        return max(self.config.layer_ids)

    @classmethod
    def of_training(cls, config: EngramConfig, encoder: PromptEncoder, pairs: Sequence[Pair]) -> Addresses:
        """The addresses for training: all keys of these prompts, and all rows that prompts and answers read.

        Raises:
            UsageError: a key is part of a longer word, where `span` cannot find it.
        """
        compressed = compress_vocabulary(encoder.tokenizer)
        hasher = make_hasher(config, compressed, encoder.eos_id)
        keys = {p: p.text[slice(*p.key)] for p, _ in pairs if p.key}
        known = {key_name(key): key_tokens(key, encoder) for key in dict.fromkeys(keys.values())}
        blank = cls(config, hasher, encoder.eos_id, KeyIndex(known), {}, _vocabulary(compressed))
        for prompt, key in keys.items():
            if blank.span(prompt) is None:
                where = f"{key!r:.60} is part of a longer word in {prompt.text!r:.120}"
                raise UsageError(f"{where} and cannot be found there; put spaces around it")
        return replace(blank, rows=blank.touched(pairs))

    @classmethod
    def from_arrays(cls, config: EngramConfig, encoder: PromptEncoder, arrays: dict[str, NDArray[Any]]) -> Addresses:
        """Rebuild from the arrays of `to_arrays`, removing them from `arrays`; a missing array counts as empty.

        Raises:
            UsageError: the arrays belong to a model with another vocabulary.
        """
        compressed = compress_vocabulary(encoder.tokenizer)
        hasher, vocabulary = make_hasher(config, compressed, encoder.eos_id), _vocabulary(compressed)
        if not np.array_equal(arrays.pop("vocabulary", np.empty(0)), vocabulary):
            raise UsageError(
                "this adapter belongs to a model with another vocabulary; load it with the model it was trained on"
            )
        keys, facts = known(arrays)
        for name in KNOWN:
            arrays.pop(name, None)
        rows = {layer: arrays.pop(f"{layer}.row_ids", np.empty(0, np.int64)) for layer in config.layer_ids}
        written = arrays.pop("written_ids", np.empty(0, np.int64))
        return cls(config, hasher, encoder.eos_id, keys, rows, vocabulary, facts, written)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {"keys": self.keys.to_array(), "vocabulary": self.vocabulary}
        arrays |= {f"{layer}.row_ids": rows for layer, rows in self.rows.items()}
        if self.facts:
            arrays["facts"] = np.frombuffer(json.dumps(self.facts).encode(), np.uint8)
            arrays["written_ids"] = self.written
        return arrays

    def touched(self, pairs: Sequence[Pair]) -> dict[int, Int64Array]:
        """Rows that the n-grams of prompts and their answers hash to, by layer."""
        size, on_text = max(self.config.orders), self.config.acts_on_text
        windows = [ngram_windows(p, a[:-1], size, self.span(p), self.mark, on_text=on_text) for p, a in pairs]
        return {layer: touched_rows(self.hasher, layer, windows) for layer in self.config.layer_ids}

    def with_fact(self, key: str, value: str, encoder: PromptEncoder) -> Addresses:
        """Return addresses that also know this fact.

        Raises:
            UsageError: see `check_new` and `check_value`.
        """
        check_new(key, self.config, self.keys, self.facts)
        check_value(value)
        name = key_name(key)
        pairs, keys = fact_pairs(key, value, encoder), self.keys.with_key(name, key_tokens(key, encoder))
        more = replace(self, keys=keys, facts={**self.facts, key: value})
        new = np.setdiff1d(more.touched(pairs)[self.last], self.rows[self.last])
        rows = {**self.rows, self.last: np.union1d(self.rows[self.last], new)}
        return replace(more, rows=rows, written=np.union1d(self.written, new))

    def without_fact(self, key: str, encoder: PromptEncoder) -> Addresses:
        """Return addresses without this written fact, and without the rows that only this fact reads.

        Raises:
            UsageError: see `check_written`.
        """
        check_written(key, self.facts)
        pairs = fact_pairs(key, self.facts[key], encoder)
        others = {name: value for name, value in self.facts.items() if name != key}
        rest = [pair for fact in others.items() for pair in fact_pairs(*fact, encoder)]
        own, needed = (self.touched(some)[self.last] for some in (pairs, rest))
        gone = np.setdiff1d(np.intersect1d(own, self.written), needed)
        rows = {**self.rows, self.last: np.setdiff1d(self.rows[self.last], gone)}
        keys = self.keys.without([key_name(key)])
        return replace(self, keys=keys, facts=others, rows=rows, written=np.setdiff1d(self.written, gone))

    def span(self, prompt: Prompt) -> Span | None:
        """The tokens that the memory reads; see `EngramConfig.span`."""
        if self.config.span == "all":
            return Span(0, len(prompt.ids), prompt.ids, whole=True)
        if self.config.span == "text":
            content = prompt.content_ids()
            return Span(0, len(content), tuple(content.tolist()))
        found = self.keys.find(prompt.text)
        if found is None:
            return None
        return Span(*prompt.tokens_at(found.start, found.end), self.keys.tokens[found.key], key_id(found.key))

    def found(self, prompt: Prompt) -> list[list[int]]:
        """N-grams whose rows in the last layer help predict the answer's first token: token ids, shortest first.

        The whole key comes last, if its rows do.
        """
        span = self.span(prompt)
        window = ngram_windows(prompt, (), max(self.config.orders), span, self.mark, on_text=False)[-1]
        hit = slots(self.hasher, self.last, self.rows[self.last], window) > 0
        grams = [window[:n][::-1].tolist() for n in self.config.orders]
        if self.config.keyed:
            grams.append(list(span.tokens) if span else [])
        return [gram for gram, heads in zip(grams, hit.reshape(len(grams), -1), strict=True) if heads.all()]

    def holds(self, window: NDArray[np.int64]) -> bool:
        """Whether the last layer stores all n-grams of a window, int64 [N + 1], that are not longer than what is there.

        A memory that looks for keys must store the one of the whole key, too.
        """
        hit = slots(self.hasher, self.last, self.rows[self.last], window) > 0
        there = [bool(window[n - 1] != ABSENT) for n in self.config.orders]
        fitting = np.array([*there, *[True] * self.config.keyed])
        return any(there) and bool(hit.reshape(len(fitting), -1)[fitting].all())

    def routed_span(self, confidence: Confidence) -> Spans:
        """`span`, but None if the router finds no request. It is asked only about prompts that hold a known key."""

        def span(prompt: Prompt) -> Span | None:
            found = self.span(prompt)
            return found if found is not None and confidence([prompt])[0] >= THRESHOLD else None

        return span
