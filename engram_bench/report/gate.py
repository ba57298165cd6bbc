"""The gate: compares two report.json, paired on items, and gives each cell a verdict; runs no model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator, ValidationError

from engram_bench import stats
from engram_bench.data.ways import PHRASED, WAYS
from engram_bench.errors import BaselineError, UsageError
from engram_bench.records import EVERYTHING, CellKey, Record
from engram_bench.report.build import SCHEMA_VERSION
from engram_bench.store.cache import write_whole

METRICS = {"exact": "items", "consistency": "consistency"}  # metric -> key of its values by item in `outcomes`
TRAINED = ("seen", "rephrased")  # these splits ask the same items
SLOWER = 1.5  # times the baseline's time; warn above this
REMAKE = "make a new one with --engram-gate-update"

Margins = Mapping[str, float]  # metric -> the drop that fails, as a share


def read(path: Path, mend: str = f"name another, or {REMAKE}") -> Record:
    """Read and validate a report.json; `mend` is the advice at the end of an error message.

    Raises:
        BaselineError: the file is missing or is not a report.
    """
    path = path / "report.json" if path.is_dir() else path
    schema = json.loads(files(__package__).joinpath("schema.json").read_text(encoding="utf-8"))
    del schema["properties"]["schema_version"]  # `refuse` reports a different version
    try:
        report: Record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        Draft202012Validator(schema).validate(report)
    except OSError as error:
        raise BaselineError(f"{path}: {error.strerror}; {mend}") from error
    except ValidationError as error:
        where = error.json_path if len(error.json_path) < 60 else "$"
        raise BaselineError(f"{path}: not an engram-bench report.json (invalid at {where!a}); {mend}") from error
    except (ValueError, RecursionError) as error:
        raise BaselineError(f"{path}: not valid JSON; {mend}") from error
    return report


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def update(path: Path, report: Record) -> None:
    """Make a report the baseline; replaces the file atomically.

    Raises:
        UsageError: the report has no answers, or the file cannot be written.
    """
    if not report["outcomes"]:
        raise UsageError("--engram-gate-update: this run has no answers that could serve as a baseline; run all suites")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UsageError(f"--engram-gate: {path}: {error.strerror}; choose a file that can be written") from error


def fingerprints(report: Record) -> Record:
    """What two comparable runs must share. `report` may be a run's meta record, which exists from its start."""
    return {
        "schema": report.get("schema_version", SCHEMA_VERSION),
        "dataset": report["dataset"]["sha256"],
        "training": report["dataset"].get("training", "bare"),  # older reports knew no other
        "model": report["model"]["sha256"],
        "prompt": report["model"].get("prompt_sha256"),
    }


def refuse(baseline: Record, now: Mapping[str, Any], place: str, *, mend: str = REMAKE, ours: str = "now") -> None:
    """Raise if a baseline cannot serve this run.

    Args:
        baseline: its report.json.
        now: fingerprints of this run, all or those known so far.
        place: the baseline's file, for the message.
        mend: the advice at the end of the message.
        ours: what the message calls this run.

    Raises:
        BaselineError: the baseline's run was interrupted, its report is partial, or some fingerprints differ; the
            message names them.
    """
    if not baseline["run"].get("complete", True):
        raise BaselineError(f"{place}: the run was interrupted; finish it with --engram-resume, or {mend}")
    if partial := baseline["run"].get("partial"):
        raise BaselineError(f"{place}: the report was rebuilt from other answers than the run's ({partial}); {mend}")
    theirs = fingerprints(baseline)
    if other := [f"another {name} ({theirs[name]!s:.12}, {ours} {now[name]!s:.12})" for name in now
                 if theirs[name] != now[name]]:  # fmt: skip
        raise BaselineError(f"{place}: measured with {', '.join(other)}; {mend}")


def compare(baseline: Record, report: Record, fail: Margins) -> Record:
    """Compare every cell that both runs have, paired on the items both answered; Holm's adjustment covers all.

    Compares consistency only if both runs count the same answers, because greedy ones are right more often.
    """
    warnings = _warnings(baseline, report)
    if "consistency" in fail and (reason := _other_consistency(baseline, report)):
        warnings.append(f"consistency was not compared: {reason}")
        fail = {metric: margin for metric, margin in fail.items() if metric != "consistency"}
    pairs = {
        (metric, *cell): found
        for metric in fail
        for cell, found in _paired(_cells(baseline, METRICS[metric]), _cells(report, METRICS[metric])).items()
    }
    tests = [stats.Paired(before, after) for before, after in pairs.values()]
    rows = [
        {
            **{"variant": variant, "category": category, "split": split, "metric": metric},
            "before": sum(before) / result.n,
            "after": sum(after) / result.n,
            **result.as_record(),
            "verdict": verdict(result, fail[metric]),
        }
        for ((metric, variant, category, split), (before, after)), result in zip(
            pairs.items(), stats.compare_all(tests), strict=True
        )
    ]
    return {"fail": dict(fail), "rows": rows, "warnings": warnings}


def verdict(found: stats.Comparison, margin: float) -> str:
    """The gate's verdict on one comparison.

    Returns:
        "regressed": significantly worse, and by more than the margin; "improved": significantly better; "unchanged":
        all items agree, or the interval lies within the margin on both sides; otherwise "inconclusive".
    """
    significant, difference = found.p_holm < 1 - stats.LEVEL, found.difference
    if significant and difference.value < -margin:
        return "regressed"
    if significant and difference.value > 0:
        return "improved"
    return "unchanged" if found.identical or stats.equivalent(difference, margin) else "inconclusive"


def exit_code(gate: Record) -> int:
    """1 if a cell regressed; 4 if the runs share no cell, so that nothing was checked; else 0."""
    if not gate["rows"]:
        return BaselineError.exit_code
    return int(any(row["verdict"] == "regressed" for row in gate["rows"]))


def _cells(report: Record, field: str) -> dict[CellKey, dict[str, float]]:
    return {CellKey(o["variant"], o["category"], o["split"]): o[field] for o in report["outcomes"] if o.get(field)}


def _other_consistency(baseline: Record, report: Record) -> str:
    """Why the consistencies of two runs count different answers; empty if they count the same."""
    before, now = (r["run"]["samples"] for r in (baseline, report))
    if before != now:
        return f"{before} sampled answers per item before, {now} now"
    cells = [_cells(r, "consistency") for r in (baseline, report)]
    if any("agreement" not in o for r in (baseline, report) for o in r["outcomes"] if o.get("consistency")):
        return f"one of the runs is of a version that counted answers that agree, right or wrong; {REMAKE}"
    asked = [_cells(r, "items").keys() for r in (baseline, report)]
    shared = {cell._replace(split=way) for cell in cells[0].keys() & cells[1].keys() for way in PHRASED}
    other = sorted({cell.split for cell in shared & (asked[0] ^ asked[1])})
    return f"only one of the runs asked some cells in these ways: {', '.join(other)}" if other else ""


def _paired(
    before: Mapping[CellKey, Mapping[str, float]], after: Mapping[CellKey, Mapping[str, float]]
) -> dict[CellKey, tuple[list[float], list[float]]]:
    """Pair the outcomes of the items both runs have.

    Returns:
        Outcomes before and after, for each cell, for all categories of a variant and split, and for both splits of
        trained items. There an item asked in two phrasings counts once, by its mean.
    """
    pairs: dict[CellKey, tuple[list[float], list[float]]] = {}
    facts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    rank = {name: i for i, name in enumerate(WAYS)}
    for cell in sorted(before.keys() & after.keys(), key=lambda c: (c[0], rank[c[2]], c[1])):
        variant, category, split = cell
        for item in sorted(before[cell].keys() & after[cell].keys()):
            for name in (EVERYTHING, category):
                olds, news = pairs.setdefault(CellKey(variant, name, split), ([], []))
                olds.append(before[cell][item])
                news.append(after[cell][item])
            if split in TRAINED:
                found = facts.setdefault(variant, {}).setdefault(item, [])
                found.append((before[cell][item], after[cell][item]))
    for variant, items in facts.items():
        if any(len(phrasings) > 1 for phrasings in items.values()):
            means = np.array([np.mean(phrasings, axis=0) for phrasings in items.values()])  # [facts, before and after]
            pairs[CellKey(variant, EVERYTHING, "+".join(TRAINED))] = means[:, 0].tolist(), means[:, 1].tolist()
    return pairs


def _warnings(baseline: Record, report: Record) -> list[str]:
    """Differences that do not fail a run: hardware, training seeds, missing or new cells, slower answers."""
    found = []
    for key in ("device", "dtype"):
        theirs, ours = baseline["backend"][key], report["backend"][key]
        if theirs != ours:
            found.append(f"the baseline used {key} {theirs}, this run used {ours}")
    theirs, ours = (", ".join(map(str, r["run"]["seeds"])) for r in (baseline, report))
    if theirs != ours:
        found.append(f"the baseline used training seeds {theirs}, this run used {ours}")
    asked, known = _cells(report, "items"), _cells(baseline, "items")
    if missing := len(known.keys() - asked.keys()):
        found.append(f"this run did not ask {missing} of the baseline's {len(known)} cells")
    if new := len(asked.keys() - known.keys()):
        found.append(f"{new} cells of this run are not in the baseline")
    if kept := sum(report["run"].get("kept", {}).values()):
        found.append(f"{kept} answers of this run are those of earlier runs; --engram-reask asks again")
    theirs, ours = (r["run"].get("evaluation_s", {}) for r in (baseline, report))
    for variant in sorted(theirs.keys() & ours.keys()):
        if not missing and not new and theirs[variant] and ours[variant] > SLOWER * theirs[variant]:
            found.append(
                f"{variant} answered in {ours[variant]:.0f} s, in {theirs[variant]:.0f} s in the baseline's run"
            )
    return found
