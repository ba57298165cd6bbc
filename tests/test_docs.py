"""Figures in the documents are those of the committed results."""

import json

from benchmarks import hearing, tuning_table
from tests.running import ROOT

REPORT = ROOT / "benchmarks" / "results" / "h200" / "default" / "20261127T173918Z-cuda" / "report.json"
GROUPS = ("reliability", "generality", "portability", "locality")


def percent(rate):
    return f"{100 * rate['rate']:.0f} [{100 * rate['low']:.0f}–{100 * rate['high']:.0f}]"


def test_the_readmes_scorecard_is_that_of_the_committed_report():
    rows = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("| `")]
    shown = {line.split("`")[1]: [cell.strip() for cell in line.strip("|").split("|")[1:]] for line in reversed(rows)}
    report = json.loads(REPORT.read_text("utf-8"))
    for line in report["scorecard"]:
        cells = shown[line["variant"]]
        for group, cell in zip(GROUPS, cells, strict=False):
            found = line[group]
            whole = found and found["complete"] and not found["by_construction"]
            assert cell == (percent(found) if whole else cell if cell in ("", "asked in part") else None)
        if line["kl"]:
            assert cells[4] == ("0 by construction" if line["kl"]["by_construction"] else f"{line['kl']['mean']:.2f}")
        if line["kl_with_keys"]:
            assert cells[5] == f"{line['kl_with_keys']:.2f}"
        if line["recited"]:
            assert cells[6] == f"{100 * line['recited']['rate']:.0f}"
    trained = sum(
        c["n"]
        for c in report["cells"]
        if (c["variant"], c["split"]) == ("lora", "seen") and "all " not in c["category"]
    )
    assert f"{trained} trained facts" in (ROOT / "README.md").read_text("utf-8")


def test_the_searched_recipes_are_those_of_the_committed_trials():
    assert tuning_table.text() in (ROOT / "docs" / "method.md").read_text("utf-8")
    found = tuning_table.trials()
    assert {name: sum(t["variant"] == name for t in found) for name in ("lora", "engram-keyed")} == {
        "lora": 20,
        "engram-keyed": 20,
    }
    kept = tuning_table.front([t for t in found if t["variant"] == "lora"])
    assert 1 < len(kept) < 20
    for trial in found:
        if trial["variant"] == "lora":
            assert any(
                all(a <= b for a, b in zip(tuning_table.costs(k), tuning_table.costs(trial), strict=True)) for k in kept
            )


def test_the_hearing_memorys_trials_are_those_of_the_committed_file():
    rows = json.loads(hearing.RESULTS.read_text("utf-8"))
    assert hearing.table(rows) in (ROOT / "docs" / "method.md").read_text("utf-8")
