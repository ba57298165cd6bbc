"""The command `engram-bench compare`: prints how runs differ, and writes it as pages with a plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engram_bench.errors import UsageError
from engram_bench.options import check_writable
from engram_bench.records import GREEDY, Record, once, read
from engram_bench.report import (
    files,
    gate,
    gate_text,
    html,
    markdown,
    runs_plot,
    runs_text,
    terminal,
    tracking,
    views,
)
from engram_bench.report.plots import png
from engram_bench.report.runs import Cell, Item, Run, differences, flips, opened, refuse
from engram_bench.report.text import Section, Show, safe, short
from engram_bench.store.cache import write_whole

NAME = "compare"  # of the files


class Compared(NamedTuple):
    """What comparing runs found.

    Attributes:
        rows: comparisons, with verdicts.
        section: the rows as a section.
        more: further sections, for the end of a page.
        lines: regressions, warnings and a summary, for a terminal.
    """

    rows: list[Record]
    section: Callable[[Show], Section]
    more: Callable[[Show], list[Section]]
    lines: list[str]


def compare(paths: Sequence[Path], fail: gate.Margins, out: Path | None = None, project: str = "") -> int:
    """Compare two runs as the gate does, or several with the first, and print it.

    Args:
        paths: folders of runs, or their report.json; two or more.
        fail: by metric, the drop that is a regression.
        out: folder for compare.md, compare.html and compare.png.
        project: of trackio, to log the runs to.

    Returns:
        1 if a run regressed, 4 if no run has a cell of the first, so that nothing was checked; else 0.

    Raises:
        BaselineError: a report is missing or does not compare with the first.
        UsageError: `fail` names a metric in which several runs are not compared, the folder is not writable, or
            trackio cannot be used.
    """
    if project:
        tracking.library()
    if out:
        check_writable("--out", out)
    runs = opened(paths)
    found = _two(runs, paths, fail) if len(runs) == 2 else _several(runs, paths, fail)
    samples = {run.name: _samples(run) for run in runs} if out or len(runs) > 2 else {}
    shown = [found.section(safe)]
    if len(runs) > 2:
        shown = [*_results(runs, found, safe), *_details(runs, samples, safe)]
    print("\n\n".join(map(markdown.section, shown)), end="\n\n")
    for line in found.lines:
        print(line)
    if out:
        write(out, runs, found, samples)
        print(out / f"{NAME}.html")
    for line in tracking.track(runs, project) if project else ():
        print(line)
    return gate.exit_code({"rows": found.rows})


def _two(runs: Sequence[Run], paths: Sequence[Path], fail: gate.Margins) -> Compared:
    before, after = (run.report for run in runs)
    gate.refuse(before, gate.fingerprints(after), str(paths[0]))
    gate.refuse(after, gate.fingerprints(before), str(paths[1]))
    found = gate.compare(before, after, fail)
    lines: list[str] = []
    terminal.write_gate(lines.append, found)
    return Compared(found["rows"], lambda show: gate_text.section(found, show), lambda _: [], lines)


def _several(runs: Sequence[Run], paths: Sequence[Path], fail: gate.Margins) -> Compared:
    if fail.keys() != {"exact"}:
        raise UsageError("--fail: three or more runs are compared in exact answers alone; write exact:2pt")
    refuse(runs, paths)
    margin = fail["exact"]
    rows = differences(runs, margin)
    lines = [*runs_text.regressions(rows), runs_text.summary(rows, short(runs[0].name))]
    return Compared(
        rows,
        lambda show: runs_text.differences(rows, runs, margin, show),
        lambda show: [runs_text.agreements(rows, show)],
        lines,
    )


def write(folder: Path, runs: Sequence[Run], found: Compared, samples: runs_text.Samples) -> None:
    """Write compare.md, compare.html and compare.png.

    Raises:
        UsageError: a file cannot be written.
    """
    figure = runs_plot.draw(runs)
    plots = {NAME: png(figure)} if figure else {}
    parts = [
        f"# {runs_text.heading(runs, safe)}",
        " ".join(runs_text.opening(runs, safe)),
        *map(markdown.section, _results(runs, found, safe)),
        *(f"![{runs_plot.ALT}]({name}.png)" for name in plots),
        *map(markdown.section, [*_details(runs, samples, safe), *found.more(safe)]),
    ]
    page = html.page(
        heading=runs_text.heading(runs, short),
        opening=runs_text.opening(runs, short),
        results=_results(runs, found, short),
        images=[(runs_plot.ALT, image) for image in plots.values()],
        answers=_answers(runs, samples),
        details=[*_details(runs, samples, short), *found.more(short)],
    )
    try:
        for name, image in plots.items():
            (folder / f"{name}.png").write_bytes(image)
        write_whole(folder / f"{NAME}.md", "\n\n".join(part for part in parts if part) + "\n")
        write_whole(folder / f"{NAME}.html", page)
    except OSError as error:
        raise UsageError(f"--out: {error.filename or folder}: {error.strerror}; choose another folder") from error


def _results(runs: Sequence[Run], found: Compared, show: Show) -> list[Section]:
    """The sections before the plot."""
    return [runs_text.made(runs, show), runs_text.scorecards(runs, show), found.section(show)]


def _details(runs: Sequence[Run], samples: runs_text.Samples, show: Show) -> list[Section]:
    """The sections after the plot."""
    common, flipped = flips(runs)
    return [runs_text.flipped(common, flipped, runs, show), runs_text.examples(flipped, runs, samples, show)]


def _samples(run: Run) -> Mapping[tuple[Cell, Item], Record]:
    """The greedy answers of a run's first training seed, by cell and item.

    Empty if no answers lie beside the report, or others than those that it was made from.
    """
    try:
        lines = list(once(read(run.samples)).values())
    except (OSError, KeyError, TypeError):
        return {}
    expected = run.report["run"].get("answers")
    if expected not in (None, files.answers(lines)):
        return {}
    seed = run.report["run"]["seeds"][0]
    return {
        ((line["variant"], line["split"]), (line["category"], line["item"])): line
        for line in lines
        if (line["sample"], line["seed"]) == (GREEDY, seed)
    }


def _answers(runs: Sequence[Run], samples: runs_text.Samples) -> Record | None:
    """The answers of all runs for the table of `html.page`, where a variant is named with its run; None if none are.

    It opens with the variant most of whose items flipped, as the first two runs that have it answered.
    """
    sides = [(run, variant) for run in runs if samples[run.name] for variant in views.names(run.report)]
    names = {(run.name, variant): f"{short(run.name)}: {variant}" for run, variant in sides}
    rows: dict[tuple[str, str, str], list[Any]] = {}
    for run in runs:
        for ((variant, way), (category, item)), line in samples[run.name].items():
            row = rows.setdefault((category, way, item), [category, way, line["prompt"], line["expected"], {}])
            row[4][names[run.name, variant]] = [line["output"], bool(line["exact"])]
    if not rows:
        return None
    flipped = Counter(flip.cell[0] for flip in flips(runs)[1])
    most = max((variant for _, variant in sides), key=lambda variant: flipped[variant])
    same = [names[run.name, variant] for run, variant in sides if variant == most]
    return {
        "variants": [*names.values()],
        "rows": [rows[key] for key in sorted(rows)],
        "left": same[0],
        "right": same[min(1, len(same) - 1)],
    }
