"""Makes the report of a run from the records and answers in its directory; independent of pytest."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from engram_bench import records
from engram_bench.data.ways import WAYS
from engram_bench.errors import UsageError
from engram_bench.options import Settings
from engram_bench.records import SAMPLES, Record, once
from engram_bench.report import files, gate
from engram_bench.report.build import build
from engram_bench.run import evaluate
from engram_bench.run.routed import PROMPTS
from engram_bench.run.rundir import RECORDS, RunDir
from engram_bench.shipped import PACKAGE
from engram_bench.store.cache import write_whole

COMMIT = "COMMIT"  # file in the package
EVALUATION_BUDGET_S = 120  # PRD NFR-1.2


class Session:
    """One run, in the process that writes its report.

    Args:
        settings: options of the run.
        argv: the command line, for the report.
        run: the directory with the records and answers of all its processes.
        baseline: the report that the gate compares with; None without a gate.

    Attributes:
        report: the report that `finish` made, None before.
    """

    def __init__(self, settings: Settings, argv: list[str], run: RunDir, baseline: Record | None) -> None:
        self.settings, self.argv, self.run, self._baseline = settings, argv, run, baseline
        self.report: Record | None = None

    def whole(self) -> bool:
        """Whether every cell with any answers has all of them.

        A run that was resumed with another selection of tests may leave a cell partly answered.
        """
        kept = once(self.run.read(SAMPLES)).keys()
        begun = {key.cell for key in kept}
        for variant in self.settings.variants:
            cells = [(cell.category, cell.split) for cell in begun if cell.variant == variant.name]
            asked = evaluate.questions(self.settings.patterns, cells, self.settings.plan.most)
            requests = evaluate.requests(asked, self.settings.samples, self.settings.sampled_items, variant.control)
            seeds = self.settings.seeds if variant.config else self.settings.seeds[:1]
            if any(evaluate.key(variant.name, request, seed) not in kept for seed in seeds for request in requests):
                return False
        return True

    def finish(self, *, complete: bool) -> bool:
        """Make the report and write it: JSON, Markdown, HTML, plots.

        For a complete run, also compares it with the gate's baseline, points `latest` to it, and makes it the new
        baseline on `--engram-gate-update`.

        Returns:
            Whether anything was measured; if not, nothing is written.

        Raises:
            UsageError: the folder or the baseline cannot be written.
        """
        samples = self._samples()
        measured = records.by_kind(self.run.read(RECORDS))
        named = measured.named
        if not samples and not any(named[kind] for kind in named if kind != "variant"):
            return False
        variants, collateral, thresholds = named["variant"], named["collateral"], named["threshold"]
        order = [v.name for v in self.settings.variants]
        started = datetime.fromtimestamp(self.run.started, UTC)
        seconds = _seconds(measured.answered, order)
        kept = _kept(measured.answered)
        if seconds and complete and not kept:
            thresholds["evaluation-seconds"] = _evaluation_time(seconds)
        self.report = build(
            run={
                "started": started.isoformat(timespec="seconds"),
                "duration_s": round(time.time() - self.run.started, 1),
                "complete": complete,
                "answers": files.answers(samples),
                "evaluation_s": {name: round(s, 1) for name, s in seconds.items()},
                "tokens_s": _tokens_per_second(samples, seconds),
                "kept": kept,
                "matmul_gflops": measured.meta.pop("matmul_gflops", None),
                "peak_memory_mb": max((a["peak_memory"] for a in measured.answered), default=0) >> 20,
                "argv": self.argv,
                "git_commit": git_commit(),
                "profile": self.settings.profile,
                "seeds": list(self.settings.seeds),
                "samples": self.settings.samples,
            },
            meta=measured.meta,
            variants=[variants[name] for name in order if name in variants],
            samples=samples,
            collateral=[collateral[name] for name in order if name in collateral],
            passages=[p for name in order for (variant, _), p in named["passages"].items() if variant == name],
            mentions=[named["mention"][name] for name in order if name in named["mention"]],
            thresholds=sorted(thresholds.values(), key=lambda t: t["id"]),
            speed=[named["speed"][name] for name in order if name in named["speed"]],
            lookup=[named["lookup"][rows] for rows in sorted(named["lookup"])],
            routers=[named["routing"][of] for of in sorted(named["routing"], reverse=True)],  # labelled set first
            routed=[named["routed"][asked.prompt] for asked in PROMPTS if asked.prompt in named["routed"]],
        )
        if complete and self._baseline is not None:
            self.report["gate"] = gate.compare(self._baseline, self.report, self.settings.gate_fail)
        try:
            self._write(self.report, samples)
            if complete:
                self._point_latest()
        except OSError as error:
            remedy = f"fix that, then resume with --engram-resume {self.run.folder}"
            raise UsageError(f"{error.filename or self.run.folder}: {error.strerror}; {remedy}") from error
        if complete:
            self.run.close()
        if complete and self.settings.gate_update and self.settings.gate:
            gate.update(self.settings.gate, self.report)
        return True

    def _write(self, report: Record, samples: Sequence[Record]) -> None:
        folder = self.run.folder
        if report["run"]["complete"]:  # otherwise a worker may still append its last batch
            write_whole(folder / SAMPLES, "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples))
        files.write(folder, report, samples)

    def exit_code(self) -> int:
        """Exit code of a run whose tests passed: the gate's, or 0 without a gate."""
        return gate.exit_code(self.report["gate"]) if self.report and "gate" in self.report else 0

    def _samples(self) -> list[Record]:
        """Every answer once, in an order that does not depend on workers or timing."""
        variants = [v.name for v in self.settings.variants]
        categories = list(self.settings.patterns.categories)
        rank = {name: i for i, name in enumerate([*variants, *categories, *WAYS])}
        found = once(self.run.read(SAMPLES))
        return [found[key] for key in sorted(found, key=lambda k: ([rank[name] for name in k[:3]], k[3:]))]

    def _point_latest(self) -> None:
        runs = self.run.folder.parent
        latest = runs / "latest"
        if latest.is_symlink() or not latest.exists():
            new = runs / f".latest-{self.run.folder.name}"
            new.symlink_to(self.run.folder.name)
            new.replace(latest)


def _seconds(answered: Sequence[Record], variants: Sequence[str]) -> dict[str, float]:
    """Seconds spent generating answers, by variant; leaves out variants with none, or with answers of earlier runs."""
    spent, kept = dict.fromkeys(variants, 0.0), _kept(answered)
    for record in answered:
        spent[record["variant"]] += record["seconds"]
    return {name: seconds for name, seconds in spent.items() if seconds and name not in kept}


def _kept(answered: Sequence[Record]) -> dict[str, int]:
    """Answers that came from earlier runs, by variant; leaves out variants with none."""
    found = Counter[str]()
    for record in answered:
        found[record["variant"]] += record.get("kept", 0)
    return dict(+found)


def _tokens_per_second(samples: Sequence[Record], seconds: dict[str, float]) -> dict[str, float]:
    """New tokens per second of each variant, over the whole time in batches, prefill included."""
    return {
        name: round(sum(sample["tokens"] for sample in samples if sample["variant"] == name) / spent, 1)
        for name, spent in seconds.items()
    }


def _evaluation_time(seconds: dict[str, float]) -> Record:
    total = sum(seconds.values())
    data = {"id": "evaluation-seconds", "requirement": "evaluation in under 2 minutes (PRD NFR-1.2)"}
    return {**data, "measured": total, "low": total, "passed": total < EVALUATION_BUDGET_S}


def git_commit() -> str | None:
    """The commit of the checkout, with the suffix -dirty if files differ; None outside a repository.

    A copy of the code that went to another machine names it in the file `COMMIT`.
    """
    if (PACKAGE / COMMIT).is_file():
        return (PACKAGE / COMMIT).read_text(encoding="utf-8") or None
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
