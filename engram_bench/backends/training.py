"""The training loop of all backends: batches of examples and the learning-rate schedule."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from engram_bench.backends.base import Backend, Progress, Training
from engram_bench.data.items import Example
from engram_bench.errors import UsageError
from engram_bench.prompts import Pair
from engram_bench.variants.configs import TrainingConfig

SORT_WITHIN = 8  # batches; sorting by length within this many reduces padding, and the order stays random

Step = Callable[[Sequence[Pair], float], tuple[float, int]]


def run(step: Step, config: TrainingConfig, pairs: Sequence[Pair], seed: int, progress: Progress) -> Training:
    """Train for all epochs.

    Args:
        step: makes one optimizer step on a batch, with all learning rates multiplied by a factor; returns the mean
            loss per answer token, in nats, and the number of answer tokens.
        config: epochs and batch size.
        pairs: prompts and answers, end-of-text included.
        seed: drives the order of the examples.
        progress: called after every step.

    Raises:
        UsageError: the loss is no longer finite.
    """
    started = time.perf_counter()
    rng = random.Random(seed)
    steps = config.epochs * math.ceil(len(pairs) / config.batch_size)
    losses: list[float] = []
    done = 0
    for _ in range(config.epochs):
        total = tokens = 0.0
        for batch in _batches(pairs, config.batch_size, rng):
            loss, count = step(batch, rate(done, steps))
            total, tokens, done = total + loss * count, tokens + count, done + 1
            progress(f"loss {total / tokens:.3f}", done, steps)
        losses.append(total / tokens)
        if not math.isfinite(losses[-1]):
            raise UsageError(f"training diverged: the loss is {losses[-1]}; use a lower lr or table_lr")
    return Training(time.perf_counter() - started, len(pairs), config.epochs, tuple(losses))


def rate(done: int, steps: int) -> float:
    """Learning-rate factor of the next step: linear warm-up over 5% of the steps, times linear decay to zero."""
    return min(1.0, (done + 1) / max(1, round(0.05 * steps))) * (1 - done / steps)


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
