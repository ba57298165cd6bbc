"""Where one process of a run puts its records: into the run directory, as soon as there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engram_bench.records import Record
from engram_bench.run.metadata import texts_sha256
from engram_bench.run.rundir import RECORDS, RunDir


class Recorder:
    """Takes records, see `engram_bench.records`; holds them until a run directory is attached.

    Attributes:
        run: the run directory, None until one is attached.
        held: records taken before that.
    """

    def __init__(self) -> None:
        self.run: RunDir | None = None
        self.held: list[Record] = []

    def attach(self, run: RunDir) -> None:
        """From here on, read and write the records of this run directory."""
        self.run = run
        run.append(RECORDS, self.held)

    def add(self, kind: str, data: Record) -> None:
        """Record what was measured, ``{"type": kind, "data": data}``."""
        self.add_line({"type": kind, "data": data})

    def add_line(self, record: Record) -> None:
        """Record a line as it is."""
        if self.run:
            self.run.append(RECORDS, [record])
        else:
            self.held.append(record)

    def once(self, kind: str, variant: str, prompts: Sequence[str], measure: Callable[[], Record]) -> Record:
        """What was measured of a variant on these prompts: the run's record of it, or one made now.

        Any process of the run may have recorded it, in an earlier session too.
        """
        identity = {"variant": variant, "prompts": len(prompts), "prompts_sha256": texts_sha256(prompts)}
        for known in self.run.read(RECORDS) if self.run else self.held:
            if known["type"] == kind and identity.items() <= known["data"].items():
                found: Record = known["data"]
                return found
        data = {**identity, **measure()}
        self.add(kind, data)
        return data
