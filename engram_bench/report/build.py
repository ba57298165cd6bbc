"""Builds report.json from records: cells, outcomes, paired contrasts with the baseline, thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from engram_bench import metrics, stats
from engram_bench.data.ways import WAYS
from engram_bench.records import BASELINE, GREEDY, REPEAT, CellKey, Record, pooled
from engram_bench.report.scorecard import scorecard
from engram_bench.report.views import by_construction

SCHEMA_VERSION = 1


def build(
    *,
    run: Record,
    meta: Record,
    variants: Sequence[Record],
    samples: Sequence[Record],
    collateral: Sequence[Record],
    passages: Sequence[Record] = (),
    mentions: Sequence[Record] = (),
    thresholds: Sequence[Record],
    speed: Sequence[Record] = (),
    lookup: Sequence[Record] = (),
    routers: Sequence[Record] = (),
) -> Record:
    """Build a report (schema.json lists its keys); every number is computed from the records."""
    order, rank = ({name: i for i, name in enumerate(names)} for names in ([v["name"] for v in variants], WAYS))
    cells = _by_cell(samples)
    everything = {**cells, **_pooled(cells, meta["dataset"]["categories"])}
    names = sorted(everything, key=lambda c: (order[c[0]], rank[c[2]], c[1]))
    contrasts, primary = _contrasts(everything, [name for name in names if name[0] != BASELINE], run["samples"])
    report = {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        **meta,
        "variants": list(variants),
        "cells": [_cell(name, everything[name]) for name in names],
        "outcomes": [
            {**name._asdict(), "items": outcomes(cells[name]), "consistency": consistency(cells[name])}
            for name in names
            if name in cells
        ],
        "primary": primary,
        "contrasts": contrasts,
        "collateral": list(collateral),
        "passages": list(passages),
        "mentions": list(mentions),
        "speed": list(speed),
        "lookup": list(lookup),
        "routing": _routing(routers),
        "thresholds": list(thresholds),
    }
    return {**report, "scorecard": scorecard(report, samples)}


def _routing(routers: Sequence[Record]) -> Record | None:
    """Precision and recall of the rules that `engram-routed` uses, and the results of all routers.

    Returns:
        None if the rules were not measured.
    """
    routers = [{"set": "labelled", **router} for router in routers]  # older records know only this set
    rules = next((r for r in routers if (r["router"], r["set"]) == ("rules", "labelled")), None)
    if rules is None:
        return None
    return {**{key: rules[key] for key in ("prompts", "precision", "recall")}, "routers": routers}


def _by_cell(samples: Iterable[Record]) -> dict[CellKey, list[Record]]:
    cells: dict[CellKey, list[Record]] = {}
    for sample in samples:
        cells.setdefault(CellKey(sample["variant"], sample["category"], sample["split"]), []).append(sample)
    return cells


def _pooled(cells: Mapping[CellKey, list[Record]], categories: Mapping[str, Record]) -> dict[CellKey, list[Record]]:
    """Pool the categories of each group into a cell named "all GROUP"; a group of one category gets none.

    A variant gets a pooled cell only if it answered every category. Rates over different categories do not compare.
    """
    groups: dict[str, list[str]] = {}
    for name, category in categories.items():
        groups.setdefault(category["group"], []).append(name)
    found: dict[CellKey, list[Record]] = {}
    for variant, split in dict.fromkeys((variant, split) for variant, _, split in cells):
        for group, names in groups.items():
            # A category of one item has a held-out split only.
            expected = [n for n in names if split == "heldout" or categories[n]["items"] > 1]
            parts = [cells.get(CellKey(variant, name, split), []) for name in expected]
            if len(names) > 1 and parts and all(parts):
                found[CellKey(variant, pooled(group), split)] = [sample for part in parts for sample in part]
    return found


def _greedy(samples: Iterable[Record]) -> list[Record]:
    return [s for s in samples if s["sample"] == GREEDY]


def _shares(samples: Iterable[Record], field: str) -> dict[str, float]:
    """Map each item to the share of its greedy answers (one per training seed) whose `field` is true."""
    by_item: dict[str, list[bool]] = {}
    for sample in _greedy(samples):
        by_item.setdefault(sample["item"], []).append(sample[field])
    return {item: sum(found) / len(found) for item, found in sorted(by_item.items())}


def outcomes(samples: Iterable[Record]) -> dict[str, float]:
    """Map each item to the share of its greedy answers that are exact; comparisons pair these values."""
    return _shares(samples, "exact")


def consistency(samples: Iterable[Record]) -> dict[str, float]:
    """Map each item to the share of its most common output among the answers sampled at temperature 0.8.

    Averages over training seeds. Leaves out items with fewer than two sampled answers.
    """
    drawn: dict[tuple[str, int], list[str]] = {}
    for sample in samples:
        if sample["sample"] > GREEDY:
            drawn.setdefault((sample["item"], sample["seed"]), []).append(sample["output"])
    by_item: dict[str, list[float]] = {}
    for (item, _), outputs in drawn.items():
        if len(outputs) > 1:
            by_item.setdefault(item, []).append(metrics.consistency(outputs))
    return {item: sum(values) / len(values) for item, values in sorted(by_item.items())}


def _cell(name: CellKey, samples: Sequence[Record]) -> Record:
    cell: Record = {**name._asdict(), "n": len({s["item"] for s in samples})}
    for field in ("exact", "prefix"):
        shares = _shares(samples, field)
        cell[field] = stats.rate(sum(shares.values()), len(shares))
    drawn = consistency(samples)
    cell["consistency"] = {"n": len(drawn), **_mean(list(drawn.values()))} if drawn else None
    cell["greedy_repeats"] = _repeats(samples)
    efficiency: dict[str, list[float]] = {}
    for s in _greedy(samples):
        efficiency.setdefault(s["item"], []).append(metrics.token_efficiency(s["canonical_tokens"], s["tokens"]))
    cell["token_efficiency"] = _mean([sum(found) / len(found) for _, found in sorted(efficiency.items())])
    return cell


def _repeats(samples: Sequence[Record]) -> Record | None:
    """Share of items whose repeated greedy answer is the same text for every training seed; None without repeats."""
    first = {(s["item"], s["seed"]): s["output"] for s in samples if s["sample"] == GREEDY}
    same: dict[str, bool] = {}
    for s in samples:
        if s["sample"] == REPEAT:
            same[s["item"]] = same.get(s["item"], True) and s["output"] == first.get((s["item"], s["seed"]))
    if not same:
        return None
    interval = stats.wilson(sum(same.values()), len(same))
    return {"n": len(same), "same": interval.value, "low": interval.low, "high": interval.high}


def _mean(values: Sequence[float]) -> Record:
    interval = stats.mean(values)
    return {"mean": interval.value, "low": interval.low, "high": interval.high}


def max_consistency_difference(samples: int) -> float:
    """Largest possible difference of two consistencies; with K answers each is at least 1/K."""
    return 1 - 1 / samples if samples > 1 else 1.0


def paired(
    metric: str, a: Sequence[float], b: Sequence[float], samples: int, by_seed: Any | None = None
) -> stats.Paired:
    """Pair two variants' outcomes in one metric; `samples` is the number of sampled answers per item."""
    if metric == "consistency":
        return stats.Paired(a, b, rates=False, max_difference=max_consistency_difference(samples), by_seed=by_seed)
    return stats.Paired(a, b, by_seed=by_seed)


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


PRIMARY = Contrast("engram", "all lookups", "seen", "lora", "exact")  # the project's claim, chosen before any run

MEASURES = {"exact": outcomes, "consistency": consistency}


def _contrasts(
    cells: Mapping[CellKey, list[Record]], names: Sequence[CellKey], samples: int
) -> tuple[list[Record], Record | None]:
    """Compare every variant with the baseline, and compute the primary contrast; Holm's adjustment covers them all.

    Where the baseline is right by construction, there is nothing to test.

    Returns:
        The contrasts with the baseline, and the primary one (None if its two cells share no item).
    """
    wanted = [Contrast(*name, BASELINE, metric) for name in names for metric in MEASURES
              if not by_construction(BASELINE, name.split)]  # fmt: skip
    sides = {c: (cells.get(c.theirs, []), cells.get(c.ours, [])) for c in [PRIMARY, *wanted]}
    pairs = {c: pair for c, (theirs, ours) in sides.items() if (pair := _paired(c.metric, theirs, ours, samples)).a}
    found = [
        {
            **{"a": c.other, "b": c.variant, "category": c.category, "split": c.split, "metric": c.metric},
            **result.as_record(),
            "no_worse": stats.no_worse(result.difference),
            "verdict": stats.verdict(result),
        }
        for c, result in zip(pairs, stats.compare_all(list(pairs.values())), strict=True)
    ]
    return (found[1:], found[0]) if PRIMARY in pairs else (found, None)


def _paired(metric: str, theirs: Sequence[Record], ours: Sequence[Record], samples: int) -> stats.Paired:
    """Pair the outcomes of the items that both sides answered."""
    a, b = (MEASURES[metric](side) for side in (theirs, ours))
    items = sorted(a.keys() & b.keys())
    by_seed = _by_seed(theirs, ours, metric, items) if items else None
    return paired(metric, [a[i] for i in items], [b[i] for i in items], samples, by_seed)


def _by_seed(theirs: Sequence[Record], ours: Sequence[Record], metric: str, items: Sequence[str]) -> Any:
    """[seeds, items] differences; None with too few seeds, or if one of them did not answer every item.

    The baseline is not trained, so its answers serve every seed.
    """
    seeds = sorted({s["seed"] for s in ours})
    if len(seeds) < stats.ENOUGH_SEEDS:
        return None
    untrained = theirs[0]["variant"] == BASELINE
    measure, rows = MEASURES[metric], []
    for seed in seeds:
        a = measure(s for s in theirs if untrained or s["seed"] == seed)
        b = measure(s for s in ours if s["seed"] == seed)
        if not (a.keys() & b.keys()).issuperset(items):  # this seed is incomplete
            return None
        rows.append([b[i] - a[i] for i in items])
    return np.array(rows)
