"""A report in words: the opening sentences, and what the numbers show and do not show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engram_bench.records import BASELINE, Report, is_pooled, pooled
from engram_bench.report import views
from engram_bench.report.text import percent
from engram_bench.stats import ENOUGH_SEEDS


def heading(report: Report, show: Callable[[str], str] = str) -> str:
    """The report's title; it says if the report was rebuilt from other answers than the run's."""
    partial = report["run"].get("partial")
    return "engram-bench report" + (f" (partial: {show(partial)})" if partial else "")


def opening(report: Report, name: Callable[[str], str] = str) -> list[str]:
    """Up to three sentences: recall, change on unrelated prompts, and items never trained."""
    sentences = []
    asked = views.cells(report, "rephrased")
    groups = [c for c in views.categories(report, asked) if is_pooled(c)] or views.categories(report, asked)[:1]
    for group in groups[:1]:
        rates = [
            f"{name(v)} {percent(asked[group, v]['exact']['rate'])}" for v in views.names(report) if (group, v) in asked
        ]
        n = max(cell["n"] for (category, _), cell in asked.items() if category == group)
        sentences.append(
            f"Trained items in phrasings never trained ({name(group)}, n = {n}), exact: {', '.join(rates)}."
        )
    still = views.still(report)
    moved = [
        f"{name(c['variant'])} {'0 by construction' if c['variant'] in still else format(c['kl_mean'], '.2g')}"
        for c in report["collateral"]
    ]
    if moved:
        sentences.append(f"Unrelated prompts, KL from the baseline in nats per token: {', '.join(moved)}.")
    new = [c for c in report["contrasts"] if (c["split"], c["metric"]) == ("heldout", "exact")]
    if new:
        better = sorted({name(c["b"]) for c in new if c["verdict"] == "improved"})
        sentences.append(
            f"Items never trained, significantly better than the baseline: {', '.join(better) or 'no variant'}; this "
            "measures storage, not reasoning."
        )
    return sentences


def reading(report: Report, name: Callable[[str], str] = str) -> list[str]:
    """Sentences on what the numbers show and do not show; `name` makes a name safe to display."""
    seen, rephrased, heldout = (views.cells(report, split) for split in ("seen", "rephrased", "heldout"))
    lines = []
    for group in [c for c in views.categories(report, seen) if is_pooled(c)] + ["synthetic"]:
        rates = [
            f"{name(v)} {percent(seen[group, v]['exact']['rate'])}"
            + (f" ({percent(rephrased[group, v]['exact']['rate'])} rephrased)" if (group, v) in rephrased else "")
            for v in views.names(report)
            if (group, v) in seen
        ]
        if rates:
            title = "random pairs" if group == "synthetic" else group
            lines.append(f"On {title}, exact answers to trained items: {', '.join(rates)}.")
    still = views.still(report)
    for c in report["collateral"]:
        if c["variant"] in still:
            continue
        lines.append(
            f"On unrelated text, {name(c['variant'])} shifts the model by a KL of {c['kl_mean']:.2g} nats per token "
            f"and leaves {percent(c['top1_unchanged'])} of its top-1 tokens unchanged."
        )
    for p in report.get("passages", ()):
        fires = "" if p["firings"] is None else f"acts {p['firings_per_1000_words']:.1f} times per 1,000 words and "
        lines.append(
            f"In {p['kind']} that asks nothing, {name(p['variant'])} {fires}shifts the continuation by a KL of "
            f"{p['kl_mean']:.2g} nats per token."
        )
    for m in report.get("mentions", ()):
        lines.append(
            f"When a prompt names a trained input but asks for something else, {name(m['variant'])} recites the stored "
            f"value in {percent(m['told']['rate'])} of answers."
        )
    if (pooled("core"), BASELINE) in seen:
        lines.append(
            "No prompt asks for the bare value, so most of the baseline's gap is form, not knowledge. Exact counts "
            "both; only random pairs measure knowledge alone."
        )
    if heldout:
        better = sorted({f"{name(c['b'])} on {name(c['category'])}" for c in report["contrasts"]
                         if c["split"] == "heldout" and c["verdict"] == "improved"})  # fmt: skip
        lines.append(
            f"Items never trained, significantly better than the baseline: {', '.join(better) or 'no variant'}. "
            "This run measures storage and recall, not reasoning."
        )
    keyed = [name(v["name"]) for v in report["variants"] if views.looks_for_keys(v)]
    if keyed:
        lines.append(
            f"{', '.join(keyed)}: the memory acts only on prompts that contain a trained key. By construction it "
            "neither disturbs nor improves any other prompt, so a KL of 0 on unrelated text is no finding."
        )
    if checks := [name(check) for check in views.sanity_checks(report)]:
        lines.append(
            f"{', '.join(checks)}: sanity checks, not findings. A memory without its rows' contents must answer "
            "nothing; an answer would show a fault in the measurement."
        )
    lines.append(f"One model of {report['model']['parameters']:,} parameters; {_seeds(report['run']['seeds'])}")
    return lines


def _seeds(seeds: Sequence[int]) -> str:
    """Which training seeds the figures come from, and what the intervals cover."""
    listed = ", ".join(map(str, seeds))
    if len(seeds) < 2:
        return f"intervals cover the choice of items, conditional on training seed {listed}."
    crossed = " (for contrasts, also the choice of seeds)" if len(seeds) >= ENOUGH_SEEDS else ""
    return (
        f"answers come from training seeds {listed}, and intervals cover the choice of items{crossed}; collateral, "
        f"recited values, routing, speed and training use the adapters of seed {seeds[0]} alone."
    )
