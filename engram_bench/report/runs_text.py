"""Renders several runs side by side: what was run, scorecards, differences to the first run, items that flipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engram_bench.data.ways import GROUPS
from engram_bench.records import Record
from engram_bench.report import scorecard_text
from engram_bench.report.runs import RIGHT, WRONG, Cell, Flip, Item, Run, picked, variants
from engram_bench.report.text import Section, Show, inert, p_value, percent, points
from engram_bench.stats import LEVEL

MOST_SHOWN = 20  # flipped items
DIFFERENCE = ("variant", "way", "run", "n", "reference → run", "points [95%]", "p Holm", "verdict", "MDE")
LONGEST_ANSWER = 40  # characters of an answer in the table of flipped items
VERDICTS = ("regressed", "improved", "inconclusive", "unchanged")

Samples = Mapping[str, Mapping[tuple[Cell, Item], Record]]  # by run, then by cell and item: lines of samples.jsonl


def heading(runs: Sequence[Run], show: Show) -> str:
    """The title of the page."""
    return f"engram-bench compare: {len(runs)} runs of {show(runs[0].report['model']['id'])}"


def opening(runs: Sequence[Run], show: Show) -> list[str]:
    """What the runs share and which is the reference, in two sentences."""
    return [
        f"All asked about the same {runs[0].report['dataset']['items']:,} items, with the same prompts.",
        f"The reference is the first run, {show(runs[0].name)}.",
    ]


def made(runs: Sequence[Run], show: Show) -> Section:
    """One row per run: when and how it was made."""
    rows = []
    for name, report, _ in runs:
        run, backend = report["run"], report["backend"]
        seeds = ", ".join(map(str, run["seeds"]))
        rows.append(
            (
                show(name),
                show(run["started"]),
                show(run["profile"]),
                show(f"{backend['name']} on {backend['device']}, {backend['dtype']}"),
                seeds,
                str(run["samples"]),
                f"{sum(run.get('kept', {}).values()):,}",
                f"{run['duration_s']:,.0f} s",
                show((run["git_commit"] or "unknown")[:8]),
            )
        )
    return Section(
        "Runs",
        headers=(
            *("run", "started", "profile", "backend", "training seeds", "samples"),
            *("kept answers", "duration", "commit"),
        ),
        rows=rows,
        note="Samples: answers drawn per item. Kept answers: those of earlier runs, which were not asked again.",
    )


def scorecards(runs: Sequence[Run], show: Show) -> Section:
    """One row per variant and run, from the scorecard of each report."""
    cards = {(row["variant"], run.name): row for run in runs for row in run.report.get("scorecard", ())}
    older = [show(run.name) for run in runs if not run.report.get("scorecard")]
    asked = [scorecard_text.asked(run.report) for run in runs]
    alike = len(set(asked)) == 1
    return Section(
        "Scorecards",
        intro=f"{asked[0]}." if alike else "",
        points=[] if alike else [f"{show(run.name)}: {told}." for run, told in zip(runs, asked, strict=True)],
        headers=("variant", "run", *GROUPS, "KL on unrelated text", "training", "s per right answer"),
        rows=[
            (show(variant), show(run.name), *scorecard_text.brief(cards[variant, run.name]))
            for variant in variants(runs)
            for run in runs
            if (variant, run.name) in cards
        ],
        note="Right answers with 95% interval, KL in nats per token, seconds of training and per right answer, as in "
        "each run's own report."
        + (f" Without a scorecard, from an older version: {', '.join(older)}." if older else ""),
    )


def differences(rows: Sequence[Record], runs: Sequence[Run], margin: float, show: Show) -> Section:
    """One row per variant, way and run: the paired difference to the reference."""
    return Section(
        "Differences to the reference run",
        intro=f"{summary(rows, show(runs[0].name))}. A run regressed in a way of asking if it is significantly worse "
        f"(p Holm below {1 - LEVEL:.2f}) by more than {100 * margin:g} points.",
        headers=DIFFERENCE,
        rows=[_difference(row, show) for row in rows if not row["identical"]],
        note="Paired on the items that both runs answered, over all categories; an item counts by its share of right "
        "greedy answers over training seeds. Holm's adjustment covers all rows. Intervals cover the choice of items, "
        "not of training seeds. MDE: the least difference in points that the test detects with 80% power. A variant or "
        "way that only one of the two runs has is left out, and so is what a definition decides. A comparison whose "
        "items all agree has no row here.",
    )


def agreements(rows: Sequence[Record], show: Show) -> Section:
    """The comparisons in which every item agrees."""
    agreeing = [_difference(row, show) for row in rows if row["identical"]]
    return Section(
        "Without a difference",
        intro="" if agreeing else "In each comparison with the reference run some items differ.",
        headers=DIFFERENCE,
        rows=agreeing,
        folded=f"{len(agreeing)} comparisons with the reference run, in which every item agrees",
    )


def _difference(row: Record, show: Show) -> tuple[str, ...]:
    return (
        show(row["variant"]),
        row["split"],
        show(row["run"]),
        str(row["n"]),
        f"{percent(row['before'])} → {percent(row['after'])}",
        f"{points(row['difference'])} [{points(row['low'])}, {points(row['high'])}]",
        p_value(row["p_holm"]),
        row["verdict"],
        f"{100 * row['mde']:.0f}",
    )


def summary(rows: Sequence[Record], reference: str) -> str:
    """One line: how many comparisons have which verdict."""
    if not rows:
        return f"nothing to compare: no other run has a variant and a way of asking of {reference}"
    counts = {name: sum(row["verdict"] == name for row in rows) for name in VERDICTS}
    told = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    return f"{len(rows)} comparisons with {reference}: {told}"


def regressions(rows: Sequence[Record]) -> list[str]:
    """A line per regression, safe for a terminal."""
    return [
        inert(
            f"regressed: {row['run']}: {row['variant']}, {row['split']}: {percent(row['before'])} -> "
            f"{percent(row['after'])}, p Holm {p_value(row['p_holm'])}"
        )
        for row in rows
        if row["verdict"] == "regressed"
    ]


def flipped(common: Mapping[Cell, int], flips: Sequence[Flip], runs: Sequence[Run], show: Show) -> Section:
    """How many items of each variant and way are right in one run and wrong in another."""
    rows = []
    for cell, n in common.items():
        found = [flip for flip in flips if flip.cell == cell]
        right = [str(sum(flip.shares[i] == RIGHT for flip in found)) for i in range(len(runs))]
        if found:
            rows.append((show(cell[0]), cell[1], str(n), str(len(found)), *right))
    return Section(
        "Items that flipped",
        intro="" if rows else "No item is right in one run and wrong in another.",
        headers=("variant", "way", "items", "flipped", *(f"right in {show(run.name)}" for run in runs)),
        rows=rows,
        note="Items: those that two runs or more answered. Flipped: right in one run with each of its training seeds, "
        "and wrong in another with each of its. The last columns count flipped items only."
        if rows
        else "",
    )


def examples(flips: Sequence[Flip], runs: Sequence[Run], samples: Samples, show: Show) -> Section:
    """Which items flipped, with prompt and wrong answers where a run's answers are at hand."""
    shown = picked(flips, MOST_SHOWN)
    unknown = [show(run.name) for run in runs if not samples[run.name]]
    rows = []
    for cell, item, shares in shown:
        lines = [samples[run.name].get((cell, item)) for run in runs]
        prompt = next((show(line["prompt"]) for line in lines if line), show(item[1]))
        answers = [_answer(share, line, show) for share, line in zip(shares, lines, strict=True)]
        rows.append((show(cell[0]), cell[1], show(item[0]), prompt, *answers))
    return Section(
        "Which items flipped",
        intro=f"{len(shown)} of {len(flips)}, taken from each variant and way in turns." if shown else "",
        headers=("variant", "way", "category", "item", *(show(run.name) for run in runs)),
        rows=rows,
        note=f"No answers of the run lie beside the report: {', '.join(unknown)}." if unknown else "",
    )


def _answer(share: float | None, line: Record | None, show: Show) -> str:
    """ "right", "wrong: the answer", "67% of seeds" or "not asked"."""
    if share is None:
        return "not asked"
    if share not in (RIGHT, WRONG):
        return f"{100 * share:.0f}% of seeds"
    if share == RIGHT:
        return "right"
    return f"wrong: {show(line['output'], LONGEST_ANSWER)}" if line else "wrong"
