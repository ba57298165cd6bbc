"""Records: what a run writes down as it goes. Their kinds, what identifies each, and how they are read again.

A run leaves two files of JSON lines: answers in samples.jsonl, and records of all else, ``{"type": kind, ...}``. A
report is made from these alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]  # plain data, a line of a run's files or a part of its report
Report = Mapping[str, Any]  # a report.json, or a part of it, to be read only

SAMPLES = "samples.jsonl"

BASELINE = "baseline"  # the variant all others are compared with
GREEDY = 0  # the sample number of the greedy answer; those drawn count from 1
REPEAT = -1  # the greedy answer once more, among other neighbours in its batch: what rounding can change shows here

# Kinds of records that replace an earlier one of the same identity: type -> what identifies its "data". Two more have
# no identity: "meta", the first of a run, and "answered", the seconds and memory of each batch of answers.
IDENTITY: Mapping[str, Callable[[Record], Any]] = {
    "variant": itemgetter("name"),
    "collateral": itemgetter("variant"),
    "mention": itemgetter("variant"),
    "threshold": itemgetter("id"),
    "routing": itemgetter("set", "router"),
    "speed": itemgetter("variant"),
    "lookup": itemgetter("rows"),
}


class CellKey(NamedTuple):
    """Identifies a cell: the answers of one variant to one category in one split."""

    variant: str
    category: str
    split: str


class SampleKey(NamedTuple):
    """Identifies one answer of a run."""

    variant: str
    category: str
    split: str
    item: str
    seed: int
    sample: int

    @property
    def cell(self) -> CellKey:
        return CellKey(self.variant, self.category, self.split)


@dataclass(frozen=True)
class Sample:
    """One answer, scored: a line of samples.jsonl. `tokens` counts what was generated, end-of-text left out."""

    variant: str
    category: str
    split: str
    item: str
    phrasing: str
    seed: int
    sample: int
    prompt: str
    expected: str
    output: str
    tokens: int
    canonical_tokens: int
    exact: bool
    prefix: bool

    @property
    def key(self) -> SampleKey:
        return SampleKey(self.variant, self.category, self.split, self.item, self.seed, self.sample)


def read(path: Path, *, whole: bool = False) -> list[Record]:
    """The lines of a file of records. A killed process leaves an unfinished one; `whole`: there may be none.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line of a `whole` file is not JSON.
    """
    found = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            if whole:
                raise
    return found


def once(samples: Iterable[Record]) -> dict[SampleKey, Record]:
    """Lines of samples.jsonl by their identity. Of two answers with one identity, the later counts."""
    return {SampleKey(*(sample[field] for field in SampleKey._fields)): sample for sample in samples}


@dataclass(frozen=True)
class Measured:
    """The records of a run but its answers.

    Attributes:
        meta: what was run, on what.
        named: by kind, then by identity, see `IDENTITY`.
        answered: the cost of each batch of answers.
    """

    meta: Record
    named: dict[str, dict[Any, Record]]
    answered: list[Record]


def by_kind(records: Iterable[Record]) -> Measured:
    """Records sorted by kind. A later record replaces an earlier one of the same identity.

    Of a variant the first record stays: it tells of the training, and later ones of a cached adapter.
    """
    meta: Record = {}
    named: dict[str, dict[Any, Record]] = {kind: {} for kind in IDENTITY}
    answered: list[Record] = []
    for record in records:
        kind = record["type"]
        if kind == "meta":
            meta = {k: v for k, v in record.items() if k != "type"}
        elif kind == "answered":
            answered.append(record)
        else:
            identity = IDENTITY[kind](record["data"])
            if kind != "variant" or identity not in named[kind]:
                named[kind][identity] = record["data"]
    return Measured(meta, named, answered)


POOLED = "all "


def pooled(group: str) -> str:
    """What a report calls the cell over all categories of a group; no category has a space in its name."""
    return POOLED + group


def is_pooled(category: str) -> bool:
    """Whether a report's cell is over all categories of a group."""
    return category.startswith(POOLED)
