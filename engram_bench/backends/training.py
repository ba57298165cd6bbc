"""The training loop of all backends: batches of examples and the learning-rate schedule."""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_bench.backends.base import Backend, Progress, Training
from engram_bench.data.items import Example
from engram_bench.errors import UsageError
from engram_bench.prompts import Pair
from engram_bench.variants.configs import TrainingConfig

SORT_WITHIN = 8  # batches; sorting by length within this many reduces padding, and the order stays random
RECENT, PASSES = 256, 2  # examples that tell whether the answers are learned; of fewer facts, so many passes over all
LEARNED = 0.98  # share of these whose every answer token was the most probable one, before the step on them
COOLDOWN = 0.2  # of the steps until then: the rate falls to zero in as many more
WARM_UP = 10  # steps at most
SMALLEST_BATCH, STEPS_AN_EPOCH = 4, 8  # of a recipe that fits few facts, too
EXAMPLES_PER_REPLAY = 3  # examples in a step for each replay text in it

Hits = NDArray[np.bool_]
Divergences = NDArray[np.float32]
Step = Callable[[Sequence[Pair], Sequence[Pair], float], tuple[float, Hits, Divergences]]


def run(
    step: Step,
    config: TrainingConfig,
    pairs: Sequence[Pair],
    seed: int,
    progress: Progress,
    replay: Sequence[Pair] = (),
    redraw: Callable[[Sequence[Pair], random.Random], Sequence[Pair]] | None = None,
) -> Training:
    """Train until the answers are learned, within the least and the most steps of the config.

    An answer is learned if each of its tokens is the most probable one, given the tokens before it: then the greedy
    answer is right. Once `LEARNED` of the recent examples are, the learning rate falls to zero and training ends.

    Args:
        step: makes one optimizer step on a batch of examples and a batch of replay texts, with all learning rates
            multiplied by a factor. Returns the mean loss per answer token of the examples, in nats; whether each of
            these tokens was the most probable one, row by row; and the divergence from the untouched model at each
            answer token of the replay texts, in nats, row by row.
        config: steps, epochs and batch size.
        pairs: prompts and answers, end-of-text included.
        seed: drives the order of the examples and of the replay texts.
        progress: called after every step.
        replay: texts whose answers must stay as they are, see `backends.replay`. They do not count as learned.
        redraw: gives the examples of a step other answers, see `backends.hearing`.

    Raises:
        UsageError: the loss is no longer finite.
    """
    started = time.perf_counter()
    rng = random.Random(seed)
    size = config.batch_size
    if config.steps:  # of few examples, smaller batches
        size = min(size, max(SMALLEST_BATCH, math.ceil(len(pairs) / STEPS_AN_EPOCH)))
    least, most = config.budget(math.ceil(len(pairs) / size))
    recent: deque[bool] = deque(maxlen=min(RECENT, PASSES * len(pairs)))
    again = _rounds(replay, random.Random(seed))
    diverged: deque[tuple[float, int]] = deque(maxlen=len(replay))  # over the last pass: a text's sum, and its tokens
    losses: list[float] = []
    done, learned_at = 0, None
    end = most
    while done < end:
        total = tokens = 0.0
        for drawn in _batches(pairs, size, rng):
            batch = redraw(drawn, rng) if redraw else drawn
            texts = list(islice(again, min(len(replay), math.ceil(len(batch) / EXAMPLES_PER_REPLAY))))
            loss, hits, kl = step(batch, texts, rate(done, most, learned_at, end))
            total, tokens, done = total + loss * len(hits), tokens + len(hits), done + 1
            recent.extend(_by_text(np.logical_and, batch, hits))
            diverged.extend(zip(_by_text(np.add, texts, kl), (len(answer) for _, answer in texts), strict=True))
            progress(f"loss {total / tokens:.3f}", done, end)
            if learned_at is None and done >= least and len(recent) == recent.maxlen and _share(recent) >= LEARNED:
                learned_at, end = done, min(most, done + math.ceil(COOLDOWN * done))
            if done == end:
                break
        losses.append(total / tokens)
        if not math.isfinite(losses[-1]):
            raise UsageError(f"training diverged: the loss is {losses[-1]}; use a lower lr or table_lr")
    seconds = time.perf_counter() - started
    return Training(
        seconds,
        len(pairs),
        epochs=len(losses),
        losses=tuple(losses),
        steps=done,
        learned=_share(recent),
        ended_early=learned_at is not None,
        replay=len(replay),
        replay_kl=_mean(diverged),
    )


def rate(done: int, most: int, learned_at: int | None = None, end: int = 0) -> float:
    """Learning-rate factor of the next step.

    It rises linearly over the first steps, then falls linearly, to zero at the last of the `most` steps. Once the
    answers are learned, it falls to zero at step `end`.
    """
    planned = min(1.0, (done + 1) / max(1, min(WARM_UP, round(0.05 * most)))) * (1 - done / most)
    return planned if learned_at is None else planned * (end - done) / max(1, end - learned_at)


def _by_text(combine: np.ufunc, batch: Sequence[Pair], values: NDArray[Any]) -> list[Any]:
    """Combine the values of each text's answer tokens, given row by row."""
    starts = np.cumsum([0, *(len(answer) for _, answer in batch[:-1])])
    return combine.reduceat(values, starts).tolist() if batch else []


def _mean(diverged: Collection[tuple[float, int]]) -> float | None:
    """Mean divergence per token, in nats; None without replay texts."""
    return sum(kl for kl, _ in diverged) / sum(tokens for _, tokens in diverged) if diverged else None


def _rounds(texts: Sequence[Pair], rng: random.Random) -> Iterator[Pair]:
    """All texts in random order, again and again."""
    while texts:
        yield from rng.sample(texts, len(texts))


def _share(answered: Collection[bool]) -> float:
    return sum(answered) / len(answered)


def with_validation(training: Training, backend: Backend, examples: Sequence[Example]) -> Training:
    """Add to the record the loss on `examples`, with the adapter attached now; no examples: return it unchanged."""
    if not examples:
        return training
    encoder = backend.encoder
    texts = [(encoder.prompt(example.prompt), encoder.answer(example.answer)) for example in examples]
    logs = [log for answer in backend.log_probabilities(texts) for log in answer]
    return replace(training, validation_loss=-sum(logs) / len(logs))


def _batches(pairs: Sequence[Pair], size: int, rng: random.Random) -> list[list[Pair]]:
    order = rng.sample(range(len(pairs)), len(pairs))
    chunk = size * SORT_WITHIN
    ordered = [
        i
        for start in range(0, len(order), chunk)
        for i in sorted(order[start : start + chunk], key=lambda i: len(pairs[i][0].ids) + len(pairs[i][1]))
    ]
    batches = [[pairs[i] for i in ordered[start : start + size]] for start in range(0, len(ordered), size)]
    rng.shuffle(batches)
    return batches
