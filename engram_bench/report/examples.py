"""Answers to show beside each other: right and wrong ones of every variant, in each way of asking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engram_bench.data.ways import WAYS
from engram_bench.records import GREEDY, Report
from engram_bench.report import views
from engram_bench.report.text import Section, Show

Questions = Mapping[tuple[str, str], Mapping[str, Report]]  # (category, item) -> variant -> its answer


def before_and_after(report: Report, samples: Sequence[Report], show: Show) -> list[Section]:
    """Correct answer and each variant's answer to a few questions of each way that was asked."""
    asked: dict[str, dict[tuple[str, str], dict[str, Report]]] = {way: {} for way in WAYS}
    for s in samples:
        if s["sample"] == GREEDY and s["seed"] == report["run"]["seeds"][0]:
            asked[s["split"]].setdefault((s["category"], s["item"]), {})[s["variant"]] = s
    answering = {name for questions in asked.values() for answers in questions.values() for name in answers}
    names = [name for name in views.names(report) if name in answering]
    rows = []
    for way, questions in asked.items():
        for question in chosen(questions):
            answers = questions[question]
            first = next(iter(answers.values()))
            outputs = [_answer(answers[name], show) if name in answers else "" for name in names]
            rows.append((views.SPLIT_NAMES[way], show(first["prompt"], 70), show(first["expected"], 40), *outputs))
    if not rows:
        return []
    return [
        Section(
            "Before and after",
            headers=("way of asking", "prompt", "correct answer", *map(show, names)),
            rows=rows,
            note="Chosen so that each variant shows a right and a wrong answer in each way, where it has some. So they "
            "say nothing about how often either occurs.",
        )
    ]


def chosen(questions: Questions) -> list[tuple[str, str]]:
    """A few questions in which every variant gives a right and a wrong answer, where it has some.

    Takes the question that shows the most of what is still missing, from a category that is not yet shown if several
    do, then the first by name.
    """
    shows = {
        question: {(name, bool(answer["exact"])) for name, answer in questions[question].items()}
        for question in sorted(questions)
    }
    missing = {shown for some in shows.values() for shown in some}
    found: list[tuple[str, str]] = []
    while missing:
        known = {category for category, _ in found}
        best = max(shows, key=lambda question: (len(shows[question] & missing), question[0] not in known))
        found.append(best)
        missing -= shows[best]
    return found


def _answer(answer: Report, show: Show) -> str:
    return f"{'✓' if answer['exact'] else '✗'} {show(answer['output'], 40)}"
