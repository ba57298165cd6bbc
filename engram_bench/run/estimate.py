"""How long a run takes: a rough estimate before it, and what is left while it goes on.

The figures are those of the bundled model on two cores that multiply matrices in float32 at `RATE` GFLOP/s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from engram_bench.options import Settings
from engram_bench.run import evaluate
from engram_bench.variants import Variant

RATE = 195
WHOLE = "engram on all tokens"  # an n-gram memory that is no keyed one
# Steps by the root of facts; seconds of a step.
STEPS = {"lora": 24, "engram": 12, WHOLE: 21, "engram-hearing": 16}
A_STEP = {"lora": 1.0, "engram": 0.9, WHOLE: 2.1, "engram-hearing": 2.1}
A_FACT = 0.1  # seconds to read a fact's training texts once
AN_ANSWER, WITH_FACTS = 0.07, 0.2  # seconds for an answer, and for one whose prompt holds facts
THE_REST = 60  # seconds: loading, collateral, report
READERS = ("retrieval", "oracle")  # kinds whose prompts hold facts
TRAIN, DECODE = "train", "decode"
TRUST = 20.0  # seconds of expected work: after so many, what was measured counts as much as what was expected
LEAST = 0.05  # share of the work after which an estimate without expected seconds is shown

Part = tuple[str, str]  # variant, and TRAIN or DECODE


def kind_of(variant: Variant) -> str:
    """The kind of a variant, by which its time is known; "" if it trains nothing and its prompts hold no facts."""
    if variant.config is None:
        return variant.kind if variant.kind in READERS else ""
    return WHOLE if variant.kind == "engram" and not variant.config.keyed else variant.kind


def training(kind: str, facts: int) -> float:
    """Seconds to train a kind of adapter on so many facts; a kind without figures takes as long as a LoRA."""
    kind = kind if kind in STEPS else "lora"
    return A_STEP[kind] * STEPS[kind] * math.sqrt(facts) + A_FACT * facts


def answering(kind: str, answers: int) -> float:
    """Seconds for so many answers of a kind of variant."""
    return answers * (WITH_FACTS if kind in READERS else AN_ANSWER)


def own_facts(facts: int, kinds: Sequence[str]) -> float:
    """Seconds of a run on somebody's own facts.

    Args:
        facts: how many.
        kinds: of the variants, one for each training seed; "" for a variant that trains nothing.
    """
    asked = 2 * facts + min(facts, 300)
    return (
        THE_REST
        + sum(training(kind, facts) for kind in kinds if kind not in ("", *READERS))
        + sum(answering(kind, asked) for kind in kinds)
    )


def words(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{math.ceil(seconds / 10) * 10} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def left(settings: Settings, planned: Collection[tuple[str, str]], device: str, rate: float) -> Left:
    """Tells during a run how long it has still to go.

    Args:
        settings: of the run.
        planned: its cells, category and way.
        device: of its backend.
        rate: of its products of matrices, GFLOP/s.
    """
    facts = sum(len(category.split("seen")) for category in settings.patterns.categories.values())
    asked = len(evaluate.questions(settings.patterns, planned, settings.plan.most))
    expected: dict[Part, float] = {}
    for variant in settings.variants:
        kind = kind_of(variant)
        if variant.config and not variant.adapter_of:
            expected[variant.name, TRAIN] = training(kind, facts) * RATE / rate
        expected[variant.name, DECODE] = answering(kind, asked) * RATE / rate
    steps = {v.name: STEPS.get(kind_of(v), STEPS["lora"]) * math.sqrt(facts) for v in settings.variants}
    times = {v.name: len(settings.seeds) for v in settings.variants if v.config}
    return Left(expected, steps, (settings.model, device) == ("bundled", "cpu"), times)


class Left:
    """What is left of a run, by its progress so far.

    Args:
        expected: seconds of each part of the run, in its order.
        steps: number of steps that each variant's training is expected to take; it may end before the most.
        here: whether `expected` holds for this machine; otherwise only its proportions count.
        times: how often a variant's parts come, for each training seed once; 1 where it is not named.
        clock: for tests.
    """

    def __init__(
        self,
        expected: Mapping[Part, float],
        steps: Mapping[str, float],
        here: bool,
        times: Mapping[str, int] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._each, self._steps, self._here, self._clock = dict(expected), steps, here, clock
        self._times = {part: times.get(part[0], 1) for part in expected}  # that are still to come
        self._start, self._now = clock(), ("", "")
        self._done = 0.0  # expected seconds of the parts that have ended

    def __call__(self, what: str, done: int, total: int) -> float | None:
        """Seconds that are left; None as long as nothing can be said.

        Args:
            what: "variant: loss 0.1" in a training, "variant: decode" while it answers; see `progress.Reporter`.
            done: steps or answers so far.
            total: of this part, at most.
        """
        variant, _, doing = what.partition(": ")
        part = variant, DECODE if doing.startswith("decode") else TRAIN
        if part != self._now:
            self._move_to(part)
        most = min(total, self._steps.get(variant, total)) if part[1] == TRAIN else total
        share = min(1.0, done / max(most, done, 1)) if self._times.get(part) else 0.0
        worked = self._done + share * self._each.get(part, 0.0)
        left = self._done + sum(self._each[part] * times for part, times in self._times.items()) - worked
        elapsed = self._clock() - self._start
        if self._here:
            return left * (TRUST + elapsed) / (TRUST + worked)
        whole = worked + left
        return left * elapsed / worked if worked > LEAST * whole else None

    def _move_to(self, part: Part) -> None:
        """Count the part that was under way as done; a training that was to come before answers was in the cache."""
        before, self._now = self._now, part
        if self._times.get(before):
            self._done += self._each[before]
            self._times[before] -= 1
        trained = part[0], TRAIN
        if part[1] == DECODE and before != trained and self._times.get(trained):
            self._times[trained] -= 1
