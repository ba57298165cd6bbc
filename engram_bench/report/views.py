"""Look-ups in report.json that report.md and report.html share: cells, names, order."""

from __future__ import annotations

from collections.abc import Mapping

from engram_bench.data.ways import UNTOUCHED, WAYS
from engram_bench.records import BASELINE, Report, is_pooled

SPLIT_NAMES = {name: "held out" if name == "heldout" else name for name in WAYS}
SPLIT_TITLES = {name: f"{SPLIT_NAMES[name].capitalize()}: {way.asked}" for name, way in WAYS.items()}


def by_construction(variant: str, split: str) -> bool:
    """Whether a variant is right in a way by definition: the baseline, where its own answer is the right one."""
    return variant == BASELINE and WAYS[split].right == UNTOUCHED


def looks_for_keys(variant: Report) -> bool:
    """Whether a variant is a memory that acts only on texts that hold a known key."""
    config = variant["config"]
    return config.get("kind") == "engram-hearing" or (config.get("config") or {}).get("span") == "key"


def still(report: Report) -> frozenset[str]:
    """Variants whose KL on unrelated text is 0 by definition: such a memory is not consulted on text without a key."""
    return frozenset(
        row["variant"] for row in report.get("scorecard", ()) if row["kl"] and row["kl"]["by_construction"]
    )


def sanity_checks(report: Report) -> list[str]:
    """Variants with a damaged table: they check the measurement and are no findings."""
    return [v["name"] for v in report["variants"] if v["config"].get("damage")]


def cells(report: Report, split: str) -> dict[tuple[str, str], Report]:
    """The cells of a split by category and variant."""
    return {(c["category"], c["variant"]): c for c in report["cells"] if c["split"] == split}


def names(report: Report) -> list[str]:
    """Names of all variants, in the order of the run."""
    return [v["name"] for v in report["variants"]]


def categories(report: Report, cells: Mapping[tuple[str, str], Report]) -> list[str]:
    """Categories of some cells: pooled groups first, then single categories in the order of the data."""
    present = {category for category, _ in cells}
    pooled = sorted(c for c in present if is_pooled(c))
    return pooled + [c for c in report["dataset"]["categories"] if c in present]


def mde(report: Report, split: str, metric: str) -> dict[str, str]:
    """Minimum detectable effect by category, in points: the largest over the variants."""
    found: dict[str, float] = {}
    for c in report["contrasts"]:
        if (c["split"], c["metric"]) == (split, metric):
            found[c["category"]] = max(c["mde"], found.get(c["category"], 0.0))
    return {category: f"{100 * mde:.0f}" for category, mde in found.items()}
