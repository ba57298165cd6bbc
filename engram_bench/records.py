"""What records, reports and suites call things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Record = dict[str, Any]  # plain data, a line of a run's files or a part of its report
Report = Mapping[str, Any]  # a report.json, or a part of it, to be read only

BASELINE = "baseline"  # the variant all others are compared with
GREEDY = 0  # the sample number of the greedy answer; those drawn count from 1
REPEAT = -1  # the greedy answer once more, among other neighbours in its batch: what rounding can change shows here
SAMPLE_KEY = ("variant", "category", "split", "item", "seed", "sample")  # fields of a sample that name it
POOLED = "all "


def pooled(group: str) -> str:
    """What a report calls the cell over all categories of a group; no category has a space in its name."""
    return POOLED + group


def is_pooled(category: str) -> bool:
    """Whether a report's cell is over all categories of a group."""
    return category.startswith(POOLED)
