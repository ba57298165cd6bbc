"""Makes the report of a run from what its processes left in the run directory; knows nothing of pytest."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

from engram_bench.data.items import SPLITS
from engram_bench.errors import UsageError
from engram_bench.options import Settings
from engram_bench.records import Record
from engram_bench.report import files, gate
from engram_bench.report.build import build
from engram_bench.run import evaluate
from engram_bench.run.rundir import RECORDS, SAMPLES, RunDir, once
from engram_bench.shipped import PACKAGE
from engram_bench.store.cache import write_whole

IDENTITY = {  # what names a record among those of its kind
    "variant": itemgetter("name"),
    "collateral": itemgetter("variant"),
    "mention": itemgetter("variant"),
    "threshold": itemgetter("id"),
    "routing": itemgetter("set", "router"),
    "speed": itemgetter("variant"),
    "lookup": itemgetter("rows"),
}
EVALUATION_BUDGET_S = 120  # PRD NFR-1.2


class Session:
    """One run, as the process that writes its report sees it.

    Args:
        settings: of the run.
        argv: the command line, for the report.
        run: where its processes put what they measure.
        baseline: the report that the gate compares with.
    """

    def __init__(self, settings: Settings, argv: list[str], run: RunDir, baseline: Record | None) -> None:
        self.settings, self.argv, self.run, self._baseline = settings, argv, run, baseline
        self.report: Record | None = None

    def whole(self) -> bool:
        """Whether every cell that was begun has all its answers: not, where a run is taken up to ask something else."""
        kept = once(self.run.read(SAMPLES)).keys()
        begun = {key[:3] for key in kept}
        for variant in self.settings.variants:
            cells = [(category, split) for name, category, split in begun if name == variant.name]
            asked = evaluate.questions(self.settings.patterns, cells)
            rows = evaluate.rows(asked, self.settings.samples, self.settings.sampled_items, variant.control)
            seeds = self.settings.seeds if variant.config else self.settings.seeds[:1]
            if any(evaluate.key(variant.name, q, seed, n) not in kept for seed in seeds for q, n in rows):
                return False
        return True

    def finish(self, *, complete: bool) -> bool:
        """Make the report and write it: JSON, Markdown, HTML, plots.

        That of a complete run is also compared with the gate's baseline, pointed at by `latest`, and made the new
        baseline where that was asked for.

        Returns:
            Whether anything was measured; if not, nothing is written.

        Raises:
            UsageError: the folder cannot be written to.
        """
        samples = self._samples()
        meta, named, answered = self._records()
        if not samples and not any(named[kind] for kind in named if kind != "variant"):
            return False
        variants, collateral, thresholds = named["variant"], named["collateral"], named["threshold"]
        order = [v.name for v in self.settings.variants]
        started = datetime.fromtimestamp(self.run.started, UTC)
        seconds = _seconds(answered, order)
        if seconds and complete:
            thresholds["evaluation-seconds"] = _evaluation_time(seconds)
        self.report = build(
            run={
                "started": started.isoformat(timespec="seconds"),
                "duration_s": round(time.time() - self.run.started, 1),
                "complete": complete,
                "evaluation_s": {name: round(s, 1) for name, s in seconds.items()},
                "tokens_s": _tokens_per_second(samples, seconds),
                "peak_memory_mb": max((a["peak_memory"] for a in answered), default=0) >> 20,
                "argv": self.argv,
                "git_commit": _git_commit(),
                "profile": self.settings.profile,
                "seeds": list(self.settings.seeds),
                "samples": self.settings.samples,
            },
            meta=meta,
            variants=[variants[name] for name in order if name in variants],
            samples=samples,
            collateral=[collateral[name] for name in order if name in collateral],
            mentions=[named["mention"][name] for name in order if name in named["mention"]],
            thresholds=sorted(thresholds.values(), key=lambda t: t["id"]),
            speed=[named["speed"][name] for name in order if name in named["speed"]],
            lookup=[named["lookup"][rows] for rows in sorted(named["lookup"])],
            routers=[named["routing"][of] for of in sorted(named["routing"], reverse=True)],  # labelled set first
        )
        if complete and self._baseline is not None:
            self.report["gate"] = gate.compare(self._baseline, self.report, self.settings.gate_fail)
        try:
            self._write(self.report, samples)
            if complete:
                self._point_latest()
        except OSError as error:
            mend = f"mend that, then go on with --engram-resume {self.run.folder}"
            raise UsageError(f"{error.filename or self.run.folder}: {error.strerror}; {mend}") from error
        if complete:
            self.run.close()
        if complete and self.settings.gate_update and self.settings.gate:
            gate.update(self.settings.gate, self.report)
        return True

    def _write(self, report: Record, samples: Sequence[Record]) -> None:
        folder = self.run.folder
        if report["run"]["complete"]:  # else some worker may be at its last batch, and its answers are kept as well
            write_whole(folder / SAMPLES, "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples))
        files.write(folder, report, samples)

    def exit_code(self) -> int:
        """Of a run whose tests passed: what its gate says, 0 where it has none."""
        return gate.exit_code(self.report["gate"]) if self.report and "gate" in self.report else 0

    def _samples(self) -> list[Record]:
        """Every answer once, in an order that says nothing of who gave it when."""
        variants = [v.name for v in self.settings.variants]
        categories = list(self.settings.patterns.categories)
        rank = {name: i for i, name in enumerate([*variants, *categories, *SPLITS])}
        found = once(self.run.read(SAMPLES))
        return [found[key] for key in sorted(found, key=lambda k: ([rank[name] for name in k[:3]], k[3:]))]

    def _records(self) -> tuple[Record, dict[str, dict[Any, Record]], list[Record]]:
        """Meta; all that has an identity, by kind and by that; and what each batch of answers cost."""
        meta: Record = {}
        named: dict[str, dict[Any, Record]] = {kind: {} for kind in IDENTITY}
        answered: list[Record] = []
        for record in self.run.read(RECORDS):
            kind = record["type"]
            if kind == "meta":
                meta = {k: v for k, v in record.items() if k != "type"}
            elif kind == "answered":
                answered.append(record)
            elif kind == "variant":  # the first tells of the training, those after it of a cached adapter
                named[kind].setdefault(IDENTITY[kind](record["data"]), record["data"])
            else:  # what was measured again, after the run was taken up, is what holds
                named[kind][IDENTITY[kind](record["data"])] = record["data"]
        return meta, named, answered

    def _point_latest(self) -> None:
        runs = self.run.folder.parent
        latest = runs / "latest"
        if latest.is_symlink() or not latest.exists():
            new = runs / f".latest-{self.run.folder.name}"
            new.symlink_to(self.run.folder.name)
            new.replace(latest)


def _seconds(answered: Sequence[Record], variants: Sequence[str]) -> dict[str, float]:
    """Spent answering, by variant; those that did not answer are left out."""
    spent = dict.fromkeys(variants, 0.0)
    for record in answered:
        spent[record["variant"]] += record["seconds"]
    return {name: seconds for name, seconds in spent.items() if seconds}


def _tokens_per_second(samples: Sequence[Record], seconds: dict[str, float]) -> dict[str, float]:
    """New tokens a second of each variant, batches and prefill as they came."""
    return {
        name: round(sum(sample["tokens"] for sample in samples if sample["variant"] == name) / spent, 1)
        for name, spent in seconds.items()
    }


def _evaluation_time(seconds: dict[str, float]) -> Record:
    total = sum(seconds.values())
    data = {"id": "evaluation-seconds", "requirement": "evaluation in under 2 minutes (PRD NFR-1.2)"}
    return {**data, "measured": total, "low": total, "passed": total < EVALUATION_BUDGET_S}


def _git_commit() -> str | None:
    """The checkout's commit, with -dirty behind it where files differ; None outside a repository."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
