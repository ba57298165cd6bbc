"""Published figures of other projects, beside the nearest cells of a run."""

from __future__ import annotations

from engram_bench.records import BASELINE, Report
from engram_bench.report import views
from engram_bench.report.text import Section, Show, percent

PUBLISHED = (  # source, figure under its own rules, and the nearest (variant, category) here
    (
        "engram-poc, LoRA on MLX, SmolLM-135M",
        "8.65% → 11.54% (9 → 12 of 104; prefix rule; 80 of the 104 were in train)",
        ("lora", "all core"),
    ),
    ("engram-poc, LoRA with Unsloth, RTX 3060", "8.59% → 6.25%; a later run 14.06% (18 of 128)", ("lora", "all core")),
    ("engram-poc, 500-slot hash memory, acronyms", "12% → 75% (n = 8)", ("engram-unigram", "acronym")),
    ("engram-poc, 500-slot hash memory, element names", "0% → 67% (n = 3)", ("engram-unigram", "element_name")),
    ("engram-poc, 500-slot hash memory, capitals", "22% → 0%", ("engram-unigram", "capital")),
    ("engram-poc, 500-slot hash memory, random pairs", "0% → 0%", ("engram-unigram", "synthetic")),
    (
        "engraft-ngram, 51B base, 100 invented facts",
        "0.5% → 84.1%, KL on other text 0.0131",
        ("engram-keyed", "synthetic"),
    ),
)


def section(report: Report, show: Show) -> Section:
    """Published figures beside this run's nearest cells, and why the two are different measurements."""
    cells = views.cells(report, "seen")
    rows = []
    for source, figure, (variant, category) in PUBLISHED:
        before, after = cells.get((category, BASELINE)), cells.get((category, variant))
        ours = "not in this run"
        if before and after:
            rates = f"{percent(before['prefix']['rate'])} → {percent(after['prefix']['rate'])}"
            ours = f"{rates} (n = {after['n']}; {show(variant)}, {show(category)})"
        rows.append((show(source), show(figure), ours))
    return Section(
        "Published figures beside this run",
        headers=("source", "published", "this run, seen, prefix rule"),
        rows=rows,
        note="Data, prompts, splits and rules differ, so compare only the direction of an effect. The prefix rule is "
        "from engram-poc: an answer counts if it starts with the correct one.",
    )
