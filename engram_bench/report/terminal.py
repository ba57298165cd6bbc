"""What a run prints: header, scorecard, gate, and how to resume an interrupted run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engram_bench.options import Settings
from engram_bench.report import scorecard_text
from engram_bench.report.gate_text import summary
from engram_bench.report.text import inert, p_value, percent
from engram_bench.variants.kinds import KINDS

MOST_LOST = 5  # lines about what went wrong


def write_summary(reporter: Any, folder: Path, report: dict[str, Any]) -> None:
    """Print the scorecard, thresholds, gate, and the path of the report."""
    reporter.section("engram_bench")
    for line in scorecard_text.terminal(report):
        reporter.write_line(line)
    missed = [t for t in report["thresholds"] if not t["passed"]]
    reporter.write_line(f"thresholds: {len(report['thresholds']) - len(missed)} met, {len(missed)} missed")
    if "gate" in report:
        write_gate(reporter.write_line, report["gate"])
    reporter.write_line(f"report: {_shown(folder / 'report.md')}")


def header(settings: Settings, backend: dict[str, Any]) -> str:
    """One line: backend, dtype and its reason, model, profile, variants; LoRA engine, and kinds of other packages."""
    foreign = {v.kind: kind.package for v in settings.variants if (kind := KINDS[v.kind]).package}
    lora = f"; LoRA by {backend['lora_engine']} ({backend['lora_engine_reason']})"
    return (
        f"engram_bench: {backend['name']} on {backend['device']}, {backend['dtype']} ({backend['dtype_reason']}); "
        f"model {settings.model}; profile {settings.profile}; variants {', '.join(v.name for v in settings.variants)}"
        + (lora if any(v.kind == "lora" for v in settings.variants) else "")
        + "".join(f"; kind {name} by {package}" for name, package in foreign.items())
    )


def write_interrupted(reporter: Any, folder: Path, lost: Sequence[str], stopped: bool) -> None:
    """Print why a run was interrupted and how to resume it; `stopped`: by -x or --maxfail."""
    for line in lost[:MOST_LOST]:
        reporter.write_line(line)
    if len(lost) > MOST_LOST:
        reporter.write_line(f"and {len(lost) - MOST_LOST} more")
    command = "the same command without -x or --maxfail" if stopped else "the same command"
    reporter.write_line(f"interrupted; to finish, run {command}, adding --engram-resume {_shown(folder)}")


def write_gate(write_line: Callable[[str], object], found: dict[str, Any]) -> None:
    """Print the comparison with the gate's baseline: regressions, warnings, summary."""
    for row in found["rows"]:
        if row["verdict"] == "regressed":
            cell = ", ".join(row[key] for key in ("variant", "category", "split", "metric"))
            change = f"{percent(row['before'])} -> {percent(row['after'])}, p Holm {p_value(row['p_holm'])}"
            write_line(inert(f"regressed: {cell}: {change}"))
    for warning in found["warnings"]:
        write_line(inert(f"warning: {warning}"))
    write_line(summary(found))


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
