"""`engram-bench compare` with several runs: tables, plot and page of small reports, and what is refused."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from engram_bench import cli, stats
from engram_bench.errors import BaselineError
from engram_bench.report import files, runs, runs_plot, runs_text, tracking
from engram_bench.report.text import safe
from tests.running import ROOT
from tests.test_report import report, sample

RECORDS = report([])["variants"]


def answered(wrong=(), items=40, variants=("baseline", "engram"), **changes):
    """Answers to `items` items in one way: the baseline's are wrong, those of the others right but for `wrong`."""
    return [sample(name, f"i{n:02}", name != "baseline" and n not in wrong, **changes)
            for name in variants for n in range(items)]  # fmt: skip


def kept(folder, samples, answers=None, **changes):
    """A run's folder with its report and its answers; `answers`: others than those of the report."""
    made = report(samples, **changes)
    made["run"] |= {"complete": True, "answers": files.answers(samples)}
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(made), "utf-8")
    lines = [json.dumps(line) + "\n" for line in (samples if answers is None else answers)]
    (folder / "samples.jsonl").write_text("".join(lines), "utf-8")
    return folder


def changed(folder, part, **values):
    """Overwrite values of a part of a report."""
    file = folder / "report.json"
    made = json.loads(file.read_text("utf-8"))
    made[part] |= values
    file.write_text(json.dumps(made), "utf-8")
    return folder


def table(text, title):
    """The cells of a section's table in Markdown, without the header."""
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    place = tmp_path_factory.mktemp("built")
    return [kept(place / name, answered(wrong))
            for name, wrong in (("first", ()), ("worse", range(12)), ("bad", range(4, 12)))]  # fmt: skip


@pytest.fixture
def three(built, tmp_path):
    """Copies of three runs: the first is all right, the others lose twelve and eight items."""
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in built]


def compare(paths, *options):
    return cli.main(["compare", *map(str, paths), *map(str, options)])


def test_every_run_is_compared_with_the_first_on_the_same_items(three, capsys):
    assert compare(three) == 1
    text = capsys.readouterr().out
    assert [row[:5] + row[6:8] for row in table(text, "Differences to the reference run")] == [
        ["engram", "seen", "worse", "40", "100.0% → 70.0%", "<0.001", "**regressed**"],
        ["engram", "seen", "bad", "40", "100.0% → 80.0%", "0.008", "**regressed**"],
    ]
    assert "regressed: worse: engram, seen: 100.0% -> 70.0%, p Holm <0.001" in text
    assert text.splitlines()[-1] == "4 comparisons with first: 2 regressed, 2 unchanged"
    assert compare(three, "--fail", "exact:40pt") == 0


def test_the_intervals_and_adjusted_p_values_are_those_of_the_statistics(three):
    rows = [row for row in runs.differences(runs.opened(three), 0.02) if row["variant"] == "engram"]
    worse, bad = ([float(n >= least or n < more) for n in range(40)] for least, more in ((12, 0), (12, 4)))
    tests = stats.compare_all([stats.Paired([1.0] * 40, after) for after in (worse, bad)])
    assert [row["p_holm"] for row in rows] == [test.p_holm for test in tests]
    assert rows[0]["p_holm"] == pytest.approx(2 * rows[0]["p"]), "of two tests, the smaller p counts twice"
    assert [(row["low"], row["high"]) for row in rows] == [(t.difference.low, t.difference.high) for t in tests]


def test_only_items_and_ways_that_both_answered_are_paired(three, tmp_path):
    fewer = kept(tmp_path / "fewer", answered(items=5))
    other = kept(tmp_path / "other", answered(split="rephrased"))
    rows = runs.differences(runs.opened([three[0], fewer, other]), 0.02)
    assert {(row["run"], row["n"]) for row in rows} == {("fewer", 5)}


def test_what_a_definition_decides_is_not_compared(tmp_path):
    right = [{**line, "exact": True, "split": "mention"} for line in answered()]
    found = runs.opened([kept(tmp_path / name, right) for name in "abc"])
    assert {row["variant"] for row in runs.differences(found, 0.02)} == {"engram"}


def test_a_row_per_variant_and_run_shows_the_scorecard(three, capsys):
    card = json.loads((three[2] / "report.json").read_text("utf-8"))["scorecard"]
    card[1] |= {"train_seconds": 321.0, "kl": {"mean": 0.25, "by_construction": False}, "seconds_per_right": 0.5}
    card[1]["reliability"] |= {"rate": 0.123, "low": 0.1, "high": 0.2}
    changed_card = json.loads((three[2] / "report.json").read_text("utf-8")) | {"scorecard": card}
    (three[2] / "report.json").write_text(json.dumps(changed_card), "utf-8")
    compare(three)
    rows = table(capsys.readouterr().out, "Scorecards")
    assert [row[:2] for row in rows] == [[v, run] for v in ("baseline", "engram") for run in ("first", "worse", "bad")]
    assert rows[-1][2:] == ["12.3% [10–20]", "not asked", "not asked", "not asked", "0.25", "321 s", "0.5"]


def test_a_row_per_run_tells_how_it_was_made(three, capsys):
    changed(three[1], "run", seeds=[0, 1], kept={"engram": 30, "baseline": 4})
    changed(three[2], "backend", device="cuda", dtype="bfloat16")
    compare(three)
    rows = table(capsys.readouterr().out, "Runs")
    assert [row[0] for row in rows] == ["first", "worse", "bad"]
    assert (rows[1][4], rows[1][6], rows[2][3]) == ("0, 1", "34", "torch on cuda, bfloat16")


def test_a_report_of_an_older_version_is_named(three, capsys):
    made = json.loads((three[1] / "report.json").read_text("utf-8"))
    del made["scorecard"]
    (three[1] / "report.json").write_text(json.dumps(made), "utf-8")
    compare(three)
    text = capsys.readouterr().out
    assert "Without a scorecard, from an older version: worse." in text
    assert {row[1] for row in table(text, "Scorecards")} == {"first", "bad"}


def test_items_that_flipped_are_counted_and_shown_with_the_wrong_answer(three, capsys):
    compare(three)
    text = capsys.readouterr().out
    assert table(text, "Items that flipped") == [["engram", "seen", "40", "12", "12", "0", "4"]]
    rows = table(text, "Which items flipped")
    assert rows[0] == ["engram", "seen", "facts", "q i00", "right", "wrong: wrong", "right"]
    assert rows[4] == ["engram", "seen", "facts", "q i04", "right", "wrong: wrong", "wrong: wrong"]
    assert len(rows) == 12


def test_at_most_twenty_flips_are_shown_some_of_each_variant_and_way():
    many = [runs.Flip(("lora", "seen"), ("facts", f"i{n:02}"), (1.0, 0.0)) for n in range(60)]
    few = [runs.Flip(("engram", "applied"), ("facts", f"i{n}"), (1.0, 0.0)) for n in range(3)]
    shown = runs.picked([*many, *few], runs_text.MOST_SHOWN)
    assert shown == [*many[:17], *few]


def test_an_item_that_only_some_training_seeds_have_right_did_not_flip(tmp_path):
    def seeds(*rights):
        return [sample("engram", "i", right, seed=seed) for seed, right in enumerate(rights)]

    found = runs.opened([kept(tmp_path / name, seeds(*rights), variants=RECORDS[1:])
                         for name, rights in (("a", (1, 1)), ("b", (1, 0)), ("c", (0, 0)))])  # fmt: skip
    assert runs.flips(found[:2]) == ({("engram", "seen"): 1}, [])
    (flip,) = runs.flips(found)[1]
    assert flip.shares == (1.0, 0.5, 0.0)
    (row,) = runs_text.examples([flip], found, {name: {} for name in "abc"}, safe).rows
    assert row[-3:] == ("right", "50% of seeds", "wrong")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a/report.json", "x/b/report.json"], ["a", "b"]),
        (["x/a/cpu/report.json", "x/b/cpu/report.json", "x/gpu/report.json"], ["a/cpu", "b/cpu", "gpu"]),
        (["x/a.json", "x/b.json"], ["a", "b"]),
        (["x/a/cpu/report.json", "x/b/cpu/report.json"], ["a", "b"]),
        (["x/a/report.json", "x/a/report.json", "y/a/report.json"], ["x", "x (2)", "y"]),
        (["x/a/report.json", "report.json"], ["a", ""]),
    ],
)
def test_names_of_runs_are_as_short_as_they_can_be(tmp_path, paths, names):
    found = runs.names([tmp_path / path for path in paths])
    assert found == [name or tmp_path.name for name in names]


def test_latest_is_named_as_the_run_it_links_to(tmp_path):
    kept(tmp_path / "20261127T192005Z-cpu", answered())
    (tmp_path / "latest").symlink_to("20261127T192005Z-cpu")
    assert runs.opened([tmp_path / "latest"])[0].name == "20261127T192005Z-cpu"


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("model", {"sha256": "f" * 64}, r"measured with another model \(ffffffffffff, in the first run 000000000000\)"),
        ("dataset", {"sha256": "f" * 64}, r"measured with another dataset \(f+, in the first run 1+\)"),
        ("run", {"complete": False}, "the run was interrupted"),
        ("run", {"partial": "3 of 80 answers"}, r".*3 of 80 answers"),
    ],
)
def test_a_run_that_does_not_compare_is_refused_by_name(three, tmp_path, capsys, part, values, said):
    changed(three[2], part, **values)
    assert compare(three, "--out", tmp_path / "out") == BaselineError.exit_code
    printed = capsys.readouterr()
    assert re.fullmatch(rf"engram-bench: {re.escape(str(three[2]))}: {said}.*; .*leave it out\n", printed.err)
    assert printed.out == ""
    assert list((tmp_path / "out").iterdir()) == []


def test_a_first_run_that_was_interrupted_is_refused_too(three, capsys):
    changed(three[0], "run", complete=False)
    assert compare(three) == BaselineError.exit_code
    assert capsys.readouterr().err.startswith(f"engram-bench: {three[0]}: the run was interrupted")


def test_bad_usage_is_told_in_a_line(three, tmp_path, capsys):
    assert compare(three, "--fail", "exact:2pt,consistency:5pt") == 2
    (tmp_path / "file").write_text("")
    assert compare(three, "--out", tmp_path / "file") == 2
    assert compare([*three, tmp_path / "missing"]) == 4
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 3
    assert printed.out == "", "before anything is compared"


def test_runs_with_nothing_in_common_are_shown_but_not_called_equal(three, tmp_path, capsys):
    others = [kept(tmp_path / name, answered(variants=["lora"]), variants=[{**RECORDS[1], "name": "lora"}])
              for name in ("x", "y")]  # fmt: skip
    assert compare([three[0], *others]) == 4
    text = capsys.readouterr().out
    assert "nothing to compare" in text.splitlines()[-1]
    assert [row[:2] for row in table(text, "Scorecards")][-2:] == [["lora", "x"], ["lora", "y"]]


def page_data(folder):
    text = (folder / "compare.html").read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return text, found and json.loads(found[1])


def test_the_page_holds_tables_plot_and_every_answer_and_asks_for_nothing(three, tmp_path, capsys):
    out = tmp_path / "a" / "b"
    assert compare(three, "--out", out) == 1
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "compare.html")
    assert sorted(file.name for file in out.iterdir()) == ["compare.html", "compare.md", "compare.png"]
    text, data = page_data(out)
    markdown = (out / "compare.md").read_text("utf-8")
    titles = re.findall("^## (.*)$", markdown, re.MULTILINE)
    assert titles == ["Runs", "Scorecards", "Differences to the reference run", "Items that flipped",
                      "Which items flipped", "Without a difference"]  # fmt: skip
    assert re.findall("<h2[^>]*>(.*?)</h2>", text) == [*titles[:3], "Every answer", *titles[3:]]
    assert "(compare.png)" in markdown
    assert text.count("src=") == text.count('src="data:image/png;base64,') == 1
    assert not re.search("https?://", text)
    image = re.search('base64,([^"]*)"', text)[1]
    assert base64.b64decode(image) == (out / "compare.png").read_bytes()
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert (data["left"], data["right"]) == ("first: engram", "worse: engram")
    row = next(row for row in data["rows"] if row[2] == "q i05")
    assert {name: right for name, (_, right) in row[4].items() if "engram" in name} == {
        "first: engram": True, "worse: engram": False, "bad: engram": False,
    }  # fmt: skip
    assert [row[:5] for row in table(markdown, "Without a difference")] == [
        ["baseline", "seen", name, "40", "0.0% → 0.0%"] for name in ("worse", "bad")
    ]


def test_two_runs_are_printed_as_the_gate_does_and_written_too(three, tmp_path, capsys):
    assert compare(three[:2], "--out", tmp_path / "out") == 1
    text = capsys.readouterr().out
    assert text.startswith("## Comparison with the gate's baseline\n")
    assert "Scorecards" not in text
    markdown = (tmp_path / "out" / "compare.md").read_text("utf-8")
    assert "## Comparison with the gate's baseline" in markdown
    assert len(table(markdown, "Scorecards")) == 4
    assert len(table(markdown, "Which items flipped")) == 12
    assert page_data(tmp_path / "out")[1]["left"] == "first: engram"


def test_answers_that_are_not_those_of_the_report_are_not_shown(three, tmp_path):
    others = [{**line, "output": "of another run"} for line in answered(range(12))]
    mixed = kept(tmp_path / "mixed", answered(range(12)), answers=others)
    assert compare([three[0], three[2], mixed], "--out", tmp_path / "out") == 1
    text, data = page_data(tmp_path / "out")
    assert "of another run" not in text
    assert {name.split(":")[0] for name in data["variants"]} == {"first", "bad"}
    assert "No answers of the run lie beside the report: mixed." in text
    for folder in (three[0], three[2], mixed):
        (folder / "samples.jsonl").unlink()
    assert compare([three[0], three[2], mixed], "--out", tmp_path / "out") == 1
    text, data = page_data(tmp_path / "out")
    assert data is None
    assert "Every answer" not in text
    assert "<td>i05</td>" in text, "the item's id stands for its prompt"


def test_names_and_answers_become_no_markup(three, tmp_path):
    hostile = "<img src=x onerror=alert(1)>|$x_1$ `b`"
    lines = [{**line, "prompt": hostile, "output": line["output"] + hostile} for line in answered(range(12))]
    odd = kept(tmp_path / hostile, lines)
    assert compare([three[0], three[2], odd], "--out", tmp_path / "out") == 1
    text, _ = page_data(tmp_path / "out")
    assert "<img src=x" not in text
    markdown = (tmp_path / "out" / "compare.md").read_text("utf-8")
    assert "<img" not in markdown
    assert all(len(row) == 7 for row in table(markdown, "Which items flipped")), "a | is escaped"


def test_the_plot_has_a_dot_and_interval_per_variant_and_run(three):
    found = runs.opened(three)
    found[2].report["scorecard"][1]["kl"] = {"mean": 0.5, "by_construction": False}
    figure = runs_plot.draw(found)
    recall, kl = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["reliability", "KL on unrelated text"]
    assert [text.get_text() for text in recall.get_yticklabels()] == ["baseline", "engram"]
    drawn = [bars.lines[0].get_xdata().tolist() for bars in recall.containers]
    assert drawn == [[0.0, 100.0], [0.0, 70.0], [0.0, 80.0]]
    score = found[1].report["scorecard"][1]["reliability"]
    bar = recall.containers[1].lines[2][0].get_segments()[1]
    assert bar[:, 0] == pytest.approx([100 * score["low"], 100 * score["high"]])
    heights = [bars.lines[0].get_ydata().tolist() for bars in recall.containers]
    assert heights[0][1] < heights[1][1] < heights[2][1], "no run covers another"
    assert 0.5 in [x for line in kl.lines for x in line.get_xdata()]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["1. first, the reference", "2. worse", "3. bad"]
    for run in found:
        run.report["scorecard"] = []
    assert runs_plot.draw(found) is None


def test_figures_to_track_are_those_measured_and_nothing_a_definition_decides():
    made = report(answered())
    made["scorecard"][1]["kl"] = {"mean": 0.0, "by_construction": True}
    assert "engram/kl" not in tracking.figures(made)
    made["scorecard"][1]["kl"] = {"mean": 0.5, "by_construction": False}
    found = tracking.figures(made)
    assert (found["engram/reliability"], found["engram/kl"], found["engram/train_seconds"]) == (1.0, 0.5, 1.5)
    assert "engram/generality" not in found
    assert all(isinstance(value, (int, float)) for value in found.values())


def test_without_trackio_a_line_says_so_before_anything_is_done(three, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert compare(three, "--track", "project", "--out", tmp_path / "out") == 2
    assert cli.main(["report", str(three[0]), "--track", "project"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 2
    assert 'pip install "engram-bench[tracking]"' in printed.err
    assert not (tmp_path / "out").exists()
    assert not (three[0] / "report.md").exists()


@pytest.mark.parametrize("name", tracking.ELSEWHERE)
def test_figures_are_not_sent_elsewhere(three, capsys, monkeypatch, name):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert compare(three, "--track", "project") == 2
    assert f"but {name} sends them elsewhere" in capsys.readouterr().err


TRACKED = """
import json, sys
asked = []
sys.addaudithook(lambda event, args: event in ("socket.connect", "socket.getaddrinfo") and asked.append(str(args)))
from engram_bench import cli
codes = [cli.main(["compare", *sys.argv[1:], "--track", "project"]) for _ in range(2)]
codes.append(cli.main(["report", sys.argv[1], "--track", "project"]))
import trackio
from trackio.sqlite_storage import SQLiteStorage
runs = {run.name: [run.config, SQLiteStorage.get_logs("project", run.name)] for run in trackio.Api().runs("project")}
print(json.dumps({"codes": codes, "asked": asked, "runs": runs}, default=str))
"""


def test_each_run_is_logged_once_and_no_server_is_asked(three, tmp_path):
    pytest.importorskip("trackio", reason="engram-bench[tracking] is not installed")
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "kept"), "HF_TOKEN": "hf_made_up", "HF_HUB_OFFLINE": ""}
    command = [sys.executable, "-c", TRACKED, *map(str, three)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    found = json.loads(lines[-1])
    assert found["asked"] == []
    assert found["codes"] == [1, 1, 0]
    assert [line for line in lines if line.startswith("first: ")] == [
        "first: logged to project", *["first: is in project already"] * 2,
    ]  # fmt: skip
    assert found["runs"].keys() == {"first", "worse", "bad"}
    config, (logged,) = found["runs"]["worse"]
    assert (config["model"], config["seeds"], config["_Username"]) == ("tiny", [0], None)
    assert (logged["engram/reliability"], logged["step"]) == (0.7, 0)
