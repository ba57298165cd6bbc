"""The report's ladder: recall by position of the key, and a row for each rung."""

import json

import jsonschema
import pytest

from benchmarks import ladder_table
from engram_bench.report import html
from engram_bench.report.ladder import position, positions
from engram_bench.report.markdown import render
from tests.running import ROOT
from tests.test_report import SCHEMA, report, sample


@pytest.mark.parametrize(
    ("phrasing", "where"),
    [
        ("Tell me {input}.", "last"),
        ('What is "{input}"?', "last"),
        ("{input}", "last"),
        ("{input}: what is it?", "first"),
        ("Given {input}, what is the answer?", "middle"),
    ],
)
def test_where_the_key_stands(phrasing, where):
    assert position(phrasing) == where


def test_recall_by_position_counts_greedy_rephrased_answers_with_a_key_to_the_letter():
    asked = {"split": "rephrased", "phrasing": "Tell me {input}"}
    samples = [
        sample("engram", "a", True, **asked),
        sample("engram", "b", False, **asked),
        sample("engram", "c", True, **{**asked, "phrasing": "{input} is what?"}),
        sample("engram", "a", True, sample=1, **asked),
        sample("engram", "d", True, **{**asked, "split": "seen"}),
        sample("engram", "e", True, **{**asked, "phrasing": "in other words"}),
    ]
    found = {row["position"]: (row["n"], row["rate"]) for row in positions(samples)}
    assert found == {"last": (2, 0.5), "first": (1, 1.0)}


def a_run(*names):
    samples = [sample(name, f"i{n}", n < 3, split="paraphrased") for name in names for n in range(4)]
    samples += [sample(name, "x", True, split="rephrased", phrasing="{input} is what?") for name in names]
    return report(samples, variants=[{**report([])["variants"][0], "name": name} for name in names])


def test_a_run_of_rungs_has_a_row_for_each_in_the_ladders_order():
    made = a_run("engram-keyed", "ladder-04-later", "engram-no-gate", "engram", "lora")
    jsonschema.validate(made, SCHEMA)
    text = render(made, [])
    part = text[text.index("## The ladder") :].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in part.splitlines() if line.startswith("| ")]
    assert [row[1] for row in rows[1:]] == ["engram", "ladder-04-later", "engram-keyed", "engram-no-gate"]
    assert rows[1][3:7] == ["", "100.0%", "", "75.0%"], "key last, first, in the middle; paraphrased"
    assert "<h2>The ladder" in html.render(made, [], {})


def test_a_run_without_rungs_has_no_ladder():
    assert "The ladder" not in render(a_run("engram-keyed", "engram"), [])


@pytest.mark.parametrize(("name", "still"), [("ladder", 8), ("ablations", 0)])
def test_the_page_shows_the_table_of_the_committed_report(name, still):
    table = ladder_table.text(json.loads(ladder_table.file(name).read_text(encoding="utf-8")))
    assert table in (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    assert table.count("| by construction |") == still
