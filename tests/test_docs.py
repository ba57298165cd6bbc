"""Figures in the documents are those of the committed results."""

import json
import re

from benchmarks import default_table, hearing, tuning_table
from tests.running import ROOT

README, METHOD = ((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/method.md"))


def test_the_tables_of_the_default_run_are_those_of_the_committed_report():
    found = json.loads(default_table.RESULTS.read_text("utf-8"))
    assert found["complete"]
    assert default_table.scorecard(found) in README
    assert default_table.ways(found) in METHOD
    for page in (README, METHOD):
        assert f"commit {found['git_commit'][:7]}" in page


def test_what_is_said_of_pairs_is_what_the_committed_report_says():
    found = json.loads(default_table.RESULTS.read_text("utf-8"))
    pairs = {pair["way"]: pair for pair in found["paired"] if (pair["new"], pair["old"]) == ("engram-hearing", "lora")}
    for way in ("paraphrased", "combined", "applied", "rephrased"):
        pair = pairs[way]
        assert re.search(rf"{way} {pair['gained']}( won)?\s+and\s+{pair['lost']}( lost)? of {pair['n']}", METHOD)
        assert f"{pair['n']} {way}" in METHOD or way == "rephrased"
    for trained in found["trainings"]:
        if (trained["b"], trained["split"]) == ("lora", "mention"):
            low, high = (round(100 * trained[name]) for name in ("low", "high"))
            assert f"{100 * trained['difference']:.0f} points more mentions alone [{low}, {high}]" in README
    assert len(found["missed"]) == 2
    assert f"Two of {found['thresholds']} thresholds were missed" in README
    assert {name.split("/")[-1] for name in found["missed"]} == {"engram", "evaluation-seconds"}
    steps, examples = found["steps"], found["examples"]
    assert f"twice the examples and {steps['lora']} steps in place of {steps['lora-bare']}" in README
    assert round(examples["lora"] / examples["lora-bare"]) == 2
    primary = found["primary"]
    assert f"(n = {primary['n']}), is inconclusive: {100 * primary['difference']:.0f} points" in README


def test_the_searched_recipes_are_those_of_the_committed_trials():
    assert tuning_table.text() in METHOD
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
    assert hearing.table(rows) in METHOD
