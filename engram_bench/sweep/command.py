"""The command ``engram-bench sweep``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from engram_bench import backends
from engram_bench.errors import UsageError
from engram_bench.options import check_writable
from engram_bench.report.text import Section, Show
from engram_bench.run import estimate
from engram_bench.sweep import local, plan, reading, search, table
from engram_bench.sweep.execute import DONE, FAILED, RUNS, State, check_same, state
from engram_bench.sweep.plan import Run
from engram_bench.sweep.reading import Sweep
from engram_bench.sweep.results import Row

LOCK = ".sweep.lock"
REPORT_BYTES, ADAPTER_BYTES = 2e6, 20e6  # of a run, and of a trained adapter in the cache; rough


def sweep(
    file: Path,
    out: Path,
    *,
    jobs: int | None = None,
    ray: str | None = None,
    store: str | None = None,
    dry: bool = False,
    report: bool = False,
    x: str = "kl",
    y: str = "generality",
) -> int:
    """Make the runs of a file that are not done yet, and write their table.

    Args:
        file: the sweep.
        out: its folder, new or of the same sweep.
        jobs: runs at once; None: one here, and as many as fit on a cluster.
        ray: address of a Ray cluster, "auto" or "local"; None: this machine without Ray.
        store: where a cluster keeps the runs' folders, if its nodes do not see `out`.
        dry: only list them.
        report: only write the table of those that are done.
        x, y: what the plot shows.

    Returns:
        1 if a run failed or, unless only the table was asked for, is not done; else 0.

    Raises:
        UsageError: the file is wrong, or the folder is another sweep's or in use.
    """
    if "," in str(out):
        raise UsageError(f"--out: {out}: a comma would end the name of a variant's file; use another folder")
    read = reading.read(file)
    if read.search:
        search.library()
    if dry:
        print("\n".join(listed(read, out)))
        return 0
    searched = [
        f"{name}.{path}" for name, fields in (read.search.space if read.search else {}).items() for path in fields
    ]
    table.check([*(name for run in read.runs for name in run.axes), *searched], x, y)
    check_same(read.runs, out)
    if report:
        runs = _every(read, out, partial(check_same, out=out))
        _write(read, out, runs, x, y)
        return int(FAILED in _statuses(runs, out))
    check_writable("--out", out)
    try:
        with FileLock(out / LOCK, timeout=0):
            print(announced(read, out), file=sys.stderr)
            told = Progress(_count(read))
            try:
                with _maker(read, out, jobs, ray, store, told) as maker:
                    runs = _every(read, out, partial(_make, out=out, maker=maker, told=told))
            except KeyboardInterrupt:
                _write(read, out, _every(read, out, partial(check_same, out=out)), x, y)
                raise
            _write(read, out, runs, x, y)
            return int(_statuses(runs, out) != {DONE})
    except Timeout as error:
        raise UsageError(
            f"--out: {out}: another sweep is writing there; wait for it, or choose another folder"
        ) from error


class Progress:
    """Says how each run ended.

    Args:
        count: of all runs.
    """

    def __init__(self, count: int) -> None:
        self._count, self._ended, self._start = count, 0, time.monotonic()

    def __call__(self, run: Run, found: State) -> None:
        self._ended += 1
        told = f": {found.why}" if found.status == FAILED else ""
        seconds = time.monotonic() - self._start
        print(
            f"{self._ended}/{self._count} {found.status} {seconds:.0f} s {run.name}{told}", file=sys.stderr, flush=True
        )


@contextmanager
def _maker(
    read: Sweep, out: Path, jobs: int | None, ray: str | None, store: str | None, told: local.Told
) -> Iterator[search.Make]:
    """What makes runs: here, or on a cluster."""
    if ray is None:
        yield partial(local.make, out=out, jobs=jobs or 1, told=told)
        return
    from engram_bench.sweep import cluster

    with cluster.connected(ray, store) as library:
        make = partial(cluster.make, library, out=out, resources=read.resources, store=store, jobs=jobs, told=told)
        yield make


def _make(runs: Sequence[Run], out: Path, maker: search.Make, told: local.Told) -> None:
    """Make those runs that are not done."""
    check_same(runs, out)
    todo = [run for run in runs if state(out / RUNS / run.folder).status != DONE]
    names = {run.name for run in todo}
    for run in runs:
        if run.name not in names:
            told(run, State(DONE))
    if todo:
        maker(todo)


def _every(read: Sweep, out: Path, make: search.Make) -> list[Run]:
    """Make all runs, those of the search too, and return them."""
    make(read.runs)
    return [*read.runs, *(search.made(read.search, out, make) if read.search else ())]


def _write(read: Sweep, out: Path, runs: Sequence[Run], x: str, y: str) -> None:
    """Write the table, and print the part of it that compares recipes."""

    trials = {run.name for run in runs} - {run.name for run in read.runs}

    def more(found: Sequence[Row], show: Show) -> list[Section]:
        tried = [row for row in found if row.run in trials]
        return [search.section(read.search, tried, show)] if read.search else []

    print(table.written(runs, out, x, y, more), end="\n\n")
    print(out / f"{table.NAME}.html")


def _statuses(runs: Sequence[Run], out: Path) -> set[str]:
    return {state(out / RUNS / run.folder).status for run in runs}


def listed(read: Sweep, out: Path) -> list[str]:
    """A line for each run, with its options and what it changes in variants."""
    lines = [announced(read, out)]
    for run in read.runs:
        options = " ".join(f"--engram-{name}={value}" for name, value in run.options.items())
        fields = " ".join(f"{name}={value}" for name, value in run.axes.items() if "." in name)
        lines.append(f"{run.name}: {' '.join([options, *([f'with {fields}'] if fields else [])])}")
    if read.search:
        lines += [f"{variant}: {read.search.trials} trials of the search" for variant in read.search.space]
    return lines


def announced(read: Sweep, out: Path) -> str:
    """How many runs there are to make, and about what they take."""
    todo = [run for run in read.runs if state(out / RUNS / run.folder).status != DONE]
    trained = sum(
        len(read.maker.settings(run).seeds) * sum(bool(v.config) and not v.adapter_of for v in run.chosen)
        for run in todo
    )
    trials = read.search.trials * len(read.search.space) if read.search else 0
    size = (len(todo) + trials) * REPORT_BYTES + (trained + trials) * ADAPTER_BYTES
    text = f"{_count(read)} runs, {trials} of them of a search; up to {size / 1e6:,.0f} MB"
    if trials:
        return text
    text = f"{len(read.runs)} runs, {len(read.runs) - len(todo)} of them done; up to {size / 1e6:,.0f} MB"
    seconds = _seconds(read, todo)
    return f"{text} and about {estimate.words(seconds)}, one after the other" if seconds else text


def _seconds(read: Sweep, runs: Sequence[Run]) -> float:
    """Rough time of runs on this machine; 0 if nothing is known of one of their models or devices."""
    rates: dict[tuple[str, str], float] = {}
    total = 0.0
    for run in runs:
        settings = read.maker.settings(run)
        try:
            target = backends.find(settings.backend, settings.lora_engine)
        except UsageError:  # the runs may be made on another machine
            return 0.0
        if (target.framework, target.device, settings.model) != ("torch", "cpu", "bundled"):
            return 0.0
        from engram_bench.backends.torch.device import matrix_rate

        key = str(target.device), str(target.dtype)
        if key not in rates:
            rates[key] = matrix_rate(target.device, target.dtype)
        total += plan.seconds(settings, run) * estimate.RATE / rates[key]
    return total


def _count(read: Sweep) -> int:
    return len(read.runs) + (read.search.trials * len(read.search.space) if read.search else 0)
