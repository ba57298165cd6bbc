"""Replay: texts whose answers training must leave as they are.

Training on right answers alone changes unrelated answers too, and a LoRA then recites a stored value wherever its key
is named. So each step also lowers the KL divergence of the adapted model from the untouched one, on the untouched
model's own answers to these texts.

The untouched model's distributions are those from which its answers are chosen. They are kept in float16 in main
memory, so no step needs the model without its adapter, all frameworks share one rule, and so do all trainings on the
same texts. Rounding to float16 is a divergence of about 1e-6 nats, after the probabilities are scaled to sum to one
again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engram_bench.backends.base import Adapter, Backend
from engram_bench.prompts import Pair, Prompt

REPLAY_TOKENS = 16  # new tokens of an answer, at most
MOST_BYTES = 2 << 30  # of distributions; of more texts, some are drawn

# For each text and its answer: log-probabilities that predict the answer's tokens, [answer tokens, vocabulary].
Targets = dict[Pair, NDArray[np.float16]]


def answered(backend: Backend, texts: Sequence[str]) -> list[Pair]:
    """Prompts and the model's own greedy answers, with end-of-text if they end; attach no adapter."""
    prompts = _fitting(backend, texts)
    answers = backend.generate(prompts, REPLAY_TOKENS)
    return [(prompt, _ended(backend, answer)) for prompt, answer in zip(prompts, answers, strict=True)]


def targets(backend: Backend, texts: Sequence[str]) -> Targets:
    """The same, with the distributions from which the answers were chosen."""
    prompts = _fitting(backend, texts)
    found = backend.with_distributions(prompts, REPLAY_TOKENS)
    return {(prompt, _ended(backend, answer)): logs for prompt, (answer, logs) in zip(prompts, found, strict=True)}


def _fitting(backend: Backend, texts: Sequence[str]) -> list[Prompt]:
    """The prompts, or as many of them as have room for their distributions in `MOST_BYTES`."""
    prompts = [backend.encoder.prompt(text) for text in dict.fromkeys(texts)]
    most = MOST_BYTES // (REPLAY_TOKENS * len(backend.encoder.tokenizer) * np.dtype(np.float16).itemsize)
    return prompts if len(prompts) <= most else random.Random(0).sample(prompts, most)


def _ended(backend: Backend, answer: Sequence[int]) -> tuple[int, ...]:
    return (*answer, backend.encoder.eos_id) if len(answer) < REPLAY_TOKENS else tuple(answer)


class Untouched:
    """The untouched model's distributions on the replay texts of the last training, for the next one."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._texts: tuple[str, ...] = ()
        self._targets: Targets = {}

    def on(self, texts: Sequence[str]) -> Targets:
        """The distributions on these texts; attach no adapter."""
        if tuple(texts) != self._texts:
            self._targets = {}  # frees the memory first
            self._targets = targets(self._backend, texts)
            self._texts = tuple(texts)
        return self._targets


def touched(adapter: Adapter, targets: Targets) -> Targets:
    """The texts that an adapter can act on. On the others the divergence is zero, whatever the adapter learns."""
    return {pair: targets[pair] for pair in read_by(adapter, list(targets))}


def read_by(adapter: Adapter, pairs: Sequence[Pair]) -> list[Pair]:
    """The texts that an adapter can act on."""
    return [pair for pair in pairs if adapter.acts_on_template or adapter.span(pair[0]) is not None]


def stacked(targets: Targets, pairs: Sequence[Pair]) -> NDArray[np.float16]:
    """The distributions of some texts, one after the other: [answer tokens, vocabulary]."""
    return np.concatenate([targets[pair] for pair in pairs])
