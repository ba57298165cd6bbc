"""Makes the runs of a sweep as tasks on a Ray cluster. Ray places them, and repeats those whose node died.

The package's code and the run's data files go along with the tasks. Models come from each node's own cache. A run's
folder is in a place that all nodes see: `out` itself, or a store that pyarrow opens (``s3://``, ``gs://``, ``file://``).
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engram_bench import shipped
from engram_bench.errors import UsageError
from engram_bench.run.session import COMMIT, git_commit
from engram_bench.sweep.execute import DONE, FAILED, RUNS, WAIT, Process, State, state, write_made_of
from engram_bench.sweep.local import Told
from engram_bench.sweep.plan import Run
from engram_bench.sweep.reading import Resources

MISSING = '--ray needs Ray; install it with pip install "engram-bench[ray]"'
TIMEOUT = 10  # seconds for an address to answer
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
    if found := re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d+)", address):  # Ray would ask there for minutes
        try:
            socket.create_connection((found[1], int(found[2])), TIMEOUT).close()
        except OSError as error:
            raise UsageError(f"--ray {address}: no cluster can be used there: {error.strerror or error}") from error
    with tempfile.TemporaryDirectory() as folder:
        environment = {"py_modules": [str(_code(Path(folder)))]}
        try:
            ray.init(address=address, runtime_env=environment, log_to_driver=False)
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
    check_room(ray.nodes(), resources)
    options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "memory": int(resources.memory * GB)}
    task = ray.remote(_make).options(max_retries=RETRIES, **options)
    files = {run.name: _data(run) for run in runs}
    waiting, under_way = [run for run in runs if not (store and _fetched(store, run, out, told))], dict[Any, Run]()
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
        ray.wait(list(under_way), num_returns=len(under_way), timeout=WAIT + 5)  # they write what they have
        raise


def check_room(nodes: Sequence[Mapping[str, Any]], resources: Resources) -> None:
    """Refuse resources that no node has, for which Ray would wait for ever.

    Args:
        nodes: from ``ray.nodes()``.
        resources: of a run.

    Raises:
        UsageError: no node has them.
    """
    needed = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory * GB}
    every = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(node.get(name, 0) >= count for name, count in needed.items()) for node in every):
        given = ({"CPU": 0, "GPU": 0, "memory": 0, **node} for node in every)
        raise UsageError(
            f"resources: no node has {_counted(needed)}; the nodes have: {'; '.join(map(_counted, given))}"
        )


def _counted(resources: Mapping[str, float]) -> str:
    return f"{resources['CPU']:g} cores, {resources['GPU']:g} GPUs, {resources['memory'] / GB:.1f} GB"


def _fetched(store: str, run: Run, out: Path, told: Told) -> bool:
    """Copy a run that the store has already; False if it has none."""
    folder = out / RUNS / run.folder
    try:
        _copied(store, f"{RUNS}/{run.folder}", folder, fetch=True)
    except OSError:
        return False
    found = state(folder)
    if found.status == DONE:
        told(run, found)
    return found.status == DONE


def _ended(ray: Any, ref: Any, run: Run, out: Path, store: str | None) -> State:
    """What came of a task; copies a stored run to the sweep's folder."""
    folder = out / RUNS / run.folder
    try:
        status, why = ray.get(ref)
    except ray.exceptions.RayError as error:
        status, why = FAILED, str(error).strip().splitlines()[-1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if status == DONE:
            if store:
                _copied(store, f"{RUNS}/{run.folder}", folder, fetch=True)
            return state(folder)
        write_made_of(run, folder, why or "it has no report")
    except OSError as error:
        return State(FAILED, None, f"{error.filename or folder}: {error.strerror or error}")
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
        process = Process(run, folder, _environment())
        try:
            found = process.finish()
        except KeyboardInterrupt:  # the sweep was interrupted
            process.interrupt()
            process.end(time.monotonic() + WAIT)
            raise
        if stored and found.status == DONE:
            _copied(place, f"{RUNS}/{run.folder}", folder, fetch=False)
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
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    return {file.relative_to(place.parent).as_posix(): file.read_bytes() for file in files}


def _laid(data: Mapping[str, bytes], folder: Path) -> Path:
    """Write such files below a folder, and return the file or folder that holds the patterns."""
    for name, content in data.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / Path(next(iter(data))).parts[0]


def _copied(store: str, name: str, folder: Path, *, fetch: bool) -> None:
    """Copy a folder of the store to a path, or the reverse; where a report is, the rest is too.

    Raises:
        OSError: the store or the disk does not take it, or there is no such folder.
    """
    from pyarrow import fs

    there, base = fs.FileSystem.from_uri(store)
    place = f"{base.rstrip('/')}/{name}"
    if not fetch:
        (folder / "latest").unlink(missing_ok=True)  # a link, of which a store would make a copy
        fs.copy_files(str(folder), place, source_filesystem=fs.LocalFileSystem(), destination_filesystem=there)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as aside:
        new = Path(aside, "run")
        fs.copy_files(place, str(new), source_filesystem=there, destination_filesystem=fs.LocalFileSystem())
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
