"""Renders report.html: one file that needs no network, with a table of every answer to search and compare.

Text from data or a model never becomes markup: Jinja2 escapes it, and the page's script sets it as `textContent`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from engram_bench.records import CLAIMS, Record, Report
from engram_bench.report import sections, views
from engram_bench.report.examples import before_and_after
from engram_bench.report.plots import ALT
from engram_bench.report.reading import heading, opening
from engram_bench.report.text import Section, short, stands_out


def render(report: Report, samples: Sequence[Report], plots: Mapping[str, bytes]) -> str:
    """Render the whole page.

    Args:
        report: report.json.
        samples: lines of samples.jsonl; the page shows the greedy answers of the first training seed.
        plots: PNG bytes by plot name, from `plots.write`.
    """
    names = views.names(report)
    left, last = (names[0], names[-1]) if names else ("", "")
    right = CLAIMS[-1] if CLAIMS[-1] in names else last
    return page(
        heading=heading(report, short),
        opening=opening(report, short),
        results=sections.results(report, short),
        images=[(ALT[name], png) for name, png in plots.items()],
        answers={"variants": names, "rows": _answers(report, samples), "left": left, "right": right},
        details=[*before_and_after(report, samples, short), *sections.details(report, short)],
    )


def page(
    *,
    heading: str,
    opening: Sequence[str],
    results: Sequence[Section],
    images: Sequence[tuple[str, bytes]],
    answers: Record | None,
    details: Sequence[Section],
) -> str:
    """Fill in the template, which escapes all text.

    Args:
        heading: the title.
        opening: sentences of the first paragraph.
        results: sections before the plots.
        images: caption and PNG bytes of each plot.
        answers: of the table of every answer: names of the variants, rows as in `_answers`, and the variants that it
            shows first, left and right; None to leave the table out.
        details: sections after the table.
    """
    return _template().render(
        heading=heading,
        opening=opening,
        results=results,
        images=[(alt, base64.b64encode(png).decode()) for alt, png in images],
        answers=answers,
        details=details,
    )


def _answers(report: Report, samples: Sequence[Report]) -> list[list[Any]]:
    """One [category, split, prompt, expected, {variant: [output, exact]}] per question."""
    found: dict[tuple[str, str, str], list[Any]] = {}
    for s in samples:
        if s["sample"] == 0 and s["seed"] == report["run"]["seeds"][0]:
            key = s["category"], s["split"], s["item"]
            row = found.setdefault(key, [s["category"], s["split"], s["prompt"], s["expected"], {}])
            row[4][s["variant"]] = [s["output"], bool(s["exact"])]
    return [found[key] for key in sorted(found)]


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.tests["standing_out"] = stands_out
    return environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
