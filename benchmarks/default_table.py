"""The tables of a default run in README and in docs/method.md.

pytest suites
python benchmarks/default_table.py reports/runs/latest/report.json   # keeps what they need in results/default.json
python benchmarks/default_table.py                                   # prints them
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scipy.stats import binomtest
from tabulate import tabulate

RESULTS = Path(__file__).parent / "results" / "default.json"
GROUPS = ("reliability", "generality", "portability", "locality")
WAYS = ("seen", "rephrased", "paraphrased", "combined", "applied", "mention", "contradicted", "neighbour")
PAIRS = (("engram-keyed", "lora"), ("engram-hearing", "lora"), ("engram", "lora"))
RUN = (
    "git_commit",
    "complete",
    "profile",
    "seeds",
    "samples",
    "started",
    "duration_s",
    "evaluation_s",
    "matmul_gflops",
)
SAID = {  # beside a variant's name
    "baseline": "the untouched model",
    "prompted": "solved examples as earlier turns",
    "retrieval": "BM25 over all facts",
    "lora": "rich training",
    "engram": "the paper's memory",
    "engram-hearing": "facts by name, and a reader",
    "engram-keyed": "n-grams of trained keys",
    "engram-keyed-shuffled": "a sanity check",
}
BY_CONSTRUCTION = "0 by construction"

Record = dict[str, Any]


def record(report: Record) -> Record:
    """What the pages say of a run: its scorecard, its primary contrast, and pairs of variants."""
    return {
        **{name: report["run"].get(name) for name in RUN},
        **{name: report["backend"][name] for name in ("name", "device", "dtype")},
        "primary": report["primary"],
        "thresholds": len(report["thresholds"]),
        "missed": [threshold["id"] for threshold in report["thresholds"] if not threshold["passed"]],
        "examples": {v["name"]: v["train"]["examples"] for v in report["variants"] if v["train"]},
        "trainings": report["trainings"],
        "scorecard": report["scorecard"],
        "steps": {v["name"]: v["train"]["steps"] for v in report["variants"] if v["train"]},
        "paired": [paired(report, new, old, way) for new, old in PAIRS for way in WAYS],
    }


def paired(report: Record, new: str, old: str, way: str) -> Record:
    """Questions that one variant alone answers, or the other alone; the p-value of McNemar's exact test.

    With several training seeds, a question counts as answered if most of them answer it.
    """
    found: dict[str, dict[tuple[str, str], bool]] = {new: {}, old: {}}
    for outcome in report["outcomes"]:
        if outcome["split"] == way and outcome["variant"] in found:
            found[outcome["variant"]] |= {
                (outcome["category"], item): right > 0.5 for item, right in outcome["items"].items()
            }
    both = [(right, found[old][item]) for item, right in found[new].items() if item in found[old]]
    gained, lost = sum(a > b for a, b in both), sum(a < b for a, b in both)
    p = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    return {"new": new, "old": old, "way": way, "n": len(both), "gained": gained, "lost": lost, "p": float(f"{p:.2g}")}


def percent(rate: Record, interval: bool = True) -> str:
    low, high = (f"{100 * rate[name]:.0f}" for name in ("low", "high"))
    return f"{100 * rate['rate']:.0f}" + (f" [{low}–{high}]" if interval else "")


def _group(score: Record, group: str) -> str:
    found = score[group]
    if not found:
        return ""
    if not found["complete"]:
        return "asked in part"
    return "" if found["by_construction"] else percent(found)


def _kl(score: Record) -> list[str]:
    moved, named = score["kl"], score["kl_with_keys"]
    unrelated = "" if not moved else BY_CONSTRUCTION if moved["by_construction"] else f"{moved['mean']:.2f}"
    return [unrelated, BY_CONSTRUCTION if score["variant"] == "baseline" else "" if named is None else f"{named:.2f}"]


def scorecard(found: Record) -> str:
    """Groups of ways, with their intervals."""
    headers = ["right answers, % [95% interval]", "as trained", "other words", "used", "left alone"]
    headers += ["KL, unrelated text", "KL, text with keys", "value told where the key is only named, %", "training, s"]
    rows = []
    for score in found["scorecard"]:
        name, seconds = score["variant"], score["train_seconds"]
        told = percent(score["recited"], interval=False) if score["recited"] else ""
        cells = [_group(score, group) for group in GROUPS]
        said = f", {SAID[name]}" if name in SAID else ""
        rows.append([f"`{name}`{said}", *cells, *_kl(score), told, f"{seconds:.0f}" if seconds else ""])
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def ways(found: Record) -> str:
    """Each way of asking."""
    rows = []
    for score in found["scorecard"]:
        asked = {way["way"]: way for group in GROUPS for way in (score[group] or {}).get("ways", ())}
        told = percent(score["recited"], interval=False) if score["recited"] else ""
        rates = [percent(asked[way], interval=False) if way in asked else "" for way in WAYS]
        rows.append([f"`{score['variant']}`", *rates, told])
    return tabulate(rows, ["right answers, %", *WAYS, "recited, %"], tablefmt="github", disable_numparse=True)


def pairs(found: Record) -> str:
    """One line a pair of variants and way."""
    return "\n".join(
        "{new} against {old}, {way}: {gained} won, {lost} lost of {n}, p = {p}".format(**pair)
        for pair in found["paired"]
        if pair["n"]
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        made = record(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        RESULTS.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    print(scorecard(kept), ways(kept), pairs(kept), sep="\n\n")
