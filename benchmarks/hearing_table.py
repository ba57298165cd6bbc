"""The table of the hearing memory beside the others in docs/method.md.

pytest suites --engram-samples 0 \\
    --engram-variants retrieval,lora,engram-keyed,engram-hearing,engram-hearing-zeroed,engram-hearing-shuffled
python benchmarks/hearing_table.py reports/runs/latest/report.json   # writes results/hearing-default.json
python benchmarks/hearing_table.py                                   # prints the table
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scipy.stats import binomtest
from tabulate import tabulate

RESULTS = Path(__file__).parent / "results" / "hearing-default.json"
WAYS = ("seen", "rephrased", "paraphrased", "combined", "applied", "mention", "contradicted", "neighbour")
NEW, RIVAL = "engram-hearing", "lora"

Record = dict[str, Any]


def record(report: Record) -> Record:
    """What the page says of a run: right answers by variant and way, in percent, and what else the scorecard has."""
    run, backend, rows = report["run"], report["backend"], []
    named = {mention["variant"]: mention["told"] for mention in report["mentions"]}
    for score in report["scorecard"]:
        groups = (score[group] or {} for group in ("reliability", "generality", "portability", "locality"))
        ways = {way["way"]: way for group in groups for way in group.get("ways", ())}
        told = named.get(score["variant"])
        rows.append(
            {
                "variant": score["variant"],
                **{way: round(100 * ways[way]["rate"]) for way in WAYS if way in ways},
                "n": {way: ways[way]["n"] for way in WAYS if way in ways},
                "recited": round(100 * told["rate"]) if told else None,
                "kl": score["kl"]
                and ("by construction" if score["kl"]["by_construction"] else round(score["kl"]["mean"], 3)),
                "kl_with_keys": score["kl_with_keys"] and round(score["kl_with_keys"], 2),
                "train_s": score["train_seconds"] and round(score["train_seconds"]),
            }
        )
    return {
        **{name: run[name] for name in ("git_commit", "complete", "profile", "seeds", "started", "matmul_gflops")},
        **{name: backend[name] for name in ("name", "device", "dtype")},
        "rows": rows,
        "paired": {way: paired(report, way) for way in WAYS},
    }


def paired(report: Record, way: str) -> Record:
    """Questions that the hearing memory alone answers, or LoRA alone; the p-value of McNemar's exact test."""
    found: dict[str, dict[tuple[str, str], float]] = {NEW: {}, RIVAL: {}}
    for outcome in report["outcomes"]:
        if outcome["split"] == way and outcome["variant"] in found:
            found[outcome["variant"]] |= {(outcome["category"], item): k for item, k in outcome["items"].items()}
    both = [(right, found[RIVAL][item]) for item, right in found[NEW].items() if item in found[RIVAL]]
    gained, lost = sum(a > b for a, b in both), sum(a < b for a, b in both)
    p = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    return {"n": len(both), "gained": gained, "lost": lost, "p": float(f"{p:.2g}")}


def text(found: Record) -> str:
    """The table in Markdown, and the paired figures below."""
    headers = ["right answers, %", *WAYS, "recited, %", "KL, unrelated", "KL, keys named", "training, s"]
    columns = (*WAYS, "recited", "kl", "kl_with_keys", "train_s")
    rows = [[f"`{row['variant']}`", *(row.get(column) for column in columns)] for row in found["rows"]]
    return tabulate(rows, headers, tablefmt="github", missingval="")


if __name__ == "__main__":
    if sys.argv[1:]:
        made = record(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        RESULTS.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    print(text(kept))
    for name, pair in kept["paired"].items():
        print(f"{name}: {NEW} alone {pair['gained']}, {RIVAL} alone {pair['lost']} of {pair['n']}, p {pair['p']}")
