"""Answers to show beside each other: right and wrong ones of every variant, in each way of asking.

An answer that is right by construction, such as the baseline's where its own answer is the right one, gets no mark and
counts neither as a right answer to show nor as a wrong one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from engram_bench.data.ways import WAYS
from engram_bench.records import GREEDY, Report
from engram_bench.report import views
from engram_bench.report.text import Section, Show

PROMPT, ANSWER = 160, 80  # characters shown: the key and the value that decides must be among them

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
        for question in chosen(questions, {name for name in names if views.by_construction(name, way)}):
            answers = questions[question]
            first = next(iter(answers.values()))
            outputs = [_answer(way, answers[name], show) if name in answers else "" for name in names]
            rows.append(
                (views.SPLIT_NAMES[way], show(first["prompt"], PROMPT), show(first["expected"], ANSWER), *outputs)
            )
    if not rows:
        return []
    faultless = {
        name: [
            views.SPLIT_NAMES[way]
            for way, questions in asked.items()
            if not views.by_construction(name, way) and _all_right(name, questions)
        ]
        for name in names
    }
    return [
        Section(
            "Before and after",
            points=[
                f"{show(name)} has no wrong answer to show in: {', '.join(ways)}."
                for name, ways in faultless.items()
                if ways
            ],
            headers=("way of asking", "prompt", "correct answer", *map(show, names)),
            rows=rows,
            note="Chosen so that each variant shows a right and a wrong answer in each way, where it has some. So they "
            "say nothing about how often either occurs. An answer without a mark is right by construction.",
        )
    ]


def chosen(questions: Questions, left_out: Collection[str] = ()) -> list[tuple[str, str]]:
    """A few questions in which every variant gives a right and a wrong answer, where it has some.

    Takes the question that shows the most of what is still missing, from a category that is not yet shown if several
    do, then the first by name. Variants that are `left_out` need not be shown; if no other answered, one question is.
    """
    shows = {
        question: {
            (name, bool(answer["exact"])) for name, answer in questions[question].items() if name not in left_out
        }
        for question in sorted(questions)
    }
    missing = {shown for some in shows.values() for shown in some}
    found: list[tuple[str, str]] = [] if missing else list(shows)[:1]
    while missing:
        known = {category for category, _ in found}
        best = max(shows, key=lambda question: (len(shows[question] & missing), question[0] not in known))
        found.append(best)
        missing -= shows[best]
    return found


def _all_right(name: str, questions: Questions) -> bool:
    """Whether a variant answered, and nothing wrong."""
    own = [answers[name]["exact"] for answers in questions.values() if name in answers]
    return bool(own) and all(own)


def _answer(way: str, answer: Report, show: Show) -> str:
    shown = show(answer["output"], ANSWER)
    if views.by_construction(answer["variant"], way):
        return shown
    return f"{'✓' if answer['exact'] else '✗'} {shown}"
