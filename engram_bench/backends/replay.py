"""Replay: texts whose answers training must leave as they are.

Training on right answers alone changes unrelated answers too, and a LoRA then recites a stored value wherever its key
is named. So each step also lowers the KL divergence of the adapted model from the untouched one, on the untouched
model's own answers to these texts.

The untouched model's distributions are computed once, before training, and kept in float16 in main memory. So no step
needs the model without its adapter, all frameworks share one rule, and so do all trainings on the same texts. Rounding
to float16 is a divergence of about 1e-6 nats, after the probabilities are scaled to sum to one again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from engram_bench.backends.base import Adapter, Backend
from engram_bench.prompts import Pair

REPLAY_TOKENS = 16  # new tokens of an answer, at most
MOST_BYTES = 2 << 30  # of distributions; texts beyond this are left out
BATCH = 16  # texts whose distributions are computed together; limits memory

# For each text and its answer: log-probabilities that predict the answer's tokens, [answer tokens, vocabulary].
Targets = dict[Pair, NDArray[np.float16]]
Computed = Iterable[tuple[Sequence[Pair], NDArray[np.float32]]]  # the same in float32, by batches of texts


def answered(backend: Backend, texts: Sequence[str]) -> list[Pair]:
    """Prompts and the model's own greedy answers, with end-of-text if they end; attach no adapter."""
    prompts = [backend.encoder.prompt(text) for text in dict.fromkeys(texts)]
    answers = backend.generate(prompts, REPLAY_TOKENS)
    ended = [[backend.encoder.eos_id] if len(answer) < REPLAY_TOKENS else [] for answer in answers]
    return [(prompt, (*answer, *end)) for prompt, answer, end in zip(prompts, answers, ended, strict=True)]


class Untouched:
    """The untouched model's distributions on the replay texts of the last training, for the next one.

    Args:
        backend: the model.
        distributions: computes them for some texts, see `kept`.
    """

    def __init__(self, backend: Backend, distributions: Callable[[Sequence[Pair]], Computed]) -> None:
        self._backend, self._distributions = backend, distributions
        self._texts: tuple[str, ...] = ()
        self._targets: Targets = {}

    def on(self, texts: Sequence[str]) -> Targets:
        """The distributions on these texts; attach no adapter."""
        if tuple(texts) != self._texts:
            self._targets = {}  # frees the memory first
            self._targets = kept(self._distributions(answered(self._backend, texts)))
            self._texts = tuple(texts)
        return self._targets


def touched(adapter: Adapter, targets: Targets) -> Targets:
    """The texts that an adapter can act on. On the others the divergence is zero, whatever the adapter learns."""
    return {pair: targets[pair] for pair in read_by(adapter, list(targets))}


def read_by(adapter: Adapter, pairs: Sequence[Pair]) -> list[Pair]:
    """The texts that an adapter can act on."""
    return [pair for pair in pairs if adapter.acts_on_template or adapter.span(pair[0]) is not None]


def batches(pairs: Sequence[Pair]) -> list[Sequence[Pair]]:
    """Texts of similar length together, to compute their distributions."""
    ordered = sorted(pairs, key=lambda pair: len(pair[0].ids) + len(pair[1]))
    return [ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH)]


def kept(computed: Computed) -> Targets:
    """Keep distributions, as many as fit.

    Args:
        computed: batches of texts, and their log-probabilities [answer tokens, vocabulary], text by text. No more
            batches are computed than fit.
    """
    targets: Targets = {}
    size = 0
    for pairs, logs in computed:
        size += logs.nbytes // 2
        if size > MOST_BYTES:
            break
        ends = np.cumsum([len(answer) for _, answer in pairs])
        targets |= zip(pairs, np.split(logs.astype(np.float16), ends[:-1]), strict=True)
    return targets


def stacked(targets: Targets, pairs: Sequence[Pair]) -> NDArray[np.float16]:
    """The distributions of some texts, one after the other: [answer tokens, vocabulary]."""
    return np.concatenate([targets[pair] for pair in pairs])
