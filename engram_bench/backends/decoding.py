"""Decoding, the same for every backend: prompts in batches, token after token, rows dropped that have no answer left.

A backend brings its model and its cache as a `Batch`; what is asked next, and of whom, is decided here. An answer is a
matter of its prompt and its seed: the draws of a seed are made once for the whole answer, whatever the batch around it.
Answers to one prompt are one row until they part, so ten draws from a model that is sure cost little more than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_bench.prompts import Prompt, extend_windows

COMPACT_AT = 0.9  # drop rows that no answer needs any more once this share or less is still needed


class Batch(Protocol):
    """Distinct texts being decoded. `windows`, int64 [rows, N], is the n-gram each row's last token sees."""

    windows: NDArray[np.int64]

    def choose(self, rows: NDArray[np.int64], temperature: float, draws: NDArray[np.float64]) -> NDArray[np.int64]:
        """The next token of an answer [answers] in each of these `rows` [answers], named as often as wanted.

        It is the inverse of the row's cumulative distribution at the answer's draw; at NaN, the most probable token.
        """
        ...

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Hold these rows from now on, in this order, a row as often as it is named; `advance` comes next."""
        ...

    def advance(self, tokens: NDArray[np.int64], windows: NDArray[np.int64]) -> None:
        """Feed each row its new token."""
        ...


class Model(Protocol):
    """What a backend brings."""

    batch_size: int
    stop_ids: set[int]

    def shared(self, prompts: Sequence[Prompt], longest: int) -> int:
        """How many leading tokens of prompts are computed once for all, where no text has more than `longest`."""
        ...

    def prefix_state(self, prompt: Prompt, prefix: int) -> Any:
        """Keys and values of a prompt's first `prefix` tokens."""
        ...

    def begin(self, prompts: Sequence[Prompt], most_rows: int, state: Any, prefix: int, max_new_tokens: int) -> Batch:
        """Read distinct prompts, a row each; there will never be more than `most_rows`."""
        ...


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    seeds: Sequence[int | None] | None,
    temperature: float,
) -> list[list[int]]:
    """See `Backend.generate`."""
    if not prompts:
        return []
    # Drawn once for the whole answer, so that a sample is its seed's alone; NaN stands for a greedy row.
    draws = np.full((len(prompts), max_new_tokens), np.nan)
    for row, seed in enumerate(seeds or ()):
        if seed is not None:
            draws[row] = np.random.default_rng(seed).random(max_new_tokens)
    # One prompt alone shares nothing, and is read at once.
    longest = max(len(prompt.ids) for prompt in prompts) + max_new_tokens
    prefix = model.shared(prompts, longest) if len(prompts) > 1 else 0
    state = model.prefix_state(prompts[0], prefix)
    answers: list[list[int]] = [[] for _ in prompts]
    # By length, to pad little; then by text, so that the answers to one prompt share its prefill.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].ids), prompts[i].ids))
    for start in range(0, len(order), model.batch_size):
        indices = order[start : start + model.batch_size]
        asked = [prompts[i] for i in indices]
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(asked))}
        rows = np.array([distinct[prompt] for prompt in asked])
        batch = model.begin(list(distinct), len(asked), state, prefix, max_new_tokens)
        for i, tokens in zip(indices, _decode(batch, rows, model.stop_ids, temperature, draws[indices]), strict=True):
            answers[i] = tokens
    return answers


def stop_ids(eos_id: int, configured: int | Sequence[int] | None) -> set[int]:
    """The tokens that end an answer: the tokenizer's, and what the model's own config names."""
    named = configured if isinstance(configured, (list, tuple)) else () if configured is None else (configured,)
    return {eos_id, *named}


def stream(model: Model, prompt: Prompt, max_new_tokens: int, ignore_eos: bool) -> Iterator[int]:
    """See `Backend.stream`."""
    batch = model.begin([prompt], 1, model.prefix_state(prompt, 0), 0, max_new_tokens)
    for step in range(max_new_tokens):
        chosen = batch.choose(np.array([0]), 1.0, np.array([np.nan]))
        if int(chosen[0]) in model.stop_ids and not ignore_eos:
            return
        yield int(chosen[0])
        if step < max_new_tokens - 1:
            batch.advance(chosen, extend_windows(batch.windows, chosen))


def _decode(
    batch: Batch, rows: NDArray[np.int64], stop_ids: set[int], temperature: float, draws: NDArray[np.float64]
) -> list[list[int]]:
    """The tokens of each answer to the prompts of a batch.

    Args:
        batch: a row for each prompt.
        rows: the row each answer begins in, [answers].
        stop_ids: tokens that end an answer.
        temperature: of the draws.
        draws: [answers, new tokens].
    """
    count, max_new_tokens = draws.shape
    live = np.arange(count)  # the answers that go on
    tokens: list[list[int]] = [[] for _ in range(count)]
    for step in range(max_new_tokens):
        chosen = batch.choose(rows, temperature, draws[live, step])
        goes_on = ~np.isin(chosen, list(stop_ids))
        live, rows, chosen = live[goes_on], rows[goes_on], chosen[goes_on]
        for answer, token in zip(live.tolist(), chosen.tolist(), strict=True):
            tokens[answer].append(token)
        if not len(live) or step == max_new_tokens - 1:
            break
        sources, fed, rows = _parted(rows, chosen, len(batch.windows))
        windows = extend_windows(batch.windows[sources], fed)
        if not np.array_equal(sources, np.arange(len(batch.windows))):
            batch.keep(sources)
        batch.advance(fed, windows)
    return tokens


def _parted(
    rows: NDArray[np.int64], tokens: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows for answers that go on with these tokens: one for all that were in one row and say the same.

    A row stays where it is, and those that part from it come after all that there were, so that nothing but these has
    to be copied. Rows without an answer left are fed any token, until they are so many that it pays to move the others
    together.

    Args:
        rows: the row each answer is in, [answers].
        tokens: what it says next, [answers].
        count: how many rows there are.

    Returns:
        For each new row the one it continues, [new rows], and its token, [new rows]; and the new row of each answer.
    """
    idle = np.setdiff1d(np.arange(count), rows)
    if count - len(idle) <= COMPACT_AT * count:
        idle = idle[:0]
    said = np.stack([np.concatenate([rows, idle]), np.concatenate([tokens, np.zeros_like(idle)])])
    (sources, fed), found = np.unique(said, axis=1, return_inverse=True)  # in the order of their rows
    parts = np.concatenate([[False], sources[1:] == sources[:-1]])
    order = np.argsort(parts, kind="stable")
    place = np.argsort(order)
    return sources[order], fed[order], place[found.reshape(-1)[: len(rows)]]
