"""Plots of a report, as PNG files beside it; every number in them is from report.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with any common colour blindness; the marker says the same once more.
STYLES = (
    ("#000000", "o"), ("#E69F00", "s"), ("#0072B2", "D"), ("#009E73", "^"),
    ("#CC79A7", "v"), ("#D55E00", "P"), ("#56B4E9", "X"), ("#F0E442", "*"),
)  # fmt: skip
SPLITS = {"seen": "seen", "rephrased": "rephrased", "heldout": "held out"}
DPI = 150

Record = Mapping[str, Any]


def write(report: Record, folder: Path) -> None:
    """All plots into `folder`, which is made: exact.png, 1920 pixels wide, on white so that it reads on a dark page."""
    folder.mkdir(exist_ok=True)
    exact(report).savefig(folder / "exact.png", dpi=DPI, facecolor="white", metadata={"Software": None})


def exact(report: Record) -> Figure:
    """Exact rate of each variant in each category with its interval: a panel a split, a row a category."""
    cells = {(c["split"], c["category"], c["variant"]): c["exact"] for c in report["cells"]}
    there = {category for _, category, _ in cells}
    pooled = sorted(there - set(report["dataset"]["categories"]))
    categories = pooled + [c for c in report["dataset"]["categories"] if c in there]
    splits = [split for split in SPLITS if any(split == s for s, _, _ in cells)]
    variants = [v["name"] for v in report["variants"]]
    height = 1.2 + len(categories) * max(0.4, 0.11 * len(variants))
    figure = Figure(figsize=(1920 / DPI, height), layout="constrained")
    axes = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axis, split in zip(axes, splits, strict=True):
        for i, variant in enumerate(variants):
            rows = [(y, cells[split, c, variant]) for y, c in enumerate(categories) if (split, c, variant) in cells]
            colour, marker = STYLES[i % len(STYLES)]
            axis.errorbar(
                [100 * cell["rate"] for _, cell in rows],
                [y + 0.8 * ((i + 0.5) / len(variants) - 0.5) for y, _ in rows],
                xerr=[
                    [100 * max(0.0, cell["rate"] - cell["low"]) for _, cell in rows],
                    [100 * max(0.0, cell["high"] - cell["rate"]) for _, cell in rows],
                ],
                fmt=marker,
                color=colour,
                markersize=4,
                label=variant,
            )
        axis.set(title=SPLITS[split], xlim=(-4, 104), xlabel="exact answers, % with 95% interval")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(categories)), categories)
    axes[0].set_ylim(len(categories) - 0.5, -0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure
