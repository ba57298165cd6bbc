"""Sections about answers: how consistently right they are, right values in another form, and the routing table."""

from __future__ import annotations

from engram_bench import stats
from engram_bench.data.ways import VALUED
from engram_bench.records import Record, Report, is_pooled
from engram_bench.report import views
from engram_bench.report.text import Section, Show, percent, rate


def consistency(report: Report, show: Show) -> Section:
    """How often the answers about one item are right, and so agree, over all its phrasings and draws."""
    cells = {at: cell for at, cell in views.cells(report, "seen").items() if cell["consistency"]}
    names = [name for name in views.names(report) if any(v == name for _, v in cells)]
    mde = views.mde(report, "seen", "consistency")
    rows = []
    for category in views.categories(report, cells):
        found = [cells.get((category, name)) for name in names]
        row = [show(category), str(max(cell["consistency"]["n"] for cell in found if cell)), mde.get(category, "")]
        rows.append([*row, *(_consistency(cell) if cell else "" for cell in found)])
    return Section(
        "Consistency and correctness",
        headers=("category", "n", "MDE", *map(show, names)),
        rows=rows,
        note="Share of an item's answers that are the right one: the greedy ones in its seen, rephrased and "
        f"paraphrased forms as far as they were asked, and {report['run']['samples']} of the seen form, sampled at "
        "temperature 0.8; in brackets a bootstrap interval over items. Agree: share of the most common sampled answer, "
        "right or wrong. Greedy: share of items with the same greedy answer when repeated in another batch "
        f"({show(report['backend']['dtype'])}).",
    )


def _consistency(cell: Report) -> str:
    """One cell: "97.5% [93–99], agree 98.0%, greedy 100.0%"."""
    right, agreed, again = cell["consistency"], cell.get("agreement"), cell.get("greedy_repeats")
    parts = [f"{percent(right['mean'])} [{100 * right['low']:.0f}–{100 * right['high']:.0f}]"]
    parts += [f"agree {percent(agreed['mean'])}"] if agreed else []
    parts += [f"greedy {percent(again['same'])}"] if again else []
    return ", ".join(parts)


def forms(report: Report, show: Show) -> Section:
    """Right values in another form told apart from wrong values, by way and variant."""
    rows = []
    for way in VALUED:
        cells = [c for c in report["cells"] if c["split"] == way and not is_pooled(c["category"])]
        for name in views.names(report):
            ours = [c for c in cells if c["variant"] == name and c.get("value_only")]
            if ours:
                n, right, other = (sum(counts) for counts in zip(*map(_counts, ours), strict=True))
                shares = [rate(stats.rate(k, int(n))) for k in (right, other, n - right - other)]
                rows.append((views.SPLIT_NAMES[way], show(name), f"{n:g}", *shares))
    return Section(
        "Right value in another form, and wrong value",
        headers=("way of asking", "variant", "n", "right", "right value, other form", "wrong"),
        rows=rows,
        note="Greedy answers of all categories that the variant was asked. Right: the whole answer is the value. Other "
        "form: the answer is not, but has the value in it as whole words, in any case. Wrong: the value is not there; "
        "answers end where the longest right answer of their category would, so it may come later. "
        "In brackets the 95% Wilson interval. report.json has the figures of each category (value_only).",
    )


def _counts(cell: Record) -> tuple[float, float, float]:
    """Items, right answers, and right values in another form."""
    return cell["n"], cell["exact"]["k"], cell["value_only"]["k"]


def routed(report: Report, show: Show) -> Section:
    """The routing table of engram-poc's README, with this run's answers."""
    rows = [
        (
            show(row["prompt"]),
            f"{row['confidence']:.1f}",
            row["route"],
            "" if row["key"] is None else f"{show(row['key'])}{'' if row['trained'] else ', not trained in this run'}",
            show(row["untouched"]),
            show(row["output"]),
        )
        for row in report.get("routed", ())
    ]
    variant = show(report["routed"][0]["variant"]) if rows else ""
    return Section(
        "Routing, end to end",
        headers=("prompt", "confidence", "route", "key of the item", "untouched model", "routed"),
        rows=rows,
        note="The five prompts of engram-poc's README. A router gives the confidence that a prompt asks for something "
        f"stored; from 0.5 on, the memory of {variant} answers, below it the untouched model. A memory with keys acts "
        "only if the prompt has a trained key to the letter. Answers are cut.",
    )
