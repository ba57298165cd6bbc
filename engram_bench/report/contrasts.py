"""Paired comparisons of variants on the same items: with the baseline, the primary contrast, and with retrieval.

Also of one variant with itself, trained on other questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from engram_bench import stats
from engram_bench.data.ways import RECALL, WAYS
from engram_bench.records import BASELINE, CLAIMS, EVERYTHING, RETRIEVAL, CellKey, Record, is_pooled
from engram_bench.report.measures import MEASURES
from engram_bench.report.views import by_construction

Answers = Mapping[str, Mapping[CellKey, Sequence[Record]]]  # metric -> cell -> the answers that the metric counts
RETRIEVAL_MARGIN = 0.05  # "no worse" than retrieval means worse by less than this
UNTRAINED = (BASELINE, RETRIEVAL)  # answer once, for every training seed


class Contrast(NamedTuple):
    """Compares `variant` with `other` on the same items."""

    variant: str
    category: str
    split: str
    other: str
    metric: str

    @property
    def ours(self) -> CellKey:
        return CellKey(self.variant, self.category, self.split)

    @property
    def theirs(self) -> CellKey:
        return CellKey(self.other, self.category, self.split)


# What a memory must show to be worth more than a LoRA: that the model can use the value. On development items neither
# side was near 0 or 100%, and the difference was +3 points [-8, 14] (benchmarks/results/h200/default.json).
PRIMARY = Contrast("engram-keyed", EVERYTHING, "applied", "lora", "exact")


def contrasts(answers: Answers, names: Sequence[CellKey]) -> tuple[list[Record], Record | None]:
    """Compare every variant with the baseline, and compute the primary contrast; Holm's adjustment covers them all.

    Where the baseline is right by construction, there is nothing to test.

    Returns:
        The contrasts with the baseline, and the primary one (None if its two cells share no item).
    """
    wanted = [Contrast(*name, BASELINE, metric) for name in names for metric in MEASURES
              if name.variant != BASELINE and not by_construction(BASELINE, name.split)]  # fmt: skip
    pairs = {contrast: pair for contrast in [PRIMARY, *wanted] if (pair := _paired(answers, contrast)).a}
    found = [
        {
            **_named(contrast),
            **result.as_record(),
            "no_worse": stats.no_worse(result.difference),
            "verdict": stats.verdict(result),
        }
        for contrast, result in zip(pairs, stats.compare_all(list(pairs.values())), strict=True)
    ]
    return (found[1:], found[0]) if PRIMARY in pairs else (found, None)


def non_inferiority(answers: Answers, names: Sequence[CellKey]) -> list[Record]:
    """Whether each variant in `CLAIMS` is no worse than retrieval in the questions about trained values.

    Each interval stands alone: nothing is adjusted for their number.
    """
    wanted = [Contrast(*name, RETRIEVAL, "exact") for name in names
              if name.variant in CLAIMS and WAYS[name.split].group in RECALL]  # fmt: skip
    found = []
    for contrast in wanted:
        if (pair := _paired(answers, contrast)).a:
            result = stats.compare(pair.a, pair.b, by_seed=pair.by_seed)
            interval = {key: result.as_record()[key] for key in ("n", "difference", "low", "high")}
            shown = _shown(result.difference, RETRIEVAL_MARGIN)
            found.append({**_named(contrast), **interval, "margin": RETRIEVAL_MARGIN, "no_worse": shown})
    return found


def _shown(difference: stats.Interval, margin: float) -> str:
    """Whether an interval shows that a difference is no loss of the margin or more.

    Returns:
        "shown": the interval excludes such a loss; "not shown": it has nothing else; "inconclusive": it has both.
    """
    if stats.no_worse(difference, margin):
        return "shown"
    return "not shown" if difference.high <= -margin else "inconclusive"


def trainings(cells: Mapping[CellKey, Sequence[Record]], variants: Sequence[Record], default: str) -> list[Record]:
    """What the rich training brings each variant that the run also trained on the bare questions, by way.

    Args:
        cells: answers by variant, category and way, without pooled categories.
        variants: records of the run's variants.
        default: what a variant trains on whose file names no questions.
    """
    alike: dict[str, dict[str, str]] = {}  # all but the name and the questions -> questions -> variant
    for record in variants:
        config = record["config"]
        if record["train"] and not config.get("adapter_of"):
            rest = {key: config.get(key) for key in ("kind", "config", "training", "control")}
            alike.setdefault(repr(rest), {})[config.get("questions") or default] = record["name"]
    both = {pair["rich"]: pair["bare"] for pair in alike.values() if pair.keys() == {"rich", "bare"}}
    sides: dict[tuple[str, str], stats.Paired] = {}
    for rich, bare in both.items():
        for way in WAYS:
            a, b = (MEASURES["exact"](_all(cells, name, way)) for name in (bare, rich))
            if items := sorted(a.keys() & b.keys()):
                sides[rich, way] = stats.Paired([a[i] for i in items], [b[i] for i in items])
    compared = zip(sides.items(), stats.compare_all(list(sides.values())), strict=True)
    return [
        {
            **{"a": both[rich], "b": rich, "split": way},
            **{"bare": sum(pair.a) / len(pair.a), "rich": sum(pair.b) / len(pair.b)},
            **result.as_record(),
            "verdict": stats.verdict(result),
        }
        for ((rich, way), pair), result in compared
    ]


def _of(cells: Mapping[CellKey, Sequence[Record]], name: CellKey) -> Sequence[Record]:
    """The answers of a cell, which may pool all categories."""
    return _all(cells, name.variant, name.split) if name.category == EVERYTHING else cells.get(name, ())


def _all(cells: Mapping[CellKey, Sequence[Record]], variant: str, way: str) -> list[Record]:
    """A variant's answers in one way, of all categories."""
    single = {at: found for at, found in cells.items() if not is_pooled(at.category)}
    return [answer for at, found in single.items() if (at.variant, at.split) == (variant, way) for answer in found]


def _named(contrast: Contrast) -> Record:
    where = {"category": contrast.category, "split": contrast.split, "metric": contrast.metric}
    return {"a": contrast.other, "b": contrast.variant, **where}


def _paired(answers: Answers, contrast: Contrast) -> stats.Paired:
    """Pair the outcomes of the items that both sides answered."""
    theirs, ours = (_of(answers[contrast.metric], side) for side in (contrast.theirs, contrast.ours))
    a, b = (MEASURES[contrast.metric](side) for side in (theirs, ours))
    items = sorted(a.keys() & b.keys())
    by_seed = _by_seed(theirs, ours, contrast, items) if items else None
    return stats.Paired([a[i] for i in items], [b[i] for i in items], by_seed)


def _by_seed(theirs: Sequence[Record], ours: Sequence[Record], contrast: Contrast, items: Sequence[str]) -> Any:
    """[seeds, items] differences; None with too few seeds, or if one of them did not answer every item.

    Variants in `UNTRAINED` have no seeds, so their answers serve every seed.
    """
    seeds = sorted({s["seed"] for s in ours})
    if len(seeds) < stats.ENOUGH_SEEDS:
        return None
    measure, rows = MEASURES[contrast.metric], []
    for seed in seeds:
        a = measure(s for s in theirs if contrast.other in UNTRAINED or s["seed"] == seed)
        b = measure(s for s in ours if s["seed"] == seed)
        if not (a.keys() & b.keys()).issuperset(items):  # this seed is incomplete
            return None
        rows.append([b[i] - a[i] for i in items])
    return np.array(rows)
