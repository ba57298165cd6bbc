"""The decoding loop of all backends: batch the prompts, extend answers token by token, drop finished rows.

A backend provides its model and KV cache as a `Batch`; this module chooses which tokens to feed to it. A sampled answer
depends on its prompt and seed, not on its batch: the loop draws all random numbers of an answer in advance. Answers to
one prompt share a row until their tokens differ, so ten samples from a confident model cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_bench.prompts import Prompt, extend_windows

Watch = Callable[[NDArray[np.int64], NDArray[np.float16]], None]
Turns = tuple[int, ...]  # the tokens of a prompt's earlier turns

COMPACT_AT = 0.9  # drop finished rows once at most this share of the rows is in use


class Batch(Protocol):
    """Distinct texts being decoded, one per row. `windows`, int64 [rows, N + 1]: of each row's last token."""

    windows: NDArray[np.int64]

    def choose(self, rows: NDArray[np.int64], temperature: float, draws: NDArray[np.float64]) -> NDArray[np.int64]:
        """Choose the next token of each answer, [answers].

        Args:
            rows: the row of each answer, [answers]; several answers may share one.
            temperature: of the sampling.
            draws: a number in [0, 1) per answer, [answers], at which the row's cumulative distribution is inverted. NaN
                selects the most probable token.
        """
        ...

    def log_probabilities(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Distributions over the next token of some rows, [rows, vocabulary]."""
        ...

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Keep only these rows, in this order; a repeated index duplicates its row. Call `advance` next."""
        ...

    def advance(self, tokens: NDArray[np.int64], windows: NDArray[np.int64]) -> None:
        """Append a token to each row and run the model on it. `windows`: the n-gram windows of these tokens."""
        ...


class Stem(NamedTuple):
    """The leading tokens that some prompts of a batch share, computed once for them.

    Attributes:
        which: these prompts, by their numbers in the batch.
        tokens: how many they share; 0: nothing is shared.
        state: their keys and values, from `Model.prefix_state`.
    """

    which: Sequence[int]
    tokens: int
    state: Any


class Model(Protocol):
    """What the decoding loop needs from a backend.

    Attributes:
        batch_size: most answers decoded together.
        stop_ids: tokens that end an answer.
        joins: whether a batch may have several stems.
    """

    batch_size: int
    stop_ids: set[int]

    @property
    def joins(self) -> bool: ...

    def shared(self, prompts: Sequence[Prompt], longest: int) -> int:
        """Number of leading tokens to compute once for all prompts, if no text is longer than `longest` tokens."""
        ...

    def prefix_state(self, prompt: Prompt, prefix: int) -> Any:
        """Keys and values of a prompt's first `prefix` tokens."""
        ...

    def begin(self, prompts: Sequence[Prompt], most_rows: int, stems: Sequence[Stem], max_new_tokens: int) -> Batch:
        """Prefill distinct prompts, one row each. The batch never grows beyond `most_rows` rows.

        Each prompt is of one of the `stems`.
        """
        ...


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    max_new_tokens: int | Sequence[int],
    seeds: Sequence[int | None] | None = None,
    temperature: float = 1.0,
    watch: Watch | None = None,
) -> list[list[int]]:
    """See `Backend.generate`. `watch` is called before each token, as by `_decode`, with the numbers of prompts."""
    if not prompts:
        return []
    limits = np.broadcast_to(max_new_tokens, len(prompts))
    most = int(limits.max())
    # Drawn in advance for the whole answer, so that a sample does not depend on its batch. NaN means greedy.
    draws = np.full((len(prompts), most), np.nan)
    for row, seed in enumerate(seeds or ()):
        if seed is not None:
            draws[row] = np.random.default_rng(seed).random(most)
    # Sort by length to reduce padding, then by tokens so that answers to one prompt share its prefill.
    groups: dict[Turns, list[int]] = {}
    for i in sorted(range(len(prompts)), key=lambda i: (len(prompts[i].ids), prompts[i].ids)):
        groups.setdefault(_turns(prompts[i]), []).append(i)
    longest = max(len(prompt.ids) for prompt in prompts) + most
    shared = {turns: _shared(model, [prompts[i] for i in group], longest) for turns, group in groups.items()}
    answers: list[list[int]] = [[] for _ in prompts]
    for order in [list(chain(*groups.values()))] if model.joins else groups.values():
        for start in range(0, len(order), model.batch_size):
            indices = order[start : start + model.batch_size]
            asked = [prompts[i] for i in indices]
            distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(asked))}
            rows = np.array([distinct[prompt] for prompt in asked])
            stems = [
                Stem([distinct[prompt] for prompt in some], *shared[turns])
                for turns, some in groupby(distinct, key=_turns)
            ]
            batch = model.begin(list(distinct), len(asked), stems, most)
            told = partial(_told, watch, np.array(indices)) if watch else None
            found = _decode(batch, rows, model.stop_ids, temperature, draws[indices], limits[indices], told)
            for i, tokens in zip(indices, found, strict=True):
                answers[i] = tokens
    return answers


def begun(model: Model, prompts: Sequence[Prompt], max_new_tokens: int) -> Batch:
    """Begin one batch of distinct prompts; what they share is its stem."""
    longest = max(len(prompt.ids) for prompt in prompts) + max_new_tokens
    stem = Stem(range(len(prompts)), *_shared(model, prompts, longest))
    return model.begin(prompts, len(prompts), [stem], max_new_tokens)


def _turns(prompt: Prompt) -> Turns:
    return prompt.ids[: prompt.earlier]


def _shared(model: Model, prompts: Sequence[Prompt], longest: int) -> tuple[int, Any]:
    """The number of tokens that prompts share, and their state; a single prompt is read in one forward pass."""
    prefix = model.shared(prompts, longest) if len(set(prompts)) > 1 else 0
    return prefix, model.prefix_state(prompts[0], prefix)


def _told(watch: Watch, indices: NDArray[np.int64], which: NDArray[np.int64], logs: NDArray[np.float16]) -> None:
    watch(indices[which], logs)


def with_distributions(
    model: Model, prompts: Sequence[Prompt], max_new_tokens: int
) -> list[tuple[list[int], NDArray[np.float16]]]:
    """See `Backend.with_distributions`."""
    seen: list[list[NDArray[np.float16]]] = [[] for _ in prompts]

    def watch(which: NDArray[np.int64], logs: NDArray[np.float16]) -> None:
        for i, log in zip(which, logs, strict=True):
            seen[i].append(log)

    answers = generate(model, prompts, max_new_tokens, watch=watch)
    return [(answer, np.stack(logs)) for answer, logs in zip(answers, seen, strict=True)]


def stop_ids(eos_id: int, configured: int | Sequence[int] | None) -> set[int]:
    """Tokens that end an answer: the tokenizer's end-of-text, and those that the model's config names."""
    named = configured if isinstance(configured, (list, tuple)) else () if configured is None else (configured,)
    return {eos_id, *named}


def stream(model: Model, prompt: Prompt, max_new_tokens: int, ignore_eos: bool) -> Iterator[int]:
    """See `Backend.stream`."""
    batch = begun(model, [prompt], max_new_tokens)
    for step in range(max_new_tokens):
        chosen = batch.choose(np.array([0]), 1.0, np.array([np.nan]))
        if int(chosen[0]) in model.stop_ids and not ignore_eos:
            return
        yield int(chosen[0])
        if step < max_new_tokens - 1:
            batch.advance(chosen, extend_windows(batch.windows, chosen))


def _decode(
    batch: Batch,
    rows: NDArray[np.int64],
    stop_ids: set[int],
    temperature: float,
    draws: NDArray[np.float64],
    limits: NDArray[np.int64],
    watch: Watch | None = None,
) -> list[list[int]]:
    """Decode all answers to the prompts of a batch; returns the tokens of each.

    Args:
        batch: one row per prompt.
        rows: the initial row of each answer, [answers].
        stop_ids: tokens that end an answer.
        temperature: of the draws.
        draws: [answers, new tokens].
        limits: most tokens of each answer, [answers].
        watch: called before each token with the numbers of the answers that go on, and the distributions over it.
    """
    count, max_new_tokens = draws.shape
    live = np.arange(count)  # the unfinished answers
    tokens: list[list[int]] = [[] for _ in range(count)]
    for step in range(max_new_tokens):
        if watch:
            watch(live, batch.log_probabilities(rows))
        chosen = batch.choose(rows, temperature, draws[live, step])
        unfinished = ~np.isin(chosen, list(stop_ids))
        live, rows, chosen = live[unfinished], rows[unfinished], chosen[unfinished]
        for answer, token in zip(live.tolist(), chosen.tolist(), strict=True):
            tokens[answer].append(token)
        unfinished = limits[live] > step + 1
        live, rows, chosen = live[unfinished], rows[unfinished], chosen[unfinished]
        if not len(live):
            break
        sources, fed, rows = _split_rows(rows, chosen, len(batch.windows))
        windows = extend_windows(batch.windows[sources], fed)
        if not np.array_equal(sources, np.arange(len(batch.windows))):
            batch.keep(sources)
        batch.advance(fed, windows)
    return tokens


def _split_rows(
    rows: NDArray[np.int64], tokens: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Assign answers to new rows: answers in the same row with the same next token stay together.

    The first continuation of a row stays in its place. Further ones go after all existing rows, so only these need
    copying. Unused rows get a dummy token, until there are enough of them to make compaction worthwhile.

    Args:
        rows: the current row of each answer, [answers].
        tokens: the next token of each answer, [answers].
        count: number of current rows.

    Returns:
        The source row of each new row, [new rows]; its token, [new rows]; and the new row of each answer, [answers].
    """
    idle = np.setdiff1d(np.arange(count), rows)
    if count - len(idle) <= COMPACT_AT * count:
        idle = idle[:0]
    continuations = np.stack([np.concatenate([rows, idle]), np.concatenate([tokens, np.zeros_like(idle)])])
    (sources, fed), found = np.unique(continuations, axis=1, return_inverse=True)  # sorted by row
    copied = np.concatenate([[False], sources[1:] == sources[:-1]])
    order = np.argsort(copied, kind="stable")
    place = np.argsort(order)
    return sources[order], fed[order], place[found.reshape(-1)[: len(rows)]]
