"""Decoding, the same for every backend: prompts in batches, token after token, finished rows dropped on the way.

A backend brings its model and its cache as a `Batch`; what is asked next, and of whom, is decided here. An answer is a
matter of its prompt and its seed: the draws of a seed are made once for the whole answer, whatever the batch around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_bench.prompts import Prompt, extend_windows, shared_prefix

COMPACT_AT = 0.9  # drop finished rows from a batch once this share or less is still decoding


class Batch(Protocol):
    """Rows being decoded. `windows`, int64 [rows, N], is the n-gram each row's last token sees."""

    windows: NDArray[np.int64]

    def choose(self, temperature: float, draws: NDArray[np.float64]) -> NDArray[np.int64]:
        """Next token of each row: the most probable one, or the inverse of the cumulative distribution at its draw.

        A draw of NaN stands for the most probable one.
        """
        ...

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop all other rows; `advance` comes next."""
        ...

    def advance(self, tokens: NDArray[np.int64], windows: NDArray[np.int64]) -> None:
        """Feed each row its new token."""
        ...


class Model(Protocol):
    """What a backend brings."""

    batch_size: int
    stop_ids: set[int]

    def prefix_state(self, prompt: Prompt, prefix: int) -> Any:
        """Keys and values of a prompt's first `prefix` tokens."""
        ...

    def begin(
        self, prompts: Sequence[Prompt], which: NDArray[np.int64], state: Any, prefix: int, max_new_tokens: int
    ) -> Batch:
        """Read distinct prompts, and make a row of each number in `which` (ascending, repeats allowed)."""
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
    prefix = shared_prefix(prompts) if len(prompts) > 1 else 0
    state = model.prefix_state(prompts[0], prefix)
    answers: list[list[int]] = [[] for _ in prompts]
    # By length, to pad little; then by text, so that the answers to one prompt share its prefill.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].ids), prompts[i].ids))
    for start in range(0, len(order), model.batch_size):
        indices = order[start : start + model.batch_size]
        asked = [prompts[i] for i in indices]
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(asked))}
        which = np.array([distinct[prompt] for prompt in asked])
        batch = model.begin(list(distinct), which, state, prefix, max_new_tokens)
        for row, tokens in enumerate(_decode(batch, model.stop_ids, temperature, draws[indices])):
            answers[indices[row]] = tokens
    return answers


def stop_ids(eos_id: int, configured: int | Sequence[int] | None) -> set[int]:
    """The tokens that end an answer: the tokenizer's, and what the model's own config names."""
    named = configured if isinstance(configured, (list, tuple)) else () if configured is None else (configured,)
    return {eos_id, *named}


def stream(model: Model, prompt: Prompt, max_new_tokens: int, ignore_eos: bool) -> Iterator[int]:
    """See `Backend.stream`."""
    batch = model.begin([prompt], np.array([0]), model.prefix_state(prompt, 0), 0, max_new_tokens)
    for step in range(max_new_tokens):
        chosen = batch.choose(1.0, np.array([np.nan]))
        if int(chosen[0]) in model.stop_ids and not ignore_eos:
            return
        yield int(chosen[0])
        if step < max_new_tokens - 1:
            batch.advance(chosen, extend_windows(batch.windows, chosen))


def _decode(batch: Batch, stop_ids: set[int], temperature: float, draws: NDArray[np.float64]) -> list[list[int]]:
    """Answer tokens of each row of one batch; `draws` is [rows, new tokens]."""
    count, max_new_tokens = draws.shape
    live = np.arange(count)  # which answer each row of the batch is
    tokens: list[list[int]] = [[] for _ in range(count)]
    done = np.zeros(count, dtype=bool)
    for step in range(max_new_tokens):
        chosen = batch.choose(temperature, draws[live, step])
        for row, (answer, token) in enumerate(zip(live, chosen, strict=True)):
            if not done[row]:
                done[row] = int(token) in stop_ids
                if not done[row]:
                    tokens[answer].append(int(token))
        if done.all() or step == max_new_tokens - 1:
            break
        windows = batch.windows
        if (~done).mean() <= COMPACT_AT:
            kept = np.flatnonzero(~done)
            batch.keep(kept)
            live, done, windows, chosen = live[kept], done[kept], windows[kept], chosen[kept]
        batch.advance(chosen, extend_windows(windows, chosen))
    return tokens
