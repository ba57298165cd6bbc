"""The sides of a measurement: programs in separate processes that take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PEERS = Path(__file__).parent / "peers"
PEERS_PYTHON = Path(__file__).parent.parent / ".venv-peers" / "bin" / "python"

Job = dict[str, Any]
Result = dict[str, Any]


class Side:
    """One program of peers/ with a loaded model, which does one job at a time. Created by `started`."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: IO[str]) -> None:
        assert process.stdin
        assert process.stdout
        self.name, self._log, self._jobs, self._results = name, log, process.stdin, process.stdout
        self.versions: dict[str, str] = self._read()

    def do(self, job: Job) -> Result:
        self._jobs.write(json.dumps(job) + "\n")
        self._jobs.flush()
        return self._read()

    def _read(self) -> Result:
        line = self._results.readline()
        if not line:
            self._log.seek(0)
            sys.exit(f"{self.name} stopped:\n" + "".join(self._log.readlines()[-15:]))
        result: Result = json.loads(line)
        return result


@contextmanager
def started(name: str, folder: Path, dtype: str) -> Iterator[Side]:
    """Run a program of peers/ inside the context: `ours` in this Python environment, peers in .venv-peers.

    Args:
        name: the program's name.
        folder: the model's folder.
        dtype: data type of its weights.
    """
    python = sys.executable if name == "ours" else str(PEERS_PYTHON)
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            [python, str(PEERS / f"{name}.py"), str(folder), dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},  # no downloads during measurements
        ) as process,
    ):
        yield Side(name, process, log)


def take_turns(runs: Mapping[str, Callable[[], Result]], repeats: int) -> dict[str, list[Result]]:
    """Results of each run. Every round does each run once, so that a slower phase of the machine affects all."""
    found: dict[str, list[Result]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(run())
            print(f"  {name}: {found[name][-1]['seconds']:.2f} s", file=sys.stderr)
    return found
