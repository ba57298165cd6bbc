"""The closing table of a pytest run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tabulate import tabulate

from engram_bench.report.markdown import percent


def write_summary(reporter: Any, folder: Path | None, report: dict[str, Any] | None) -> None:
    """Exact rates by category and variant, then where the report lies."""
    if folder is None or report is None:
        return
    names = [v["name"] for v in report["variants"]]
    reporter.section("engram_bench: exact, seen / rephrased")
    cells = {(c["category"], c["variant"], c["split"]): c for c in report["cells"]}
    categories = list(dict.fromkeys(c["category"] for c in report["cells"] if c["split"] != "heldout"))
    rows = []
    for category in sorted(categories, key=lambda c: (not c.startswith("all "), c)):
        row = [category]
        for name in names:
            found = [cells.get((category, name, split)) for split in ("seen", "rephrased")]
            row.append(" / ".join(percent(c["exact"]["rate"]) if c else "-" for c in found))
        rows.append(row)
    reporter.write_line(tabulate(rows, headers=["category", *names], tablefmt="simple", disable_numparse=True))
    if report["collateral"]:
        told = "; ".join(f"{c['variant']} {c['kl_mean']:.2g}" for c in report["collateral"])
        reporter.write_line(f"KL per token on unrelated text: {told}")
    missed = [t for t in report["thresholds"] if not t["passed"]]
    reporter.write_line(f"thresholds: {len(report['thresholds']) - len(missed)} met, {len(missed)} missed")
    reporter.write_line(f"report: {_shown(folder / 'report.md')}")


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
