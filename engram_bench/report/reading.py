"""A report in words: three sentences first, then what the numbers show and what they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engram_bench.records import BASELINE, Report, is_pooled, pooled
from engram_bench.report import views
from engram_bench.report.text import percent
from engram_bench.report.views import SPLIT_TITLES
from engram_bench.stats import ENOUGH_SEEDS


def opening(report: Report, name: Callable[[str], str] = str) -> list[str]:
    """Three sentences at most: recall, damage elsewhere, and what was never trained."""
    told = []
    asked = views.cells(report, "rephrased")
    groups = [c for c in views.categories(report, asked) if is_pooled(c)] or views.categories(report, asked)[:1]
    for group in groups[:1]:
        rates = [
            f"{name(v)} {percent(asked[group, v]['exact']['rate'])}" for v in views.names(report) if (group, v) in asked
        ]
        n = max(cell["n"] for (category, _), cell in asked.items() if category == group)
        told.append(f"Trained items in phrasings never trained ({name(group)}, n = {n}), exact: {', '.join(rates)}.")
    moved = [f"{name(c['variant'])} {c['kl_mean']:.2g}" for c in report["collateral"]]
    if moved:
        told.append(f"Unrelated prompts, KL from the untouched model in nats a token: {', '.join(moved)}.")
    new = [c for c in report["contrasts"] if (c["split"], c["metric"]) == ("heldout", "exact")]
    if new:
        better = sorted({name(c["b"]) for c in new if c["verdict"] == "improved"})
        told.append(
            f"Items never trained: {', '.join(better) if better else 'no variant'} shown to be better than the "
            "baseline; this is storage, not reasoning."
        )
    return told


def reading(report: Report, name: Callable[[str], str] = str) -> list[str]:
    """What the numbers show and what they do not: sentences in plain words; `name` makes a name safe to show."""
    seen, rephrased, heldout = (views.cells(report, split) for split in SPLIT_TITLES)
    lines = []
    for group in [c for c in views.categories(report, seen) if is_pooled(c)] + ["synthetic"]:
        told = [
            f"{name(v)} {percent(seen[group, v]['exact']['rate'])}"
            + (f" ({percent(rephrased[group, v]['exact']['rate'])} rephrased)" if (group, v) in rephrased else "")
            for v in views.names(report)
            if (group, v) in seen
        ]
        if told:
            title = "random pairs" if group == "synthetic" else group
            lines.append(f"On {title}, exact answers to trained items: {', '.join(told)}.")
    for c in report["collateral"]:
        lines.append(
            f"On unrelated text {name(c['variant'])} moves the model by KL {c['kl_mean']:.2g} nats per token and "
            f"leaves {percent(c['top1_unchanged'])} of its top tokens as they were."
        )
    for m in report.get("mentions", ()):
        lines.append(
            f"Where a trained input is named and something else is asked, {name(m['variant'])} tells the stored value "
            f"in {percent(m['told']['rate'])} of answers."
        )
    if (pooled("core"), BASELINE) in seen:
        lines.append(
            "The baseline is asked as it comes and is never told to answer with the bare value, so most of its gap "
            "is form, not knowledge; exact counts both. Random pairs are the part that is knowledge alone."
        )
    if heldout:
        better = sorted({f"{name(c['b'])} on {name(c['category'])}" for c in report["contrasts"]
                         if c["split"] == "heldout" and c["verdict"] == "improved"})  # fmt: skip
        lines.append(
            "Items never trained: "
            + (f"better than the baseline: {', '.join(better)}." if better else "no variant is shown to be better.")
            + " What is measured here is storage and recall, not reasoning."
        )
    keyed = [name(v["name"]) for v in report["variants"] if (v["config"].get("config") or {}).get("span") == "key"]
    if keyed:
        lines.append(
            f"{', '.join(keyed)}: the memory looks at a trained key where the prompt holds one and is silent "
            "otherwise, so it cannot disturb a prompt without one, and it cannot help with one either."
        )
    lines.append(f"One model of {report['model']['parameters']:,} parameters; {_seeds(report['run']['seeds'])}")
    return lines


def _seeds(seeds: Sequence[int]) -> str:
    """What intervals cover, and which training seeds figures are of."""
    told = ", ".join(map(str, seeds))
    if len(seeds) < 2:
        return f"intervals cover the choice of items, conditional on training seed {told}."
    crossed = ", those of contrasts the seeds as well" if len(seeds) >= ENOUGH_SEEDS else ""
    return (
        f"answers are of training seeds {told}, and intervals cover the choice of items{crossed}; collateral, "
        f"mentions, routing, speed and training are of the adapters of seed {seeds[0]} alone."
    )
