"""Reads the file of a sweep; everything is checked before anything starts."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from engram_bench.data.nodes import Nodes
from engram_bench.errors import UsageError
from engram_bench.sweep import plan, search
from engram_bench.sweep.plan import NAME, Maker, Run

SEARCH = "search"


class Resources(NamedTuple):
    """What one run takes on a cluster: cores, GPUs, and memory in GB."""

    cpus: float = 2
    gpus: float = 0
    memory: float = 4


@dataclass(frozen=True)
class Sweep:
    """A file of runs.

    Attributes:
        file: its path.
        runs: of `grid` and `list`.
        maker: made them.
        resources: what a run takes on a cluster.
        search: None without one.
    """

    file: Path
    runs: tuple[Run, ...]
    maker: Maker
    resources: Resources
    search: search.Search | None


def read(file: Path) -> Sweep:
    """Read a sweep's file.

    Raises:
        UsageError: its problems, a line each, with the file and the line.
    """
    problems: list[str] = []
    nodes = Nodes(file, problems)
    root = nodes.root()
    fields = nodes.fields(root, ("base", "grid", "list", SEARCH, "resources"), ()) if not problems else {}
    if not problems and not {"grid", "list", SEARCH} & fields.keys():
        nodes.problem(root, "nothing to run; add grid, list or search")
    resources = _resources(nodes, fields["resources"]) if "resources" in fields else Resources()
    base = plan.values(nodes, fields["base"], "base") if "base" in fields else {}
    grid = plan.axes(nodes, fields["grid"]) if "grid" in fields else {}
    listed = (
        [plan.values(nodes, entry, "list", NAME) for entry in nodes.entries(fields["list"], "list")]
        if "list" in fields
        else []
    )
    _stop(problems)
    maker = Maker(file, base, problems)
    crossed = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []
    runs: dict[str, Run] = {}
    for changes in crossed:
        if (run := maker.made(changes)) is not None:  # a field of a variant that a run lacks does not tell runs apart
            runs.setdefault(run.name, run)
    for changes in listed:
        run = maker.made(changes)
        if run is not None and run.name in runs:
            problems.append(
                f"{next(iter(changes.values())).place}: run {run.name!r} is given twice; give one another name"
            )
        elif run is not None:
            runs[run.name] = run
    folders = Counter(run.folder.casefold() for run in runs.values())
    for run in runs.values():
        if folders[run.folder.casefold()] > 1:  # some disks take A and a for one name
            problems.append(f"{file}: run {run.name!r} and another differ only in upper and lower case; rename one")
    found = None
    if SEARCH in fields and not problems:
        found = search.read(nodes, fields[SEARCH], maker)
    maker.check_names([*crossed, *listed])
    _stop(problems)
    return Sweep(file, tuple(runs.values()), maker, resources, found)


def _resources(nodes: Nodes, node: yaml.Node) -> Resources:
    found = {}
    for name, entry in nodes.fields(node, Resources._fields, ()).items():
        value = plan.plain(entry)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            nodes.problem(entry, f"{name} is {value!r}, expected a number, 0 or more")
        elif name in Resources._fields:
            found[name] = value
    return Resources(**found)


def _stop(problems: Sequence[str]) -> None:
    """Raise if there are problems, in the order of their lines."""

    def line(problem: str) -> int:
        found = re.match(r".*?:(\d+): ", problem)
        return int(found[1]) if found else 0

    if problems:
        raise UsageError("\n".join(sorted(problems, key=line)))
