"""Draws the plots of a report as PNG files; every number comes from report.json."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from engram_bench.data.ways import GROUPS
from engram_bench.records import BASELINE, Report
from engram_bench.report.scorecard_text import BY_CONSTRUCTION
from engram_bench.report.scorecard_text import items as items_of
from engram_bench.report.views import SPLIT_NAMES, by_construction
from engram_bench.report.views import still as still_of

# Okabe and Ito's palette is readable with any common colour blindness; the markers repeat the distinction.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "<", ">", "p")  # 11 to 8 colours: no two variants look alike
ALT = {  # caption of each plot
    "scorecard": "Right answers of each variant by group of ways of asking, with intervals",
    "exact": "Exact answers of each variant in each category, with intervals",
    "frontier": "Recall of rephrased prompts against KL on unrelated prompts, by variant",
    "items": "Which variants answer each rephrased item",
    "consistency": "Consistency of sampled answers, with intervals",
    "losses": "Training loss by epoch, and validation loss",
    "speed": "New tokens per second at batch 1, and time per token against the baseline",
    "lookup": "Look-up time against table size",
}
DPI = 150
HIGHEST = 1080 / DPI  # inches; a whole plot fits on a 1920 x 1080 screen


def write(report: Report, folder: Path) -> dict[str, bytes]:
    """Write all plots into `folder`, created if missing: 1920 pixels wide, on white to be readable on a dark page.

    Returns:
        PNG bytes by plot name; a plot without data is left out.
    """
    folder.mkdir(exist_ok=True)
    made = {}
    for name, draw in PLOTS.items():
        figure = draw(report)
        if figure is not None:
            made[name] = png(figure)
            (folder / f"{name}.png").write_bytes(made[name])
    return made


def png(figure: Figure) -> bytes:
    """The bytes of a PNG file, the same for the same figure."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, facecolor="white", metadata={"Software": None})
    return drawn.getvalue()


def _styles(report: Report) -> dict[str, tuple[str, str]]:
    """Colour and marker of each variant, the same in every plot."""
    return {v["name"]: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, v in enumerate(report["variants"])}


def _figure(height: float, columns: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(1920 / DPI, min(height, HIGHEST)), layout="constrained")
    return figure, figure.subplots(1, columns, sharey=True, squeeze=False)[0]


def _legend(figure: Figure, axis: Any) -> None:
    """Put the legend below the plot, where it covers nothing."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)


def scorecard(report: Report) -> Figure | None:
    """Right answers and interval of each variant: one panel per group of ways, one row per variant."""
    rows = report.get("scorecard", ())
    groups = [group for group in GROUPS if any(row[group] for row in rows)]
    if not groups:
        return None
    styles = _styles(report)
    figure, axes = _figure(1.3 + 0.35 * len(rows), len(groups))
    for axis, group in zip(axes, groups, strict=True):
        for y, row in enumerate(rows):
            found, (colour, marker) = row[group], styles[row["variant"]]
            if found is None or found["rate"] is None:
                given = bool(found and found["by_construction"])
                text = BY_CONSTRUCTION if given else "not asked" if found is None else "asked in part"
                axis.text(50, y, text, ha="center", va="center", color="grey", fontsize=8)
                continue
            rate, low, high = (100 * found[key] for key in ("rate", "low", "high"))
            bars = [[max(0.0, rate - low)], [max(0.0, high - rate)]]
            axis.errorbar([rate], [y], xerr=bars, fmt=marker, color=colour, markersize=6, label=row["variant"])
        axis.set_title(f"{group}\n{', '.join(items_of(report, group))}", fontsize=9)
        axis.set_xlim(-4, 104)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), [row["variant"] for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel("right answers, % with 95% interval", fontsize="medium")
    return figure


def exact(report: Report) -> Figure | None:
    """Exact rate and interval of each variant: one panel per split, one row per category."""
    if not report["cells"]:
        return None
    cells = {(c["split"], c["category"], c["variant"]): c["exact"] for c in report["cells"]}
    present = {category for _, category, _ in cells}
    pooled = sorted(present - set(report["dataset"]["categories"]))
    categories = pooled + [c for c in report["dataset"]["categories"] if c in present]
    splits = [split for split in SPLIT_NAMES if any(split == s for s, _, _ in cells)]
    variants = _styles(report)
    figure, axes = _figure(1.2 + len(categories) * max(0.4, 0.11 * len(variants)), max(1, len(splits)))
    for axis, split in zip(axes, splits, strict=False):
        for i, (variant, (colour, marker)) in enumerate(variants.items()):
            rows = [(y, cells[split, c, variant]) for y, c in enumerate(categories) if (split, c, variant) in cells]
            rows = [] if by_construction(variant, split) else rows
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
        axis.set(title=SPLIT_NAMES[split], xlim=(-4, 104))
        axis.grid(axis="x", alpha=0.3)
    for axis in axes if len(splits) < 4 else [axes[len(splits) // 2]]:  # labels of narrow panels would overlap
        axis.set_xlabel("exact answers, % with 95% interval")
    axes[0].set_yticks(range(len(categories)), categories)
    axes[0].set_ylim(len(categories) - 0.5, -0.5)
    _legend(figure, axes[0])
    return figure


def frontier(report: Report) -> Figure | None:
    """Recall of rephrased prompts against KL on unrelated prompts; up and to the left is better.

    A white marker stands for a KL of 0 by construction.
    """
    moved = {c["variant"]: c["kl_mean"] for c in report["collateral"]} | {BASELINE: 0.0}
    recalled = {c["variant"]: c for c in report["cells"] if (c["category"], c["split"]) == ("all core", "rephrased")}
    shown = [name for name in _styles(report) if name in moved and name in recalled]
    if len(shown) < 2:
        return None
    figure, (axis,) = _figure(4.5)
    still = still_of(report)
    for name in shown:
        exact, (colour, marker) = recalled[name]["exact"], _styles(report)[name]
        low, high = exact["rate"] - exact["low"], exact["high"] - exact["rate"]
        bars = [[100 * max(0.0, low)], [100 * max(0.0, high)]]
        inside = "white" if name in still else colour
        axis.errorbar(
            [moved[name]], [100 * exact["rate"]], yerr=bars, fmt=marker, color=colour, markersize=9, label=name,
            markerfacecolor=inside,
        )  # fmt: skip
    axis.set_xscale("symlog", linthresh=1e-4)
    axis.set(xlim=(-2e-5, None), ylim=(-4, 104))
    axis.set_xlabel("KL(baseline ‖ variant) on unrelated prompts, nats per token; white: 0 by construction")
    axis.set(ylabel="exact, all core, rephrased, %")
    axis.grid(alpha=0.3)
    _legend(figure, axis)
    return figure


def losses(report: Report) -> Figure | None:
    """Training loss by epoch, and the validation loss after the last epoch."""
    trained = {v["name"]: v["train"] for v in report["variants"] if v["train"] and not v["config"].get("adapter_of")}
    if not trained:
        return None
    figure, (axis,) = _figure(4.0)
    for name, train in trained.items():
        colour, marker = _styles(report)[name]
        epochs = range(1, len(train["losses"]) + 1)
        axis.plot(epochs, train["losses"], marker=marker, color=colour, label=name)
        if train.get("validation_loss") is not None:
            label = f"{name}, validation"
            axis.plot([epochs[-1]], [train["validation_loss"]], "*", color=colour, markersize=12, label=label)
    axis.set(yscale="log", xlabel="epoch", ylabel="loss of the answer tokens, nats")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    _legend(figure, axis)
    return figure


def consistency(report: Report) -> Figure | None:
    """Consistency and its interval, by pooled group, or by category if no group is pooled."""
    cells = [c for c in report["cells"] if c["consistency"] and c["category"] not in report["dataset"]["categories"]]
    cells = cells or [c for c in report["cells"] if c["consistency"]]
    groups = list(dict.fromkeys(c["category"] for c in cells))
    if not groups:
        return None
    figure, (axis,) = _figure(1.4 + 0.7 * len(groups))
    for i, (name, (colour, marker)) in enumerate(_styles(report).items()):
        rows = [(groups.index(c["category"]), c["consistency"]) for c in cells if c["variant"] == name]
        if not rows:
            continue
        axis.errorbar(
            [100 * c["mean"] for _, c in rows],
            [y + 0.1 * (i - len(report["variants"]) / 2) for y, _ in rows],
            xerr=[[100 * max(0.0, c["mean"] - c["low"]) for _, c in rows],
                  [100 * max(0.0, c["high"] - c["mean"]) for _, c in rows]],
            fmt=marker, color=colour, markersize=6, label=name,
        )  # fmt: skip
    axis.set_yticks(range(len(groups)), groups)
    axis.set(ylim=(len(groups) - 0.5, -0.5), xlim=(-4, 104), xlabel="consistency, % with 95% interval")
    axis.grid(axis="x", alpha=0.3)
    _legend(figure, axis)
    return figure


def speed(report: Report) -> Figure | None:
    """New tokens per second at batch 1, and time per token against the baseline."""
    if not report["speed"]:
        return None
    figure, (axis,) = _figure(1.2 + 0.5 * len(report["speed"]))
    names = [s["variant"] for s in report["speed"]]
    rates = [s["decode_tokens_s"] for s in report["speed"]]
    bars = axis.barh(names, rates, color=[_styles(report)[name][0] for name in names])
    labels = [f"{s['decode_tokens_s']:.1f} ({100 * s['overhead']:+.0f}%)" for s in report["speed"]]
    axis.bar_label(bars, labels, padding=4)
    axis.set(xlim=(0, 1.1 * max(rates)))
    axis.set_xlabel("new tokens per second at batch 1; in brackets: time per token against the baseline")
    axis.invert_yaxis()
    return figure


def lookup(report: Report) -> Figure | None:
    """Time to find the table rows of a token's n-grams, by table size."""
    if not report.get("lookup"):
        return None
    figure, (axis,) = _figure(3.5)
    rows = [measured["rows"] for measured in report["lookup"]]
    ways = {
        "seconds": "as many touched rows for every size, in memory",
        "mapped_seconds": "all rows, in a memory-mapped file",
    }
    for (key, label), marker, color in zip(ways.items(), "Ds", COLOURS[2:], strict=False):
        if all(key in measured for measured in report["lookup"]):
            axis.plot(rows, [1e6 * m[key] for m in report["lookup"]], f"{marker}-", color=color, label=label)
    axis.set(xscale="log", xlabel="rows per table", ylabel="µs per token and layer")
    axis.set_ylim(0, 1.5 * axis.get_ylim()[1])
    axis.legend(loc="upper left")
    axis.grid(alpha=0.3)
    return figure


def items(report: Report) -> Figure | None:
    """Which variants answer each rephrased item: one row per variant, one column per item."""
    found = [o for o in report["outcomes"] if o["split"] == "rephrased"]
    variants = [name for name in _styles(report) if any(o["variant"] == name for o in found)]
    keys = [(o["category"], item) for o in found if o["variant"] == BASELINE for item in sorted(o["items"])]
    if not keys:
        return None
    right = {(o["variant"], o["category"], item): share for o in found for item, share in o["items"].items()}
    grid = [[right.get((name, *key), 0.0) for key in keys] for name in variants]
    figure, (axis,) = _figure(1.2 + 0.35 * len(variants))
    smooth = "nearest" if len(keys) < 1000 else "auto"  # many items share a pixel: blend them
    axis.imshow(grid, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation=smooth)
    axis.set_yticks(range(len(variants)), variants)
    starts = [i for i, (category, _) in enumerate(keys) if i == 0 or keys[i - 1][0] != category]
    axis.set_xticks(starts, [keys[i][0] for i in starts], rotation=35, ha="right")
    axis.set_xlabel("items, rephrased, by category; light: answered exactly")
    return figure


PLOTS: Mapping[str, Callable[[Report], Figure | None]] = {
    "scorecard": scorecard,
    "exact": exact,
    "frontier": frontier,
    "items": items,
    "consistency": consistency,
    "losses": losses,
    "speed": speed,
    "lookup": lookup,
}
