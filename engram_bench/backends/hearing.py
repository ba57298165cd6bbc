"""A hearing memory as an adapter: what both frameworks share. See `memory.hearing` for what it is."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from engram_bench.backends.base import Adapter, WithoutNgrams, Written
from engram_bench.data.training import JOINED
from engram_bench.errors import UsageError
from engram_bench.memory.addresses import check_written
from engram_bench.memory.hearing import SIZE, Fact, Facts, HeardRows, statement
from engram_bench.memory.keys import key_name
from engram_bench.prompts import Pair, Prompt, PromptEncoder, Span
from engram_bench.variants.configs import HearingConfig

Redraw = Callable[[Sequence[Pair], random.Random], Sequence[Pair]]


class Hearing(WithoutNgrams):
    """The part of `base.Adapter` that needs only the facts; no gates, no dropout."""

    ngram_size = SIZE
    acts_on_text, acts_on_template = True, False
    config: HearingConfig
    encoder: PromptEncoder
    reader: HeardRows
    alike: Sequence[Mapping[str, str]] = ()  # only in training: values by key, for each kind of items

    @property
    def facts(self) -> Facts:
        return self.reader.facts

    def span(self, prompt: Prompt) -> Span | None:
        return self.facts.span(prompt)

    def windows(self, prompt: Prompt, answer: Sequence[int]) -> NDArray[np.int64]:
        return self.facts.windows(prompt, answer)

    def train(self, mode: bool) -> None:
        self.facts.assign({})

    def redrawn(self, pairs: Sequence[Pair], rng: random.Random) -> Sequence[Pair]:
        """Training examples in which items have exchanged their values, and so have the facts that are heard.

        What holds for one step alone cannot be stored in the reader: it must be read.
        """
        values: dict[str, str] = {}
        for known in self.alike:
            values |= zip(known, rng.sample(list(known.values()), len(known)), strict=True)
        self.facts.assign(values)
        answers = (JOINED.join(values[item.input] for item in prompt.items) for prompt, _ in pairs)
        return [(prompt, self.encoder.answer(answer)) for (prompt, _), answer in zip(pairs, answers, strict=True)]


class WritableHearing:
    """A hearing memory that accepts written facts; see `base.Writable`. The reader stays as it is."""

    def __init__(self, encoder: PromptEncoder, stop_ids: set[int], adapter: Hearing) -> None:
        self._encoder, self._stop_ids, self._adapter = encoder, stop_ids, adapter

    @property
    def adapter(self) -> Adapter:
        return cast(Adapter, self._adapter)

    @property
    def facts(self) -> Mapping[str, str]:
        return {fact.key: fact.value for fact in self._adapter.facts.written}

    def write(self, key: str, value: str, name: str = "") -> Written:
        """Store one fact, to be heard at a name.

        Its rows are what the untouched model computes for its statement, so there is nothing to optimize.

        Raises:
            UsageError: see `Facts.check_new`; or the reader was trained without facts to hear; or the value contains
                what ends an answer or a turn of the model.
        """
        if not self._adapter.config.rows:
            raise UsageError("this reader was trained without facts to hear; write into an engram-hearing adapter")
        started, facts = time.perf_counter(), self._adapter.facts
        facts.check_new(key, value, name)
        if (ending := self._encoder.ending(value, self._stop_ids)) is not None:
            raise UsageError(f"{value!r} contains {ending!r}, which ends this model's answer or turn; change the value")
        fact = Fact((key_name(name) or facts.name_for(key),), key, value)
        self._adapter.reader.facts = facts.with_facts([fact])
        self._adapter.reader.hold([fact])
        return Written(time.perf_counter() - started, 0, math.inf, len(statement(fact, self._encoder)))

    def forget(self, key: str) -> None:
        """Remove a written fact. Raises UsageError if it was never written."""
        check_written(key, self.facts)
        self._adapter.reader.facts = self._adapter.facts.without(key)

    def save(self, folder: Path) -> None:
        self.adapter.save(folder)


def alike(pairs: Sequence[Pair]) -> list[dict[str, str]]:
    """The values, by key, of the items that these prompts ask for: those of a relation, or of a category, together."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for prompt, _ in pairs:
        for item in prompt.items:
            found.setdefault((item.category, item.relation), {})[item.input] = item.output
    return list(found.values())


def redraw(adapter: Adapter) -> Redraw | None:
    """How an adapter wants the examples of each training step changed; None: not at all."""
    return adapter.redrawn if isinstance(adapter, Hearing) and adapter.config.redraw else None
