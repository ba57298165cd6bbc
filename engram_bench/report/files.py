"""Writes the files of a report at the end of a run, and rebuilds them from its answers later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from engram_bench.errors import BaselineError, UsageError
from engram_bench.records import SAMPLES, Record, once, read
from engram_bench.report import gate, html, markdown, plots
from engram_bench.report.build import SCHEMA_VERSION, build
from engram_bench.store.cache import write_whole

META = ("backend", "model", "dataset")


def write(folder: Path, report: Record, samples: Sequence[Record]) -> None:
    """Write report.json, report.md, report.html and plots/ into a run's folder."""
    write_whole(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    made = plots.write(report, folder / "plots")
    write_whole(folder / "report.md", markdown.render(report, samples, made))
    write_whole(folder / "report.html", html.render(report, samples, made))


def answers(samples: Sequence[Record]) -> Record:
    """How many answers a report is made from, and their SHA-256 in any order: `rebuild` requires the same ones."""
    lines = sorted(json.dumps(sample, ensure_ascii=False, sort_keys=True) for sample in samples)
    return {"count": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def rebuild(folder: Path, partial: bool = False) -> None:
    """Rebuild a report from samples.jsonl; times and trainings, which answers lack, come from the old report.json.

    Args:
        folder: of the run.
        partial: accept answers other than those the report was made from. Its first line then says so.

    Raises:
        UsageError: the folder holds no report or one of another version, its answers are not those of the report, or
            its files cannot be read or written. Nothing is written then.
    """
    try:
        old = gate.read(folder / "report.json", "name the folder of a run")
    except BaselineError as error:
        raise UsageError(str(error)) from error
    if old["schema_version"] != SCHEMA_VERSION:
        raise UsageError(
            f"{folder}: its report has schema version {old['schema_version']!a}, but this engram-bench reads version "
            f"{SCHEMA_VERSION}; use the engram-bench that wrote it, or repeat the run"
        )
    try:
        samples = list(once(read(folder / SAMPLES, whole=old["run"].get("complete", True) and not partial)).values())
        report = build(
            run=_run(old, samples, folder / SAMPLES, partial),
            meta={key: old[key] for key in META},
            variants=old["variants"],
            samples=samples,
            collateral=old["collateral"],
            passages=old.get("passages", ()),
            mentions=old.get("mentions", ()),
            thresholds=old["thresholds"],
            speed=old["speed"],
            lookup=old.get("lookup", ()),
            routers=(old["routing"] or {}).get("routers", ()),
            routed=old.get("routed", ()),
        )
        report |= {"gate": old["gate"]} if "gate" in old else {}
        write(folder, report, samples)
    except OSError as error:
        raise UsageError(f"{error.filename or folder}: {error.strerror}; name the folder of a complete run") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        mend = "repeat the run" if partial else "rebuild it from the whole lines with --partial, or repeat the run"
        raise UsageError(f"{folder / SAMPLES}: answers do not fit report.json ({reason}); {mend}") from error


def _run(old: Record, samples: Sequence[Record], place: Path, partial: bool) -> Record:
    """The run's record for a report rebuilt from these answers, marked if the run had others.

    A report without `answers`, of an older version, has at least the items of its outcomes. The report of an
    interrupted run may lack the last answers, which its workers wrote after it.

    Raises:
        UsageError: the run had other answers, and `partial` is not set.
    """
    run = {key: value for key, value in old["run"].items() if key != "partial"}
    expected, found = run.get("answers"), answers(samples)
    if expected is None:
        same, reason = found["count"] >= sum(len(o["items"]) for o in old["outcomes"]), "answers are missing"
    elif run.get("complete", True):
        same, reason = found == expected, "the answers are not those of the run"
    else:
        same, reason = found["count"] >= expected["count"], "answers are missing"
    if same:
        return run
    if expected is not None and found["count"] < expected["count"]:
        reason = f"{found['count']:,} of {expected['count']:,} answers"
    if not partial:
        raise UsageError(f"{place}: {reason}; restore the file, or use --partial to rebuild from what it has")
    return {**run, "partial": reason}
