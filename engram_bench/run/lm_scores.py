"""The scores of lm-evaluation-harness without and with an adapter: from its results to a table and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from engram_bench.errors import UsageError

# What a file keeps of the results of lm-eval: all but descriptions of the machine.
KEPT = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "n-samples", "higher_is_better")

Results = dict[str, Any]  # what `lm_eval.simple_evaluate` returns


@dataclass(frozen=True)
class Score:
    """A metric of a task without and with the adapter; None: without an adapter, or the metric has no standard error.

    Attributes:
        filter: how lm-eval takes the answer from the output; "none": as it is.
        difference: adapter minus untouched.
    """

    task: str
    metric: str
    filter: str
    untouched: float
    untouched_stderr: float | None
    with_adapter: float | None
    with_adapter_stderr: float | None
    difference: float | None


def scores_of(untouched: Results, adapted: Results | None) -> list[Score]:
    """Every metric of every task and group, in lm-eval's order."""
    found = []
    for task, values in untouched["results"].items():
        for key, value in values.items():
            metric, _, taken = key.partition(",")
            if not taken or metric.endswith("_stderr") or _number(value) is None:
                continue
            each = [results["results"][task] for results in (untouched, adapted) if results]
            pairs = [(float(one[key]), _number(one.get(f"{metric}_stderr,{taken}"))) for one in each]
            (own, stderr), (other, its) = (*pairs, (None, None))[:2]
            difference = None if other is None or own is None else other - own
            found.append(Score(task, metric, taken, float(value), stderr, other, its, difference))
    return found


def table(scores: Sequence[Score], name: str | None) -> str:
    """A text table; `name` is the variant's, None without an adapter."""
    headers = ["task", "metric", "untouched", "stderr"] + (["with " + name, "stderr", "difference"] if name else [])
    rows = []
    for score in scores:
        metric = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
        row = [score.task, metric, f"{score.untouched:.4f}", _shown(score.untouched_stderr)]
        if name:
            row += [_shown(score.with_adapter), _shown(score.with_adapter_stderr), _shown(score.difference, "+.4f")]
        rows.append(row)
    sides = ["left", "left", *["right"] * (len(headers) - 2)]
    return tabulate(rows, headers=headers, colalign=sides, disable_numparse=True)


def _shown(value: float | None, form: str = ".4f") -> str:
    return "" if value is None else format(value, form)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None  # lm-eval has "N/A"


def write(
    file: Path, about: Mapping[str, Any], scores: Sequence[Score], untouched: Results, adapted: Results | None
) -> None:
    """Write the scores and lm-eval's own results as JSON, after the fields of `about`.

    Raises:
        UsageError: the file cannot be written.
    """
    both = {"untouched": _kept(untouched), "with_adapter": adapted and _kept(adapted)}
    content = {**about, "scores": [asdict(score) for score in scores], **both}
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--out: {file}: {error.strerror}; choose another file") from error


def _kept(results: Results) -> Results:
    return {name: results[name] for name in KEPT if name in results}
