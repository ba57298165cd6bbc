"""Draws several runs side by side: what each variant recalls and keeps, and its KL, with a dot and interval per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from engram_bench.data.ways import GROUPS
from engram_bench.records import Record
from engram_bench.report.plots import COLOURS, DPI, HIGHEST, MARKERS
from engram_bench.report.runs import Run, variants
from engram_bench.report.scorecard_text import BY_CONSTRUCTION
from engram_bench.report.text import inert

ALT = "Right answers and KL of each variant in each run, with intervals"
LONGEST_NAME = 40  # characters of a run in the legend
LEGEND = 130  # characters in a row of the legend
STILL = 1e-3  # nats per token up to which the scale of KL is linear
ROW, GAP = 0.13, 0.25  # inches per run of a variant, and between variants

Cards = Mapping[tuple[str, str], Record]  # by variant and run


def draw(runs: Sequence[Run]) -> Figure | None:
    """A panel per group of ways and one for KL, a row per variant, a dot per run; None if no run has a scorecard.

    Colour and marker tell the run; the reference is black. A white marker in the last panel is 0 by construction.
    """
    cards = {(row["variant"], run.name): row for run in runs for row in run.report.get("scorecard", ())}
    rows = [variant for variant in variants(runs) if any((variant, run.name) in cards for run in runs)]
    groups = [group for group in GROUPS if any(row[group] for row in cards.values())]
    if not groups:
        return None
    height = 1.6 + len(rows) * (GAP + ROW * len(runs))
    figure = Figure(figsize=(1920 / DPI, min(height, HIGHEST)), layout="constrained")
    axes = figure.subplots(1, len(groups) + 1, sharey=True)
    span = len(runs) * ROW / (GAP + ROW * len(runs))  # share of a variant's row that its runs take
    handles = []
    for i, run in enumerate(runs):
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
        found = [(y + span * ((i + 0.5) / len(runs) - 0.5), cards[v, run.name])
                 for y, v in enumerate(rows) if (v, run.name) in cards]  # fmt: skip
        for axis, group in zip(axes, groups, strict=False):
            _rates(axis, [(y, row[group]) for y, row in found if row[group] and row[group]["rate"] is not None], style)
        _kl(axes[-1], [(y, row["kl"]) for y, row in found if row["kl"]], style)
        handles += axes[-1].plot([], [], **style)
    for axis, group in zip(axes, groups, strict=False):
        axis.set(title=group, xlim=(-4, 104))
        for y, variant in enumerate(rows):
            _without_rate(axis, y, [cards[key][group] for run in runs if (key := (variant, run.name)) in cards])
    for y, variant in enumerate(rows):
        if not any(cards[key]["kl"] for run in runs if (key := (variant, run.name)) in cards):
            _say(axes[-1], y, "not measured")
    axes[len(groups) // 2].set_xlabel("right answers, % with 95% interval")
    largest = max((row["kl"]["mean"] for row in cards.values() if row["kl"]), default=0.0)
    axes[-1].set(title="KL on unrelated text", xlabel="nats per token\nwhite: 0 by construction")
    axes[-1].set_xscale("symlog", linthresh=STILL)
    axes[-1].set_xlim(-STILL / 5, 2 * max(largest, STILL))
    for axis in axes:
        axis.grid(axis="x", alpha=0.3)
        for y in range(1, len(rows)):
            axis.axhline(y - 0.5, color="grey", linewidth=0.5, alpha=0.5)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    names = [f"{i}. {_label(run.name)}" for i, run in enumerate(runs, 1)]
    names[0] += ", the reference"
    columns = max(1, LEGEND // (max(map(len, names)) + 6))
    legend = figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    for text in [*legend.get_texts(), *axes[0].get_yticklabels()]:
        text.set_parse_math(False)  # a $ in a name is a $
    return figure


def _label(name: str) -> str:
    """A run's name, without its middle if it is long: runs may differ at either end."""
    name, half = inert(name), LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def _without_rate(axis: Any, y: float, scores: Sequence[Record | None]) -> None:
    """Say why a variant has no dot, where no run gives it a rate."""
    if all(score is None for score in scores):
        reason = "not asked"
    elif all(score is None or score["rate"] is None for score in scores):
        reason = BY_CONSTRUCTION if any(score and score["by_construction"] for score in scores) else "asked in part"
    else:
        return
    _say(axis, y, reason)


def _say(axis: Any, y: float, text: str) -> None:
    axis.text(0.5, y, text, transform=axis.get_yaxis_transform(), ha="center", va="center", color="grey", fontsize=8)


def _rates(axis: Any, found: Sequence[tuple[float, Record]], style: Mapping[str, Any]) -> None:
    """Dots with intervals, in percent; `found`: the row's place and the score."""
    rates = [100 * score["rate"] for _, score in found]
    below = [max(0.0, rate - 100 * score["low"]) for rate, (_, score) in zip(rates, found, strict=True)]
    above = [max(0.0, 100 * score["high"] - rate) for rate, (_, score) in zip(rates, found, strict=True)]
    axis.errorbar(rates, [y for y, _ in found], xerr=[below, above], markersize=5, linewidth=1.2, **style)


def _kl(axis: Any, found: Sequence[tuple[float, Record]], style: Mapping[str, Any]) -> None:
    """Dots at the mean KL; white where the definition decides it."""
    for y, kl in found:
        inside = "white" if kl["by_construction"] else style["color"]
        axis.plot([kl["mean"]], [y], markersize=5, markerfacecolor=inside, **style)
