"""Builds report.json from records: cells, outcomes, paired contrasts, thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from engram_bench.data.ways import WAYS
from engram_bench.records import CellKey, Record, pooled
from engram_bench.report.contrasts import contrasts, non_inferiority, trainings
from engram_bench.report.ladder import positions
from engram_bench.report.measures import agreement, cell, consistency, outcomes, phrased
from engram_bench.report.scorecard import scorecard

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
    routed: Sequence[Record] = (),
) -> Record:
    """Build a report (schema.json lists its keys); every number is computed from the records."""
    order, rank = ({name: i for i, name in enumerate(names)} for names in ([v["name"] for v in variants], WAYS))
    cells = _by_cell(samples)
    by_metric = {"exact": cells, "consistency": phrased(cells)}
    answers = {of: {**found, **_pooled(found, meta["dataset"]["categories"])} for of, found in by_metric.items()}
    everything, phrasings = answers["exact"], answers["consistency"]
    names = sorted(everything, key=lambda c: (order[c[0]], rank[c[2]], c[1]))
    with_baseline, primary = contrasts(answers, names)
    report = {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        **meta,
        "variants": list(variants),
        "cells": [cell(name, everything[name], phrasings.get(name, [])) for name in names],
        "outcomes": [
            {
                **name._asdict(),
                "items": outcomes(cells[name]),
                "consistency": consistency(phrasings.get(name, [])),
                "agreement": agreement(cells[name]),
            }
            for name in names
            if name in cells
        ],
        "primary": primary,
        "contrasts": with_baseline,
        "non_inferiority": non_inferiority(answers, names),
        "trainings": trainings(cells, variants, meta["dataset"].get("training", "bare")),
        "positions": positions(samples),
        "collateral": list(collateral),
        "passages": list(passages),
        "mentions": list(mentions),
        "speed": list(speed),
        "lookup": list(lookup),
        "routing": _routing(routers),
        "routed": list(routed),
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
