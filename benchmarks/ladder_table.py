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

from scipy.stats import binomtest

from engram_bench.report import ladder
from engram_bench.report.text import safe

RESULTS = Path(__file__).parent / "results"
LEFT_OUT = ("train, s",)  # the machine may do other work
SHARES = ("k", "n")
PAPER = "engram"


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
    steps = {v["name"]: v["train"]["steps"] for v in report["variants"] if v["train"]}
    return {
        **{name: run[name] for name in ("git_commit", "complete", "profile", "seeds", "started", "matmul_gflops")},
        **{name: backend[name] for name in ("name", "device", "dtype")},
        "headers": section.headers,
        "rows": section.rows,
        "positions": report["positions"],
        "ways": ways,
        "steps": steps,
        "beside_engram": {name: paired(report, name) for name in steps if name != PAPER},
    }


def paired(report: dict[str, Any], variant: str) -> dict[str, float]:
    """Rephrased questions that `engram` alone answers, or the variant alone; the p-value of McNemar's exact test."""
    found: dict[str, dict[tuple[str, str], float]] = {PAPER: {}, variant: {}}
    for outcome in report["outcomes"]:
        if outcome["split"] == "rephrased" and outcome["variant"] in found:
            found[outcome["variant"]] |= {(outcome["category"], item): k for item, k in outcome["items"].items()}
    both = [(right, found[variant][item]) for item, right in found[PAPER].items()]
    lost, gained = (sum(a > b for a, b in both), sum(a < b for a, b in both))
    p = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    return {"n": len(both), "lost": lost, "gained": gained, "p": round(float(p), 4)}


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
