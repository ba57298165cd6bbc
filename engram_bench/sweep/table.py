"""Writes what came out of a sweep: a table of all runs, of recipes over training seeds, and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from engram_bench.errors import UsageError
from engram_bench.report import html, markdown
from engram_bench.report.plots import png
from engram_bench.report.text import Section, Show, safe, short
from engram_bench.store.cache import write_whole
from engram_bench.sweep import plots
from engram_bench.sweep.execute import DONE
from engram_bench.sweep.plan import SEEDS, Run
from engram_bench.sweep.results import COLUMNS, MEASURES, Recipe, Row, recipes, rows, shown

NAME = "sweep"  # of the files


def check(axes: Iterable[str], x: str, y: str) -> None:
    """Refuse what the plot cannot show.

    Raises:
        UsageError: `x` is no measure and nothing that was varied, or `y` is no measure.
    """
    varied = [name for name in axes if name != SEEDS]  # a point is a mean over seeds
    for option, value, choices in (("--x", x, (*MEASURES, *varied)), ("--y", y, MEASURES)):
        if value not in choices:
            raise UsageError(f"{option}: {value!r} is not one of {', '.join(dict.fromkeys(choices))}")


def written(
    runs: Sequence[Run], out: Path, x: str, y: str, more: Callable[[Sequence[Row], Show], list[Section]]
) -> str:
    """Write sweep.csv, sweep.md, sweep.html and sweep.png; returns the table of recipes in Markdown.

    Args:
        runs: of the sweep, in its order.
        out: the sweep's folder.
        x, y: what the plot shows: a measure, or for `x` something that was varied.
        more: makes sections to put first.

    Raises:
        UsageError: a file cannot be written.
    """
    axes = list(dict.fromkeys(name for run in runs for name in run.axes))
    found = rows(runs, out)
    made = recipes(found)
    figure = plots.draw(made, x, y)
    images = {NAME: png(figure)} if figure else {}
    parts = [
        f"# {heading(found)}",
        *(markdown.section(s) for s in [*more(found, safe), *sections(found, made, axes, safe)]),
    ]
    page = html.page(
        heading=heading(found),
        opening=[],
        results=[*more(found, short), *sections(found, made, axes, short)],
        images=[(plots.ALT, image) for image in images.values()],
        answers=None,
        details=[],
    )
    try:
        write_whole(out / f"{NAME}.csv", as_csv(found, axes))
        write_whole(
            out / f"{NAME}.md", "\n\n".join([*parts, *(f"![{plots.ALT}]({name}.png)" for name in images)]) + "\n"
        )
        write_whole(out / f"{NAME}.html", page)
        for name, image in images.items():
            (out / f"{name}.png").write_bytes(image)
    except OSError as error:
        raise UsageError(f"{error.filename or out}: {error.strerror}; mend that, or choose another --out") from error
    every = [*more(found, safe), *([by_recipe(made, safe)] if made else [])]
    return "\n\n".join(markdown.section(section) for section in every)


def heading(found: Sequence[Row]) -> str:
    """The title: how many runs are done."""
    runs = {row.run: row.status for row in found}
    return f"engram-bench sweep: {sum(status == DONE for status in runs.values())} of {len(runs)} runs"


def sections(found: Sequence[Row], made: Sequence[Recipe], axes: Sequence[str], show: Show) -> list[Section]:
    """The sections of the pages."""
    return [by_recipe(made, show), by_run(found, axes, show)]


def by_recipe(made: Sequence[Recipe], show: Show) -> Section:
    """A row for each recipe: what differs, without the seed, and means over seeds."""
    return Section(
        "Recipes",
        headers=("recipe", "runs", *MEASURES),
        rows=[
            (show(r.label), str(r.runs), *(shown(name, r.means[name], r.halves[name], r.still) for name in MEASURES))
            for r in made
        ],
        note="Means over runs that differ in their training seed alone; ±: half of the 95% interval by Student's t "
        "over seeds. Shares of right answers and recited values in %, KL in nats per token; *: by construction.",
    )


def by_run(found: Sequence[Row], axes: Sequence[str], show: Show) -> Section:
    """A row for each run and variant."""
    return Section(
        "Runs",
        headers=(*axes, "variant", "status", *MEASURES, "missed thresholds", "run, s", "why"),
        rows=[
            (
                *(show(row.axes.get(axis, "")) for axis in axes),
                show(row.variant),
                row.status,
                *(shown(name, row.measures.get(name), still=row.still) for name in MEASURES),
                str(row.rest.get("missed_thresholds", "")),
                f"{row.rest['run_seconds']:.0f}" if "run_seconds" in row.rest else "",
                show(row.rest["why"]),
            )
            for row in found
        ],
    )


def as_csv(found: Sequence[Row], axes: Sequence[str]) -> str:
    """The rows as CSV, with a header; shares between 0 and 1."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n")
    write.writerow(("run", *axes, "variant", "status", *MEASURES, *COLUMNS))
    for row in found:
        values = ["" if (value := row.measures.get(name)) is None else value for name in MEASURES]
        rest = [row.rest.get(name, "") for name in COLUMNS]
        write.writerow((row.run, *(row.axes.get(axis, "") for axis in axes), row.variant, row.status, *values, *rest))
    return text.getvalue()
