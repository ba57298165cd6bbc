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

from engram_bench.records import Report
from engram_bench.report import sections, views
from engram_bench.report.examples import before_and_after
from engram_bench.report.plots import ALT
from engram_bench.report.reading import heading, opening
from engram_bench.report.text import short, stands_out


def render(report: Report, samples: Sequence[Report], plots: Mapping[str, bytes]) -> str:
    """Render the whole page.

    Args:
        report: report.json.
        samples: lines of samples.jsonl; the page shows the greedy answers of the first training seed.
        plots: PNG bytes by plot name, from `plots.write`.
    """
    return _template().render(
        heading=heading(report, short),
        opening=opening(report, short),
        results=sections.results(report, short),
        images=[(ALT[name], base64.b64encode(png).decode()) for name, png in plots.items()],
        answers={"variants": views.names(report), "rows": _answers(report, samples)},
        details=[*before_and_after(report, samples, short), *sections.details(report, short)],
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
