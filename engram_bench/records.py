"""Records, which a run writes as it goes: their kinds, what identifies each, and how to read them.

A run writes two JSON Lines files: samples.jsonl for its answers, and .work/records.jsonl for everything else, as
``{"type": kind, ...}``. A report is made from these two files alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]  # plain data: one line of a run's files, or a part of its report
Report = Mapping[str, Any]  # a report.json or a part of it, read-only

SAMPLES = "samples.jsonl"

BASELINE = "baseline"  # every other variant is compared with this one
PROMPTED, RETRIEVAL = "prompted", "retrieval"  # the untouched model with solved examples, without facts and with them
CLAIMS = ("lora", "engram-keyed")  # variants that must meet the thresholds; all other variants are only reported
GREEDY = 0  # sample number of the greedy answer; sampled answers count from 1
REPEAT = -1  # the greedy answer again, in another batch: shows whether rounding changes it

# Kind -> function from a record's "data" to its identity; of two records with one identity, `by_kind` keeps one.
# Two more kinds have no identity: "meta", the first record of a run, and "answered", seconds and memory of a batch.
IDENTITY: Mapping[str, Callable[[Record], Any]] = {
    "variant": itemgetter("name"),
    "collateral": itemgetter("variant"),
    "mention": itemgetter("variant"),
    "passages": itemgetter("variant", "kind"),
    "threshold": itemgetter("id"),
    "routing": itemgetter("set", "router"),
    "routed": itemgetter("prompt"),
    "speed": itemgetter("variant"),
    "lookup": itemgetter("rows"),
    "detached": itemgetter("variant"),
    "batches": itemgetter("variant"),
    "streamed": itemgetter("variant"),
}


class CellKey(NamedTuple):
    """Identifies a cell: the answers of one variant to one category in one split."""

    variant: str
    category: str
    split: str


class SampleKey(NamedTuple):
    """Identifies one answer of a run; `sample` is `GREEDY`, `REPEAT`, or counts from 1."""

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
    """One scored answer, a line of samples.jsonl.

    `tokens` counts the generated tokens without end-of-text; `prompt_tokens` those that the model read before, 0 if the
    answer needed no model, None in answers of older versions.
    """

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
    prompt_tokens: int | None = None

    @property
    def key(self) -> SampleKey:
        return SampleKey(self.variant, self.category, self.split, self.item, self.seed, self.sample)


def read(path: Path, *, whole: bool = False) -> list[Record]:
    """The lines of a JSON Lines file.

    Skips lines that are not JSON, because a killed process may leave a partial line. If `whole`, raises instead.

    Raises:
        OSError: the file cannot be read.
        ValueError: `whole` is set and a line is not JSON.
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
    """Map the identity of each answer to its line of samples.jsonl; of two with one identity, the later counts."""
    return {SampleKey(*(sample[field] for field in SampleKey._fields)): sample for sample in samples}


@dataclass(frozen=True)
class Measured:
    """The records of a run, without its answers.

    Attributes:
        meta: backend, model and dataset.
        named: data by kind, then by identity (see `IDENTITY`).
        answered: the cost of each batch of answers.
    """

    meta: Record
    named: dict[str, dict[Any, Record]]
    answered: list[Record]


def by_kind(records: Iterable[Record]) -> Measured:
    """Group records by kind; a later record replaces an earlier one of the same identity.

    A variant keeps its first record: that one describes the training, later ones only a cached adapter.
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
EVERYTHING = "all categories"  # pools the categories, whatever their groups


def pooled(group: str) -> str:
    """Name of the cell that pools a group; no category has a space in its name, so it is unique."""
    return POOLED + group


def is_pooled(category: str) -> bool:
    """Whether a name is that of a pooled group rather than of a category."""
    return category.startswith(POOLED)
