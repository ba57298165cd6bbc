"""From the records of a run's processes to the report: every record appears once, under its own name."""

import json
import re
from dataclasses import replace

import pytest

from engram_bench import options
from engram_bench.data.items import PatternSet
from engram_bench.records import SAMPLES
from engram_bench.run import rundir
from engram_bench.run.rundir import RECORDS
from engram_bench.run.session import Session
from engram_bench.stats import rate
from tests.test_report import AFTER, BEFORE, report

ROUTED = [
    {"router": router, "set": set, "prompts": prompts, "precision": 0.5, "recall": 0.25}
    for set, prompts in (("labelled", 404), ("in own words", 300), ("hard", 540))
    for router in ("keys", "rules")
]
MENTIONED = [{"variant": "engram", "prompts": 8, "told": rate(6, 8), "unchanged": rate(1, 8)}]


@pytest.fixture
def reported(tmp_path):
    """The report of a run whose records came in another order than theirs, some of them twice."""
    made = report(BEFORE + AFTER)
    run = rundir.claim(tmp_path, "cpu", "a", 0.0, {})
    measured = [("routing", data) for data in ROUTED[::-1] * 2] + [("mention", data) for data in MENTIONED * 2]
    variants = [("variant", data) for data in made["variants"]]
    meta = {key: made[key] for key in ("backend", "model", "dataset")}
    run.append(
        RECORDS, [{"type": "meta", **meta}, *({"type": kind, "data": data} for kind, data in measured + variants)]
    )
    run.append(SAMPLES, BEFORE + AFTER)
    settings = options.settle({"engram_variants": "engram"}, lambda _: "")
    settings = replace(settings, patterns=PatternSet({"facts": settings.patterns.categories["facts"]}))
    assert Session(settings, ["pytest"], run, None).finish(complete=True)
    return json.loads((run.folder / "report.json").read_text()), (run.folder / "report.md").read_text()


def test_routers_are_told_on_each_set_of_prompts(reported):
    data, text = reported
    assert data["routing"]["prompts"] == 404
    assert [(r["set"], r["router"]) for r in data["routing"]["routers"]] == [
        ("labelled", "rules"), ("labelled", "keys"), ("in own words", "rules"), ("in own words", "keys"),
        ("hard", "rules"), ("hard", "keys"),
    ]  # fmt: skip
    assert re.search(r"^\| hard +\| keys +\| +540 +\| +50", text, re.MULTILINE)


def test_mentions_are_told_with_their_intervals(reported):
    data, text = reported
    assert data["mentions"] == MENTIONED
    (row,) = [line for line in text.splitlines() if line.startswith("| engram") and "75.0" in line and "12.5" in line]
    assert row.split("|")[2].strip() == "8"
    assert "engram recites the stored value in 75.0%" in text
