"""The ladder's table in docs/method.md.

pytest suites --engram-profile quick --engram-variants ladder --engram-samples 0
python benchmarks/ladder_table.py reports/runs/latest/report.json   # writes results/ladder.json
python benchmarks/ladder_table.py                                   # prints the table of results/ladder.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engram_bench.report import ladder
from engram_bench.report.text import safe

RESULTS = Path(__file__).parent / "results" / "ladder.json"
LEFT_OUT = ("train, s",)  # the machine may do other work
SHARES = ("k", "n")


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
    if sys.argv[1:]:
        made = record(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        RESULTS.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(text(json.loads(RESULTS.read_text(encoding="utf-8"))))
