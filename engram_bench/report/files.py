"""Writes the files of a report at the end of a run, and rebuilds them from its answers later."""

from __future__ import annotations

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


def rebuild(folder: Path) -> None:
    """Rebuild a report from samples.jsonl; times and trainings, which answers lack, come from the old report.json.

    Raises:
        UsageError: the folder holds no report or one of another version, or its answers or files cannot be read or
            written.
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
        samples = list(once(read(folder / SAMPLES, whole=old["run"].get("complete", True))).values())
        report = build(
            run=old["run"],
            meta={key: old[key] for key in META},
            variants=old["variants"],
            samples=samples,
            collateral=old["collateral"],
            mentions=old.get("mentions", ()),
            thresholds=old["thresholds"],
            speed=old["speed"],
            lookup=old.get("lookup", ()),
            routers=(old["routing"] or {}).get("routers", ()),
        )
        report |= {"gate": old["gate"]} if "gate" in old else {}
        write(folder, report, samples)
    except OSError as error:
        raise UsageError(f"{error.filename or folder}: {error.strerror}; name the folder of a complete run") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        raise UsageError(f"{folder / SAMPLES}: answers do not fit report.json ({reason}); repeat the run") from error
