"""What came out of the runs of a sweep: a row for each run and variant, and recipes over training seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engram_bench.data.ways import GROUPS
from engram_bench.records import BASELINE, Record
from engram_bench.report.text import percent
from engram_bench.sweep.execute import DONE, FAILED, RUNS, report, state
from engram_bench.sweep.plan import SEEDS, Run

LESS = ("kl", "kl_with_keys", "recited", "train_seconds", "train_steps", "adapter_bytes")  # the less, the better
MEASURES = (*GROUPS, *LESS)
SHARES = (*GROUPS, "recited")  # measures between 0 and 1
COLUMNS = ("missed_thresholds", "run_seconds", "machine", "dtype", "commit", "why")


class Row(NamedTuple):
    """One variant of one run.

    Attributes:
        run, axes, status: of the run.
        variant: "" for a run without a report.
        measures: by name; None for what was not measured.
        rest: `COLUMNS`.
        still: whether its KL is 0 by construction.
    """

    run: str
    axes: Mapping[str, str]
    status: str
    variant: str
    measures: Mapping[str, float | None]
    rest: Mapping[str, Any]
    still: bool = False


class Recipe(NamedTuple):
    """Rows that differ in their training seed alone: means, and the half of a 95% interval over seeds."""

    label: str
    variant: str
    axes: Mapping[str, str]
    runs: int
    means: Mapping[str, float | None]
    halves: Mapping[str, float | None]
    still: bool


def rows(runs: Sequence[Run], out: Path) -> list[Row]:
    """A row for each run and each of its variants but the baseline, in the order of the file."""
    found = []
    for run in runs:
        folder = out / RUNS / run.folder
        made = report(folder)
        if made is None:
            now = state(folder)
            damaged = now.status == DONE
            status, why = (FAILED, "its report cannot be read; delete its folder") if damaged else (now.status, now.why)
            found.append(Row(run.name, run.axes, status, "", {}, {"why": why}))
            continue
        variants = [v for v in made["variants"] if v["name"] != BASELINE] or made["variants"]
        for variant in variants:
            card: Record = next((card for card in made.get("scorecard", ()) if card["variant"] == variant["name"]), {})
            still = bool((card.get("kl") or {}).get("by_construction"))
            measures = _measures(card, variant)
            found.append(Row(run.name, run.axes, DONE, variant["name"], measures, _rest(made), still))
    return found


def _measures(card: Record, variant: Record) -> dict[str, float | None]:
    train = variant["train"] or {}
    return {
        **{group: (card.get(group) or {}).get("rate") for group in GROUPS},
        "kl": (card.get("kl") or {}).get("mean"),
        "kl_with_keys": card.get("kl_with_keys"),
        "recited": (card.get("recited") or {}).get("rate"),
        "train_seconds": train.get("seconds"),
        "train_steps": train.get("steps"),
        "adapter_bytes": card.get("adapter_bytes"),
    }


def _rest(made: Record) -> dict[str, Any]:
    run, backend = made["run"], made["backend"]
    return {
        "missed_thresholds": sum(not threshold["passed"] for threshold in made["thresholds"]),
        "run_seconds": run["duration_s"],
        "machine": f"{backend['name']} on {backend['device']}",
        "dtype": backend["dtype"],
        "commit": (run["git_commit"] or "unknown")[:8],
        "why": "",
    }


def recipes(found: Sequence[Row]) -> list[Recipe]:
    """The finished rows by what they vary but for the seed."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Row]] = {}
    for row in found:
        if row.status == DONE:
            axes = tuple((name, text) for name, text in row.axes.items() if name != SEEDS)
            groups.setdefault((row.variant, axes), []).append(row)
    said: dict[str, set[str | None]] = {}  # what every row says is no part of a label
    for row in found:
        for name in row.axes:
            said[name] = {other.axes.get(name) for other in found}
    made = []
    for (variant, axes), members in groups.items():
        values = {name: [row.measures[name] for row in members] for name in MEASURES}
        known = {name: [v for v in every if v is not None] for name, every in values.items()}
        told = [
            f"{name.removeprefix(f'{variant}.')}={text}"
            for name, text in axes
            if (name, text) != ("variants", variant) and (len(said[name]) > 1 or name.startswith(f"{variant}."))
        ]
        told = told or ([] if members[0].axes else [members[0].run])
        made.append(
            Recipe(
                " ".join([variant, *told]),
                variant,
                dict(axes),
                len(members),
                {name: sum(v) / len(v) if len(v) == len(members) else None for name, v in known.items()},
                {name: _half(v) for name, v in known.items()},
                all(row.still for row in members),
            )
        )
    return made


def _half(values: Sequence[float]) -> float | None:
    """Half of the 95% interval of a mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy import stats

    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return float(stats.t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))


def shown(name: str, value: float | None, half: float | None = None, still: bool = False) -> str:
    """A measure, with the half of its interval; `still`: a KL is 0 by construction."""
    if value is None:
        return ""
    if still and name == "kl":
        return "0*"
    if name in SHARES:
        return percent(value) + ("" if half is None else f" ±{100 * half:.1f}")
    return f"{value:.4g}" + ("" if half is None else f" ±{half:.2g}")
