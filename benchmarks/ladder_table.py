"""The tables of the ladder and of the ablations in docs/method.md.

pytest suites --engram-profile quick --engram-variants ladder --engram-samples 0       # or: ablations
python benchmarks/ladder_table.py ladder reports/runs/latest/report.json   # writes results/ladder.json
python benchmarks/ladder_table.py ladder                                   # prints the table of results/ladder.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engram_bench.report import ladder
from engram_bench.report.text import safe

RESULTS = Path(__file__).parent / "results"
LEFT_OUT = ("train, s",)  # the machine may do other work
SHARES = ("k", "n")


def file(name: str) -> Path:
    """The committed result of "ladder" or "ablations"."""
    return RESULTS / f"{name}.json"


def record(report: dict[str, Any]) -> dict[str, Any]:
    """What the page says of a run: the ladder's section, and right answers by variant and way with their numbers."""
    section = ladder.section(report, safe)
    ways: dict[str, dict[str, dict[str, float]]] = {}
    for outcome in report["outcomes"]:
        found = ways.setdefault(outcome["split"], {}).setdefault(outcome["variant"], dict.fromkeys(SHARES, 0))
        found["k"] += sum(outcome["items"].values())
        found["n"] += len(outcome["items"])
    run, backend = report["run"], report["backend"]
    return {
        **{name: run[name] for name in ("git_commit", "complete", "profile", "seeds", "started", "matmul_gflops")},
        **{name: backend[name] for name in ("name", "device", "dtype")},
        "headers": section.headers,
        "rows": section.rows,
        "positions": report["positions"],
        "ways": ways,
    }


def text(found: dict[str, Any]) -> str:
    """The columns that hold figures, in Markdown."""
    headers, rows = found["headers"], found["rows"]
    kept = [n for n, name in enumerate(headers) if name not in LEFT_OUT and any(row[n] for row in rows)]
    lines = [[row[n].removesuffix(".0%").removesuffix("%") for n in kept] for row in (headers, *rows)]
    lines.insert(1, ["---"] * len(kept))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    name, *report = sys.argv[1:]
    if report:
        made = record(json.loads(Path(report[0]).read_text(encoding="utf-8")))
        file(name).write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(text(json.loads(file(name).read_text(encoding="utf-8"))))
