"""Collects what a session measured and writes the run directory; knows nothing of pytest.

Workers and the process that asserts only make plain records (see `bench.Record`); whoever writes the report adds them
here as they come in, so the same code serves one process and many.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from engram_bench.bench import Record
from engram_bench.options import ROOT, Settings
from engram_bench.report import plots
from engram_bench.report.build import build
from engram_bench.report.markdown import render

EVALUATION_BUDGET_S = 120  # PRD NFR-1.2


class Session:
    """One run: its records, and the folder they end up in.

    Args:
        settings: of the run.
        argv: the command line, for the report.
        started: when, in seconds since the epoch.
    """

    def __init__(self, settings: Settings, argv: list[str], started: float) -> None:
        self.settings, self.argv = settings, argv
        self.started = datetime.fromtimestamp(started, timezone.utc)
        self.folder: Path | None = None
        self.report: dict[str, Any] | None = None
        self._meta: Record = {}
        self._variants: dict[str, Record] = {}
        self._collateral: dict[str, Record] = {}
        self._thresholds: dict[str, Record] = {}
        self._samples: dict[tuple[Any, ...], Record] = {}
        self._evaluation_s: dict[str, float] = {}
        self._peak_memory = 0

    def add(self, record: Record) -> None:
        """Take one record; a second one of the same thing changes nothing (two workers may measure a baseline)."""
        kind = record["type"]
        if kind == "meta":
            self._meta = {k: v for k, v in record.items() if k != "type"}
            backend = self._meta["backend"]
            self._open(backend["device"] if backend["name"] == "torch" else backend["name"])
        elif kind == "samples":
            if self._append(record["data"]):
                name = record["variant"]
                self._evaluation_s[name] = self._evaluation_s.get(name, 0.0) + record["seconds"]
                self._peak_memory = max(self._peak_memory, record["peak_memory"])
        else:
            store, key = {
                "variant": (self._variants, "name"),
                "collateral": (self._collateral, "variant"),
                "threshold": (self._thresholds, "id"),
            }[kind]
            store.setdefault(record["data"][key], record["data"])

    def finish(self, *, complete: bool) -> Path | None:
        """Write report.json and report.md; returns the run folder, or None where nothing was measured.

        `latest` points at the newest run that was not broken off.
        """
        if self.folder is None or (not self._samples and not self._collateral):
            return None
        order = [variant.name for variant in self.settings.variants]
        self._record_evaluation_time()
        self.report = build(
            run={
                "started": self.started.isoformat(timespec="seconds"),
                "duration_s": round(time.time() - self.started.timestamp(), 1),
                "complete": complete,
                "evaluation_s": {name: round(s, 1) for name, s in self._evaluation_s.items()},
                "tokens_s": self._tokens_per_second(),
                "peak_memory_mb": self._peak_memory >> 20,
                "argv": self.argv,
                "git_commit": _git_commit(),
                "profile": self.settings.profile,
                "seeds": list(self.settings.seeds),
                "samples": self.settings.samples,
            },
            meta=self._meta,
            variants=[self._variants[name] for name in order if name in self._variants],
            samples=list(self._samples.values()),
            collateral=[self._collateral[name] for name in order if name in self._collateral],
            thresholds=sorted(self._thresholds.values(), key=lambda t: t["id"]),
        )
        _write(self.folder / "report.json", json.dumps(self.report, indent=1, ensure_ascii=False) + "\n")
        _write(self.folder / "report.md", render(self.report, list(self._samples.values())))
        plots.write(self.report, self.folder / "plots")
        if complete:
            self._point_latest()
        return self.folder

    def _record_evaluation_time(self) -> None:
        seconds = sum(self._evaluation_s.values())
        data = {"id": "evaluation-seconds", "requirement": "evaluation in under 2 minutes (PRD NFR-1.2)"}
        passed = seconds < EVALUATION_BUDGET_S
        self._thresholds[data["id"]] = {**data, "measured": seconds, "low": seconds, "passed": passed}

    def _tokens_per_second(self) -> dict[str, float]:
        """New tokens a second of each variant, batches and prefill as they came."""
        tokens = dict.fromkeys(self._evaluation_s, 0)
        for sample in self._samples.values():
            tokens[sample["variant"]] += sample["tokens"]
        return {name: round(tokens[name] / seconds, 1) for name, seconds in self._evaluation_s.items()}

    def _point_latest(self) -> None:
        assert self.folder is not None
        latest = self.settings.report / "latest"
        if latest.is_symlink() or not latest.exists():
            new = self.settings.report / f".latest-{self.folder.name}"
            new.symlink_to(self.folder.name)
            new.replace(latest)

    def _open(self, backend: str) -> None:
        if self.folder is None:
            name = f"{self.started:%Y%m%dT%H%M%SZ}-{backend}"
            for count in itertools.count(1):
                folder = self.settings.report / (name if count == 1 else f"{name}-{count}")
                try:
                    folder.mkdir(parents=True)
                except FileExistsError:  # another run started in the same second
                    continue
                self.folder = folder
                return

    def _append(self, samples: list[Record]) -> bool:
        """Keep what is new and write it down; whether anything was."""
        assert self.folder is not None, "a meta record comes before samples"
        before = len(self._samples)
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            for sample in samples:
                key = tuple(sample[k] for k in ("variant", "category", "split", "item", "seed", "sample"))
                if key not in self._samples:
                    self._samples[key] = sample
                    file.write(json.dumps(sample, ensure_ascii=False) + "\n")
        return len(self._samples) > before


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def _git_commit() -> str | None:
    """The checkout's commit, with -dirty behind it where files differ; None outside a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
