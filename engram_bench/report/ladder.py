"""The ladder: what each single change from the paper's memory to the keyed one brings and costs, and the ablations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engram_bench import stats
from engram_bench.records import Record, Report, is_pooled
from engram_bench.report import views
from engram_bench.report.measures import greedy
from engram_bench.report.scorecard_text import BY_CONSTRUCTION
from engram_bench.report.text import Section, Show, percent
from engram_bench.variants import ABLATIONS, LADDER

POSITIONS = ("last", "first", "middle")
KEY = "{input}"
MARKS = " \t.,:;?!\"'()"


def position(phrasing: str) -> str:
    """Where the key stands in a sentence, punctuation aside: last, first, or in the middle."""
    bare = phrasing.strip(MARKS)
    if bare.endswith(KEY):
        return "last"
    return "first" if bare.startswith(KEY) else "middle"


def positions(samples: Iterable[Record]) -> list[Record]:
    """Right answers to rephrased questions by variant and position of the key; without a key to the letter: none."""
    found: dict[tuple[str, str], list[bool]] = {}
    for sample in greedy(samples):
        if sample["split"] == "rephrased" and KEY in sample["phrasing"]:
            found.setdefault((sample["variant"], position(sample["phrasing"])), []).append(sample["exact"])
    return [
        {"variant": variant, "position": at, "n": len(right), **stats.rate(sum(right), len(right))}
        for (variant, at), right in found.items()
    ]


def section(report: Report, show: Show) -> Section:
    """One row per rung of the run, in the ladder's order, then one per ablation."""
    named = {v["name"]: v for v in report["variants"]}
    order = [name for name in dict.fromkeys((*LADDER, *ABLATIONS)) if name in named]
    steps = any(name not in ("engram", "engram-keyed") for name in order)
    return Section(
        "The ladder from the paper's memory to the keyed one",
        headers=(
            *("variant", "seen", *(f"rephrased, key {at}" for at in POSITIONS), "paraphrased", "both of two"),
            *("recited", "KL, unrelated", "KL, keys in prose", "KL, keys in code", "train, s"),
        ),
        rows=[_row(report, show, name) for name in order] if steps else [],
        note="Each rung changes one field of the one before; each ablation one field of `engram`. Shares of right "
        "answers over all categories; KL in nats per token.",
    )


def _row(report: Report, show: Show, name: str) -> Sequence[str]:
    at = {p["position"]: p for p in report.get("positions", ()) if p["variant"] == name}
    recited = next((m["told"]["rate"] for m in report.get("mentions", ()) if m["variant"] == name), None)
    card: Report = next((card for card in report.get("scorecard", ()) if card["variant"] == name), {})
    unrelated = card.get("kl") or {}
    passages = {p["kind"]: p["kl_mean"] for p in report.get("passages", ()) if p["variant"] == name}
    train = next(v["train"] for v in report["variants"] if v["name"] == name)
    return (
        show(name),
        _share(report, name, "seen"),
        *(percent(at[place]["rate"]) if place in at else "" for place in POSITIONS),
        _share(report, name, "paraphrased"),
        _share(report, name, "combined"),
        "" if recited is None else percent(recited),
        BY_CONSTRUCTION if unrelated.get("by_construction") else _nats(unrelated.get("mean")),
        *(_nats(passages.get(f"{kind} with keys")) for kind in ("prose", "code")),
        f"{train['seconds']:.0f}" if train else "",
    )


def _nats(kl: float | None) -> str:
    return "" if kl is None else f"{kl:.2g}"


def _share(report: Report, variant: str, way: str) -> str:
    """Share of right answers in a way, over all categories; empty if it was not asked."""
    cells = [c for (category, v), c in views.cells(report, way).items() if v == variant and not is_pooled(category)]
    n = sum(cell["n"] for cell in cells)
    return percent(sum(cell["exact"]["k"] for cell in cells) / n) if n else ""
