"""The run directory while a run is on: what is measured is written there at once, by every process of the run.

So workers share each other's answers, a process that is killed loses what it was at and nothing before, and a run
that was broken off can be taken up again. `.work` holds what only an unfinished run needs.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from engram_bench import records
from engram_bench.errors import UsageError
from engram_bench.records import Record

WORK = ".work"
RECORDS, MANIFEST = f"{WORK}/records.jsonl", f"{WORK}/run.json"


@dataclass(frozen=True)
class RunDir:
    """A run's folder; `id` names the run, to workers and to adapters trained in it; `started` in seconds since 1970."""

    folder: Path
    id: str
    started: float

    def append(self, name: str, lines: Iterable[Record]) -> None:
        """Add lines to a file of the run, all of them before any other process adds its own.

        Raises:
            UsageError: the disk is full, or the folder is gone.
        """
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in lines)
        path = self.folder / name
        try:
            with self.alone("append"), path.open("ab+") as file:
                if file.tell() and not _ends_a_line(path):
                    file.write(b"\n")  # after what a killed process left unfinished
                file.write(text.encode())
        except OSError as error:
            raise UsageError(
                f"{path}: {error.strerror}; mend that, then go on with --engram-resume {self.folder}"
            ) from error

    def read(self, name: str) -> list[Record]:
        """The lines of a file of the run, see `records.read`; none where there is no file yet."""
        path = self.folder / name
        return records.read(path) if path.is_file() else []

    def alone(self, name: str) -> AbstractContextManager[object]:
        """One process of the run at a time; the others wait."""
        return FileLock(self.folder / WORK / f"{name}.lock")

    def close(self) -> None:
        """The run is complete: drop what only an unfinished one needs."""
        shutil.rmtree(self.folder / WORK, ignore_errors=True)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def claim(report: Path, backend: str, id: str, started: float, fingerprint: Record) -> RunDir:
    """The folder ``<UTC time>-<backend>`` of the run `id`, made by whichever of its processes comes first.

    Args:
        report: folder of all runs.
        backend: for the name.
        id: the same in all processes of a run, and in no other run.
        started: the same in all processes of a run.
        fingerprint: what has to be the same when the run is taken up again.

    Raises:
        UsageError: the folder cannot be made.
    """
    name = f"{datetime.fromtimestamp(started, UTC):%Y%m%dT%H%M%SZ}-{backend}"
    try:
        report.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=report, prefix=".new-") as aside:
            new = Path(aside) / "run"
            (new / WORK).mkdir(parents=True)
            manifest = {"id": id, "started": started, "fingerprint": fingerprint}
            (new / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            for count in itertools.count(1):
                folder = report / (name if count == 1 else f"{name}-{count}")
                if not folder.exists():
                    try:
                        new.rename(folder)  # whole or not at all: an existing folder is never empty
                    except OSError:
                        if not folder.is_dir():
                            raise
                if _id(folder) == id:
                    return RunDir(folder, id, started)
    except OSError as error:
        raise UsageError(f"--engram-report: {report}: {error.strerror}; choose another folder") from error
    raise AssertionError("counted to the end of numbers")


def _id(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError):
        return None


def resume(folder: Path, fingerprint: Record) -> RunDir:
    """A run that was broken off, taken up again.

    Raises:
        UsageError: there is none in the folder, it is complete, or it measured something else.
    """
    option = f"--engram-resume: {folder}"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        id, started, theirs = str(manifest["id"]), float(manifest["started"]), dict(manifest["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "complete already" if (folder / "report.json").is_file() else "not a run that was broken off"
        raise UsageError(f"{option}: {reason}; name the folder of one that was") from error
    if odd := [name for name in fingerprint if theirs.get(name) != fingerprint[name]]:
        raise UsageError(f"{option}: that run had another {', '.join(odd)}; give the options it had, or start anew")
    return RunDir(folder.resolve(), id, started)
