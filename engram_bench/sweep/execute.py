"""One run of a sweep: the suites in a process of their own, which writes to the run's folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from engram_bench.errors import UsageError
from engram_bench.options import OPTIONS
from engram_bench.records import Record
from engram_bench.run.command_line import suites
from engram_bench.run.rundir import MANIFEST
from engram_bench.store.cache import write_whole
from engram_bench.sweep.plan import Run

RUNS = "runs"  # folder of the runs' folders
MADE_OF, LOG, LOCK = "run.json", "log.txt", ".lock"
DONE, FAILED, BEGUN, MISSING = "done", "failed", "begun", "missing"
VARIABLES = {option.variable for option in OPTIONS}  # what they say is in the run's options
WAIT = 25  # seconds that interrupted runs have to write what they have


class State(NamedTuple):
    """What a run's folder holds.

    Attributes:
        status: `DONE`, `FAILED`, `BEGUN` (interrupted, or under way) or `MISSING`.
        place: the complete report's file, the folder to resume, or None.
        why: of a failed run.
    """

    status: str
    place: Path | None = None
    why: str = ""


def state(folder: Path) -> State:
    """What there is of a run."""
    begun = None
    for place in sorted(folder.glob("*/"), reverse=True):
        if (place / MANIFEST).is_file():
            begun = begun or place
        elif _is_whole(place / "report.json"):
            return State(DONE, place / "report.json")
    if why := _made_of(folder).get("why", ""):
        return State(FAILED, begun, why)
    return State(BEGUN, begun) if begun else State(MISSING)


def _is_whole(file: Path) -> bool:
    """Whether a report is there, and not cut by a copy that was interrupted."""
    try:
        with file.open("rb") as opened:
            opened.seek(-2, os.SEEK_END)
            return opened.read() == b"}\n"
    except OSError:
        return False


def report(folder: Path) -> Record | None:
    """The complete report of a run; None if there is none."""
    place = state(folder).place
    if place is None or place.is_dir():
        return None
    try:
        read: Record = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read


def _made_of(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / MADE_OF).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_made_of(run: Run, folder: Path, why: str = "") -> None:
    """Note in a run's folder what it is made of, and why it failed."""
    made = {"name": run.name, "sha256": run.sha256, **({"why": why} if why else {})}
    write_whole(folder / MADE_OF, json.dumps(made, ensure_ascii=False) + "\n")


def check_same(runs: Iterable[Run], out: Path) -> None:
    """Refuse a folder that holds other runs under the same names; what failed may have had other settings.

    Raises:
        UsageError: one of them was made with other settings.
    """
    for run in runs:
        folder = out / RUNS / run.folder
        if state(folder).place and _made_of(folder).get("sha256") not in (None, run.sha256):
            raise UsageError(f"{out}: run {run.name!r} in it was made with other settings; choose another --out")


class Process:
    """A run that may be under way.

    Args:
        run: the run.
        folder: its folder.
        env: the process's environment; None: this one's.
    """

    def __init__(self, run: Run, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self._run, self._folder, self._env = run, folder, env
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()

    def finish(self) -> State:
        """Make the run, or what is missing of it, and wait for its end; returns what there is then."""
        folder = self._folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / LOCK).open("a") as lock:
                while not _locked(lock):  # a killed sweep's run goes on to its end
                    if self._stopped.wait(1):
                        return state(folder)
                if (found := state(folder)).status == DONE:
                    return found
                write_made_of(self._run, folder)
                flags = [*self._run.flags(folder), f"--engram-report={folder}"]
                why = self._made(flags, lock, found.place)
                if why.startswith("--engram-resume") and not self._stopped.is_set():
                    why = self._made(flags, lock, None)  # begun by other code or on another machine
                if why and not self._stopped.is_set():
                    write_made_of(self._run, folder, why)
        except OSError as error:
            return State(FAILED, None, f"{error.filename or folder}: {error.strerror}")
        return state(folder)

    def _made(self, flags: list[str], lock: IO[str], begun: Path | None) -> str:
        """Run it, or go on with what was begun; returns why it failed, "" if it did not."""
        more = [f"--engram-resume={begun}"] if begun else []
        with (self._folder / LOG).open("wb") as log:
            code = self._wait([*flags, *more], log, lock)
        if state(self._folder).status == DONE:
            return ""
        return reason((self._folder / LOG).read_text("utf-8", "replace"), code)

    def _wait(self, flags: list[str], log: IO[bytes], lock: IO[str]) -> int:
        """Run pytest to its end. It keeps the lock even if this process is killed."""
        kept = () if os.name == "nt" else (lock.fileno(),)
        # -c: the ini file of the current folder says nothing about this run
        quiet = ["-c", os.devnull, "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider"]
        line = suites([*flags, *quiet])
        env = {name: text for name, text in (self._env or os.environ).items() if name not in VARIABLES}
        with subprocess.Popen(
            line, stdout=log, stderr=subprocess.STDOUT, env=env, pass_fds=kept, start_new_session=True
        ) as process:
            self._process = process
            if self._stopped.is_set():  # while it was started
                process.send_signal(signal.SIGINT)
            return process.wait()

    def interrupt(self) -> None:
        """Tell it to end, as Ctrl-C does: it writes what it has, and can be resumed."""
        self._stopped.set()
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)

    def end(self, until: float) -> None:
        """Wait for its end until a time of `time.monotonic`, then kill it."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()


def _locked(lock: IO[str]) -> bool:
    """Lock a file for this process and those that inherit it; False if another has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def reason(log: str, code: int) -> str:
    """Why a run has no complete report, in a line, from what it printed."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", log).splitlines() if line.strip()]
    for pattern in (r"!+ [\w.]*Exit: (.*?)(?: !+)?", r"ERROR: (.*)", r"INTERNALERROR> (\w*Error.*)", r"E +(\w.*)"):
        if found := [match[1] for line in lines if (match := re.fullmatch(pattern, line))]:
            return found[-1]
    if code < 0:
        return f"killed by signal {-code}"
    return lines[-1] if lines else f"exit code {code}"
