"""Makes the runs of a sweep as tasks on a Ray cluster. Ray places them, and repeats those whose node died.

The package's code and the run's data files go along with the tasks. Models come from each node's own cache. A run's
folder is in a place that all nodes see: `out` itself, or a store that pyarrow opens (``s3://``, ``gs://``, ``file://``).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engram_bench import shipped
from engram_bench.errors import UsageError
from engram_bench.run.session import COMMIT, git_commit
from engram_bench.sweep.execute import DONE, FAILED, RUNS, Process, State, state, write_made_of
from engram_bench.sweep.local import Told
from engram_bench.sweep.plan import Run
from engram_bench.sweep.reading import Resources

MISSING = '--ray needs Ray; install it with pip install "engram-bench[ray]"'
RETRIES = 3  # of a run whose node or process died
GB = 2**30


@contextmanager
def connected(address: str, store: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster: "local" starts one on this machine, "auto" finds that of this node.

    Raises:
        UsageError: Ray or pyarrow is not installed, or no cluster answers.
    """
    try:
        import ray

        if store:
            import pyarrow.fs  # noqa: F401
    except ImportError as error:
        raise UsageError(f"{MISSING} ({error})") from error
    with tempfile.TemporaryDirectory() as folder:
        environment = {"py_modules": [str(_code(Path(folder)))]}
        try:
            where = {} if address == "local" else {"address": address}
            ray.init(**where, runtime_env=environment, log_to_driver=False, include_dashboard=False)
        except Exception as error:  # Ray raises many kinds, RuntimeError among them
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UsageError(f"--ray {address}: no cluster can be used there: {line}") from error
        try:
            yield ray
        finally:
            ray.shutdown()


def make(
    ray: Any, runs: Sequence[Run], out: Path, resources: Resources, store: str | None, jobs: int | None, told: Told
) -> None:
    """Make runs as tasks of a cluster.

    Args:
        ray: from `connected`.
        runs: the runs.
        out: the sweep's folder, which all nodes see if there is no `store`.
        resources: of each run.
        store: where the runs' folders are kept if nodes do not see `out`; they are copied to `out`, too.
        jobs: most runs at once; None: as many as the cluster takes.
        told: is told of each run that has ended.
    """
    options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "memory": int(resources.memory * GB)}
    task = ray.remote(_make).options(max_retries=RETRIES, **options)
    files = {run.name: _data(run) for run in runs}
    waiting, under_way = list(runs), dict[Any, Run]()
    try:
        while waiting or under_way:
            while waiting and (jobs is None or len(under_way) < jobs):
                run = waiting.pop(0)
                place = store or str(out.resolve())
                told_run = run.name, dict(run.options), dict(run.changed), run.sha256
                ref = task.remote(*told_run, files[run.name], place, bool(store))
                under_way[ref] = run
            (ref, *_), _ = ray.wait(list(under_way), num_returns=1)
            run = under_way.pop(ref)
            told(run, _ended(ray, ref, run, out, store))
    except BaseException:
        for ref in under_way:
            ray.cancel(ref)
        raise


def _ended(ray: Any, ref: Any, run: Run, out: Path, store: str | None) -> State:
    """What came of a task; copies a stored run to the sweep's folder."""
    folder = out / RUNS / run.folder
    try:
        status, why = ray.get(ref)
    except ray.exceptions.RayError as error:
        status, why = FAILED, str(error).strip().splitlines()[-1]
    folder.mkdir(parents=True, exist_ok=True)
    if status == DONE:
        if store:
            _copied(f"{store}/{RUNS}/{run.folder}", str(folder.resolve()))
        return state(folder)
    write_made_of(run, folder, why or "it has no report")
    return state(folder)


def _make(
    name: str,
    options: dict[str, str],
    changed: dict[str, str],
    sha256: str,
    data: dict[str, bytes],
    place: str,
    stored: bool,
) -> tuple[str, str]:
    """One run, on a node; returns its status, and why it failed.

    Args:
        name, options, changed, sha256: see `Run`.
        data: its pattern files, see `_data`.
        place: path or URI of the sweep's folder.
        stored: whether `place` is a store, to which the run's folder is copied when it is done.
    """
    with tempfile.TemporaryDirectory() as aside:
        if data:
            options = {**options, "patterns": str(_laid(data, Path(aside, "patterns")))}
        run = Run(name, {}, options, (), changed, sha256)
        folder = Path(aside, "run") if stored else Path(place, RUNS, run.folder)
        found = Process(run, folder, _environment()).finish()
        if stored and found.status == DONE:
            _copied(str(folder), f"{place}/{RUNS}/{run.folder}")
        return found.status, found.why


def _environment() -> dict[str, str]:
    """This task's environment, with its code first."""
    code = str(shipped.PACKAGE.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([code, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


def _code(folder: Path) -> Path:
    """The package as an install has it, with fixtures, suites and patterns inside."""
    package = folder / "engram_bench"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(shipped.PACKAGE, package, ignore=ignored)
    for source in (shipped.SUITES, shipped.PATTERNS, shipped.SUITES.parent / "fixtures"):
        if not (package / source.name).is_dir():
            shutil.copytree(source, package / source.name, ignore=ignored)
    (package / COMMIT).write_text(git_commit() or "", encoding="utf-8")
    return package


def _data(run: Run) -> dict[str, bytes]:
    """The files of a run's own patterns by relative path; none for the shipped ones."""
    if "patterns" not in run.options:
        return {}
    place = Path(run.options["patterns"]).expanduser()
    files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place]
    return {file.relative_to(place.parent).as_posix(): file.read_bytes() for file in files}


def _laid(data: Mapping[str, bytes], folder: Path) -> Path:
    """Write such files below a folder, and return the file or folder that holds the patterns."""
    for name, content in data.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / Path(next(iter(data))).parts[0]


def _copied(source: str, target: str) -> None:
    """Copy a folder between paths or URIs."""
    from pyarrow import fs

    fs.copy_files(source, target)
