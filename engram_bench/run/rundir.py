"""The run directory during a run: every process of the run writes its results there at once.

So workers share answers, a killed process loses only its current batch, and an interrupted run can be resumed.
`.work` holds files that only an unfinished run needs.
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
    """The folder of a run.

    Attributes:
        id: identifies the run to its workers and in the adapters it trains.
        started: seconds since 1970.
    """

    folder: Path
    id: str
    started: float

    def append(self, name: str, lines: Iterable[Record]) -> None:
        """Append lines to a file of the run; lines of other processes never come between them.

        Raises:
            UsageError: the disk is full, or the folder is gone.
        """
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in lines)
        path = self.folder / name
        try:
            with self.alone("append"), path.open("ab+") as file:
                if file.tell() and not _ends_a_line(path):
                    file.write(b"\n")  # end the partial line of a killed process
                file.write(text.encode())
        except OSError as error:
            raise UsageError(
                f"{path}: {error.strerror}; fix that, then resume with --engram-resume {self.folder}"
            ) from error

    def read(self, name: str) -> list[Record]:
        """The lines of a file of the run (see `records.read`); empty if the file does not exist yet."""
        path = self.folder / name
        return records.read(path) if path.is_file() else []

    def alone(self, name: str) -> AbstractContextManager[object]:
        """A lock of this name: one process of the run holds it, all others wait."""
        return FileLock(self.folder / WORK / f"{name}.lock")

    def close(self) -> None:
        """Delete `.work`, because the run is complete."""
        shutil.rmtree(self.folder / WORK, ignore_errors=True)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def claim(report: Path, backend: str, id: str, started: float, fingerprint: Record) -> RunDir:
    """The folder ``<UTC time>-<backend>`` of the run `id`; the first of its processes creates it.

    Args:
        report: folder of all runs.
        backend: part of the folder's name.
        id: equal in all processes of a run, and unique to it.
        started: seconds since 1970; equal in all processes of a run.
        fingerprint: what must be equal when the run is resumed.

    Raises:
        UsageError: the folder cannot be created.
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
                        new.rename(folder)  # atomic: no process ever sees a folder without its manifest
                    except OSError:
                        if not folder.is_dir():
                            raise
                if _id(folder) == id:
                    return RunDir(folder, id, started)
    except OSError as error:
        raise UsageError(f"--engram-report: {report}: {error.strerror}; choose another folder") from error
    raise AssertionError("unreachable")


def _id(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError):
        return None


def resume(folder: Path, fingerprint: Record) -> RunDir:
    """Resume an interrupted run.

    Raises:
        UsageError: the folder holds no interrupted run, or one with another fingerprint.
    """
    option = f"--engram-resume: {folder}"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        id, started, theirs = str(manifest["id"]), float(manifest["started"]), dict(manifest["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "this run is already complete" if (folder / "report.json").is_file() else "not an interrupted run"
        raise UsageError(f"{option}: {reason}; name the folder of an interrupted run") from error
    if odd := [name for name in fingerprint if theirs.get(name) != fingerprint[name]]:
        raise UsageError(
            f"{option}: the run was started with different {', '.join(odd)}; repeat its options, or start a new run"
        )
    return RunDir(folder.resolve(), id, started)
