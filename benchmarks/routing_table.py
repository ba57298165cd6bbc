"""The routers' table in docs/method.md.

pytest suites/test_routing.py --engram-profile quick --engram-variants engram-keyed,engram-routed
python benchmarks/routing_table.py reports/runs/latest/report.json   # writes results/routing.json
python benchmarks/routing_table.py                                   # prints the table of results/routing.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engram_bench.report import sections
from engram_bench.report.text import safe

RESULTS = Path(__file__).parent / "results" / "routing.json"


def record(report: dict[str, Any]) -> dict[str, Any]:
    """What the page says of a run."""
    run, backend = report["run"], report["backend"]
    return {
        **{name: run[name] for name in ("git_commit", "complete", "profile", "started", "matmul_gflops")},
        **{name: backend[name] for name in ("name", "device", "dtype")},
        "routing": report["routing"],
        "routed": report["routed"],
    }


def text(found: dict[str, Any]) -> str:
    """The report's table, in Markdown."""
    section = sections.routing(found, safe)
    lines = [section.headers, ["---"] * len(section.headers), *section.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    if sys.argv[1:]:
        made = record(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        RESULTS.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(text(json.loads(RESULTS.read_text(encoding="utf-8"))))
