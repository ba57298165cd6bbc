"""Renders report.md: opening sentences, tables, plots and examples."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tabulate import tabulate

from engram_bench.records import Report
from engram_bench.report import sections
from engram_bench.report.examples import before_and_after
from engram_bench.report.plots import ALT
from engram_bench.report.reading import heading, opening
from engram_bench.report.text import Section, safe, stands_out


def render(report: Report, samples: Sequence[Report], plots: Collection[str] = ()) -> str:
    """Render the whole report.md. Every number comes from `report`; `samples` supply the examples.

    Args:
        report: report.json.
        samples: lines of samples.jsonl.
        plots: names of the plots that were drawn.
    """
    parts = [
        f"# {heading(report, safe)}",
        " ".join(opening(report, safe)),
        *map(section, sections.results(report, safe)),
        *(f"![{title}](plots/{name}.png)" for name, title in ALT.items() if name in plots),
        *map(section, before_and_after(report, samples, safe)),
        *map(section, sections.details(report, safe)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def section(part: Section) -> str:
    """Render one section as GitHub Markdown."""
    table = ""
    if part.rows:
        rows = [[f"**{cell}**" if stands_out(cell) else cell for cell in row] for row in part.rows]
        table = tabulate(rows, headers=part.headers, tablefmt="github", disable_numparse=True)
    if part.folded and table:
        table = f"<details><summary>{part.folded}</summary>\n\n{table}\n\n</details>"
    listed = "\n".join(f"- {point}" for point in part.points)
    return "\n\n".join(text for text in (f"## {part.title}", part.intro, listed, table, part.note) if text)
