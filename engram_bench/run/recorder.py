"""Collects the records of one process of a run, and writes them to the run directory once there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engram_bench.records import Record
from engram_bench.run.metadata import texts_sha256
from engram_bench.run.rundir import RECORDS, RunDir


class Recorder:
    """Collects records (see `engram_bench.records`); holds them until a run directory is attached.

    Attributes:
        run: the run directory, None until one is attached.
        held: records collected before that.
    """

    def __init__(self) -> None:
        self.run: RunDir | None = None
        self.held: list[Record] = []

    def attach(self, run: RunDir) -> None:
        """Write the held records to this run directory; from now on, read and write there."""
        self.run = run
        run.append(RECORDS, self.held)

    def add(self, kind: str, data: Record) -> None:
        """Add the record ``{"type": kind, "data": data}``."""
        self.add_line({"type": kind, "data": data})

    def add_line(self, record: Record) -> None:
        """Add a complete record."""
        if self.run:
            self.run.append(RECORDS, [record])
        else:
            self.held.append(record)

    def once(self, kind: str, variant: str, prompts: Sequence[str], measure: Callable[[], Record]) -> Record:
        """Return the run's record of this measurement; measure and record it if there is none.

        The record may come from any process of the run, even from before the run was resumed.
        """
        identity = {"variant": variant, "prompts": len(prompts), "prompts_sha256": texts_sha256(prompts)}
        for known in self.run.read(RECORDS) if self.run else self.held:
            if known["type"] == kind and identity.items() <= known["data"].items():
                found: Record = known["data"]
                return found
        data = {**identity, **measure()}
        self.add(kind, data)
        return data
