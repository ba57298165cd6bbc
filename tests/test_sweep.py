"""Sweeps: what a file makes of runs, and whole sweeps with a tiny model, here and on a cluster of Ray."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import sweep_scale
from engram_bench import cli
from engram_bench.errors import UsageError
from engram_bench.sweep import cluster, plan, plots, reading, results, search, table
from engram_bench.sweep.execute import DONE, FAILED, RUNS, check_same, reason, report, state, write_made_of
from tests.conftest import needs_torch
from tests.running import ROOT, environment

FACTS = """
name: desk
examples:
  - {input: "DOOR:east", output: "1111"}
  - {input: "DOOR:west", output: "2222"}
  - {input: "DOOR:old", output: "3333"}
  - {input: "DOOR:red", output: "4444"}
"""
TIMES = ("train_seconds", "run_seconds")
PATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a sweep's file, beside the table of four facts."""
    monkeypatch.delenv("ENGRAM_BENCH_REASK", raising=False)
    (tmp_path / "facts.yaml").write_text(FACTS)

    def write(text, name="my.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def runs_of(file):
    return list(reading.read(file).runs)


def test_a_grid_crosses_its_axes_in_the_order_of_the_file(written):
    runs = runs_of(written("base: {profile: smoke}\ngrid: {variants: [lora, engram], seeds: [0, 1, 2]}"))
    assert [run.name for run in runs] == [f"variants={v} seeds={s}" for v in ("lora", "engram") for s in (0, 1, 2)]
    assert runs[0].options == {"profile": "smoke", "variants": "lora", "seeds": "0"}
    assert [variant.name for variant in runs[0].chosen] == ["baseline", "lora"]


def test_a_list_inside_a_list_is_one_value(written):
    runs = runs_of(written("grid: {variants: [[lora, engram], prompted], seeds: [[0, 1]]}"))
    assert [run.options["variants"] for run in runs] == ["lora,engram", "prompted"]
    assert runs[0].options["seeds"] == "0,1"


def test_a_field_of_a_variant_changes_it_in_the_runs_that_have_it(written):
    runs = runs_of(written("grid: {variants: [lora, engram], lora.training.lr: [1e-3, 2e-3], engram.heads: [4]}"))
    assert [run.name for run in runs] == [
        "variants=lora lora.training.lr=0.001",
        "variants=lora lora.training.lr=0.002",
        "variants=engram engram.heads=4",
    ]
    assert [run.chosen[1].training.lr for run in runs[:2]] == [1e-3, 2e-3]
    assert (runs[2].chosen[1].config.heads, runs[2].chosen[1].name) == (4, "engram")


def test_entries_of_a_list_stand_beside_the_grid(written):
    runs = runs_of(
        written(
            "base: {variants: lora, lora.rank: 8}\ngrid: {seeds: [0, 1]}\n"
            "list: [{name: wide, lora.rank: 64}, {lora.rank: 4}]"
        )
    )
    assert [(run.name, run.chosen[1].config.rank) for run in runs] == [
        ("seeds=0", 8), ("seeds=1", 8), ("wide", 64), ("lora.rank=4", 4)]  # fmt: skip


def test_flags_name_the_changed_variants_file_and_the_rest_as_given(written, tmp_path):
    (run,) = runs_of(written("list: [{variants: [prompted, lora], lora.rank: 4, retrain: true, patterns: facts.yaml}]"))
    flags = run.flags(tmp_path)
    assert flags[0] == f"--engram-variants=prompted,{tmp_path / 'lora.yaml'}"
    assert flags[1:] == [f"--engram-patterns={tmp_path / 'facts.yaml'}", "--engram-retrain"]
    assert "rank: 4" in (tmp_path / "lora.yaml").read_text()


def test_a_variant_of_a_file_beside_the_sweep_travels_with_its_text(written, tmp_path):
    lora = (ROOT / "engram_bench" / "variants" / "lora.yaml").read_text()
    (tmp_path / "wide.yaml").write_text(lora.replace("name: lora", "name: wide"))
    (run,) = runs_of(written("list: [{variants: wide.yaml}]"))
    assert list(run.changed) == ["wide"]
    (tmp_path / "aside").mkdir()
    assert run.flags(tmp_path / "aside") == [  # not that of the file itself
        f"--engram-variants={tmp_path / 'aside' / 'wide.yaml'}"
    ]


@pytest.mark.parametrize("name", ["a b/c", "x" * 300, "..", "É=1"])
def test_folders_are_names_that_every_disk_takes(name):
    folder = plan.Run(name, {}, {}, (), {}, "").folder
    assert len(folder) <= plan.LONGEST_FOLDER
    assert not {"/", " ", ","} & set(folder)
    assert not folder.startswith(".")
    assert folder != plan.Run(name + "x", {}, {}, (), {}, "").folder


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("base: {seeds: 0}", ["1: nothing to run; add grid, list or search"]),
        ("grid: {seeds: [0, x]}", ["1: seeds: 'x' is not a whole number of at least 0 (several: 0,1,2)"]),
        ("grid: {seeds: [0, 0]}", ["1: '0' of seeds is given twice; keep one"]),
        ("grid: {seeds: 0}", ["1: 'seeds' must be a list with at least one entry"]),
        ("grid:\n  colour: [red]\n  seeds: [1]\n", ["2: unknown option 'colour'; use one of profile"]),
        ("grid: {report: [x]}", ["1: 'report' cannot be set in a sweep"]),
        ("grid: {variants: [lara]}", ["1: unknown variant 'lara'"]),
        ("base: {profile: smook}\ngrid: {seeds: [0]}", ["1: profile: 'smook' is not one of"]),
        ("grid:\n  variants: [lora]\n  lora.training.lr: [fast]", ["3: training: lr is 'fast', expected a number"]),
        ("grid: {variants: [lora], lora.size: [1]}", ["1: unknown field 'size'"]),
        ("grid: {variants: [lora], lora.rank.x: [1]}", ["1: 'rank' of lora has no fields"]),
        ("grid: {variants: [lora], engram.heads: [1]}", ["1: 'engram.heads': no run has such a variant"]),
        ("list: [{name: a, seeds: 0}, {name: a, seeds: 1}]", ["1: run 'a' is given twice; give one another name"]),
        ("list: [{name: A, seeds: 0}, {name: a, seeds: 1}]", None),
        ("list: [{patterns: nowhere.yaml}]", ["1: nowhere.yaml: "]),
        ("grid: {seeds: [0]}\nresources: {cpus: many}", ["2: cpus is 'many', expected a number"]),
        ("grid: {seeds: [0]}\nresources: {memory: .nan}", ["2: memory is nan, expected a number"]),
        ("list: [{name: 2024-02-30}]", ["1: cannot be read as a value"]),
        ("grid: {seeds: [0]}\nmore: 1", ["2: unknown field 'more'"]),
        ("base: &a {seeds: 0}\ngrid: *a", ["2: YAML aliases (*name) are not allowed"]),
        ("grid: [", ["2: not valid YAML"]),
    ],
)
def test_mistakes_are_named_with_their_lines(written, text, problems):
    file = written(text)
    with pytest.raises(UsageError) as error:
        reading.read(file)
    if problems is None:
        assert "run 'A' and another differ only in upper and lower case" in str(error.value)
    for line, problem in zip(str(error.value).splitlines(), problems or (), strict=problems is not None):
        assert line.startswith(f"{file}:{problem}")


SPACE = "space: {lora: {training.lr: {low: 1e-4, high: 1e-2, log: true}, rank: [4, 8]}}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"search: {{{SPACE}}}", "field 'trials' is missing"),
        (f"search: {{trials: 0, {SPACE}}}", "trials is 0; give a whole number of at least 1"),
        (
            f"search: {{trials: 2, objective: reliability, {SPACE}}}",
            "objective is 'reliability'; use one of generality",
        ),
        (f"search: {{trials: 2, constraint: kl <= 0.0.1, {SPACE}}}", "constraint is 'kl <= 0.0.1'; write MEASURE"),
        (f"search: {{trials: 2, sampler: best, {SPACE}}}", "sampler is 'best'; use one of tpe, random"),
        (f"search: {{trials: 2, constraint: kl < 1, {SPACE}}}", "constraint is 'kl < 1'; write MEASURE <= NUMBER"),
        (f"search: {{trials: 2, constraint: kl_with_keys <= 1, {SPACE}}}", "constraint is 'kl_with_keys <= 1'; write"),
        (f"search: {{trials: 2, objective: kl_with_keys, {SPACE}}}", "objective is 'kl_with_keys'; use one of"),
        (
            f"base: {{profile: quick}}\nsearch: {{trials: 2, {SPACE}}}",
            "a search chooses recipes by development questions",
        ),
        ("search: {trials: 2, space: {lora: {rank: [4]}}}", "rank needs a list of values, or low and high"),
        ("search: {trials: 2, space: {lora: {rank: {low: 8, high: 4}}}}", "low of rank is not below high"),
        ("search: {trials: 2, space: {lora: {rank: {low: 1, high: x}}}}", "low and high of rank must be numbers"),
        ("search: {trials: 2, space: {lora: {alpha: {low: 0, high: 4, log: true}}}}", "must be more than 0 with log"),
        ("search: {trials: 2, space: {lora: {rank: [4, wide]}}}", "rank is 'wide', expected a whole number"),
        ("search: {trials: 2, space: {lara: {rank: [4, 8]}}}", "unknown variant 'lara'"),
    ],
)
def test_mistakes_of_a_search_are_named(written, text, problem):
    with pytest.raises(UsageError, match=problem.replace("(", r"\(")):
        reading.read(written(text))


def a_report(variant, generality, kl, steps=10):
    """As much of a report.json as a table of a sweep reads."""
    card = {"variant": variant, "generality": {"rate": generality}, "kl": {"mean": kl}, "adapter_bytes": 1000}
    return {
        "run": {"duration_s": 1.0, "git_commit": "0123456789", "seeds": [0]},
        "backend": {"name": "torch", "device": "cpu", "dtype": "float32"},
        "thresholds": [{"passed": True}, {"passed": False}],
        "variants": [{"name": "baseline", "train": None}, {"name": variant, "train": {"seconds": 2.0, "steps": steps}}],
        "scorecard": [{"variant": "baseline"}, card],
    }


def make_done(run, out, content):
    folder = out / RUNS / run.folder / "20260101T000000Z-cpu"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    write_made_of(run, folder.parent)


def test_the_table_has_a_row_a_run_and_means_over_seeds(written, tmp_path):
    runs = runs_of(written("base: {variants: lora}\ngrid: {lora.rank: [4, 8], seeds: [0, 1]}"))
    for run, rate in zip(runs[:3], (0.5, 0.7, 0.9), strict=True):
        make_done(run, tmp_path, a_report("lora", rate, 0.02))
    (tmp_path / RUNS / runs[3].folder).mkdir()
    write_made_of(runs[3], tmp_path / RUNS / runs[3].folder, "no disk")
    table.written(runs, tmp_path, "kl", "generality", lambda *_: [])
    read = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [(row["lora.rank"], row["seeds"], row["status"], row["generality"], row["why"]) for row in read] == [
        ("4", "0", "done", "0.5", ""), ("4", "1", "done", "0.7", ""), ("8", "0", "done", "0.9", ""),
        ("8", "1", "failed", "", "no disk")]  # fmt: skip
    assert read[0]["missed_thresholds"] == "1"
    made = results.recipes(results.rows(runs, tmp_path))
    assert [(recipe.label, recipe.runs) for recipe in made] == [("lora rank=4", 2), ("lora rank=8", 1)]
    assert made[0].means["generality"] == pytest.approx(0.6)
    assert made[0].halves["generality"] == pytest.approx(12.706 * 0.1, rel=1e-3)  # t with one degree of freedom
    assert made[1].halves["generality"] is None
    page = (tmp_path / "sweep.md").read_text()
    assert "3 of 4 runs" in page
    assert "60.0% ±127.1" in page
    assert (tmp_path / "sweep.html").stat().st_size > 10_000
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


@pytest.mark.parametrize("x", ["lora.rank", "kl", "train_steps"])
def test_the_plot_may_be_over_a_measure_or_what_was_varied(written, tmp_path, x):
    runs = runs_of(written("base: {variants: lora}\ngrid: {lora.rank: [4, 8, 16]}"))
    for run, rate in zip(runs, (0.5, 0.7, 0.9), strict=True):
        make_done(run, tmp_path, a_report("lora", rate, 0.02 * rate, int(10 * rate)))
    figure = plots.draw(results.recipes(results.rows(runs, tmp_path)), x, "generality")
    (axis,) = figure.axes
    places = [line for line in axis.lines if line.get_linestyle() == "None" or line.get_label() == "_nolegend_"]
    assert axis.get_ylabel() == "generality, %"
    assert sorted(axis.lines[0].get_ydata()) == pytest.approx([50, 70, 90])
    assert sorted(axis.lines[0].get_xdata()) == pytest.approx(
        {"lora.rank": [4, 8, 16], "kl": [0.01, 0.014, 0.018], "train_steps": [5, 7, 9]}[x]
    )
    assert places


def test_a_kl_of_0_by_construction_is_marked(written, tmp_path):
    (run,) = runs_of(written("list: [{variants: engram-keyed}]"))
    content = a_report("engram-keyed", 0.5, 0.0)
    content["scorecard"][1]["kl"]["by_construction"] = True
    make_done(run, tmp_path, content)
    table.written([run], tmp_path, "kl", "generality", lambda *_: [])
    assert (tmp_path / "sweep.md").read_text().count("| 0*") == 2
    (axis,) = plots.draw(results.recipes(results.rows([run], tmp_path)), "kl", "generality").axes
    assert "white" in [line.get_markerfacecolor() for line in axis.lines]


def test_the_front_has_what_no_other_beats_in_both():
    assert plots.front([(1, 5), (2, 4), (3, 9), (0.5, 1), (3, 8), (4, 9)]) == [3, 0, 2]


@pytest.mark.parametrize("options", [("--x", "speed"), ("--x", "seeds"), ("--y", "seeds")])
def test_what_the_plot_cannot_show_is_refused_before_anything_runs(written, tmp_path, capsys, options):
    file = written("base: {backend: mlx}\ngrid: {seeds: [0]}")
    assert cli.main(["sweep", str(file), "--out", str(tmp_path / "out"), *options]) == 2
    assert f"{options[0]}: {options[1]!r} is not one of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fields_that_only_fit_together_are_set_together(written):
    (run,) = runs_of(
        written("list: [{variants: engram-keyed, engram-keyed.span: text, engram-keyed.acts: everywhere}]")
    )
    assert (run.chosen[1].config.span, run.chosen[1].config.acts) == ("text", "everywhere")


def test_variables_of_the_environment_are_options_of_each_run(written, monkeypatch):
    file = written("grid: {seeds: [0]}")
    (before,) = runs_of(file)
    monkeypatch.setenv("ENGRAM_BENCH_PROFILE", "smoke")
    (run,) = runs_of(file)
    assert run.options["profile"] == "smoke"
    assert run.sha256 != before.sha256
    monkeypatch.setenv("ENGRAM_BENCH_PROFILE", "quick")
    assert runs_of(written("list: [{profile: full}]"))[0].options["profile"] == "full"


def test_a_report_that_was_cut_is_no_report(written, tmp_path):
    (run,) = runs_of(written("grid: {seeds: [0]}"))
    make_done(run, tmp_path, a_report("lora", 1, 0))
    file = next((tmp_path / RUNS / run.folder).glob("*/report.json"))
    file.write_text("nonsense}\n")
    (row,) = results.rows([run], tmp_path)
    assert (row.status, row.rest["why"]) == ("failed", "its report cannot be read; delete its folder")
    file.write_text(json.dumps(a_report("lora", 1, 0), indent=1)[:-20])
    assert state(tmp_path / RUNS / run.folder).status == "missing"
    table.written([run], tmp_path, "kl", "generality", lambda *_: [])


EXAMPLES = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "sweep.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_of_the_page_are_sweeps(written, text):
    read = reading.read(written(text))
    assert read.runs or read.search


needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is not installed")


@needs_optuna
def test_a_search_finds_the_better_recipe_and_goes_on_where_it_stopped(written, tmp_path):
    """The reports are written here; the best rate of learning is 0.002, and a larger rank moves too much."""
    file = written(
        "base: {variants: baseline}\nsearch: {trials: 24, constraint: kl <= 0.01, objective: generality, "
        "space: {lora: {training.lr: {low: 1e-4, high: 1e-1, log: true}, rank: [4, 64]}}}"
    )
    read = reading.read(file)
    made = []

    def make(runs, most=99):
        for run in runs:
            if state(tmp_path / RUNS / run.folder).status != DONE and len(made) < most:
                lora = run.chosen[1]
                rate = max(0.0, 1 - abs(lora.training.lr - 0.002) * 10)
                made.append(run)
                make_done(run, tmp_path, a_report("lora", rate, 0.02 if lora.config.rank == 64 else 0.001))

    assert len(search.made(read.search, tmp_path, lambda runs: make(runs, most=10))) == 11  # the last is not made
    runs = search.made(reading.read(file).search, tmp_path, make)
    assert [run.name for run in runs] == [f"lora trial {n:03d}" for n in range(24)]
    assert made == runs
    assert "lora" not in runs[0].changed  # as it is
    assert runs[0].options["profile"] == "development"
    row = search.best(read.search, results.rows(runs, tmp_path))["lora"]
    assert float(row.axes["lora.training.lr"]) == pytest.approx(0.002, rel=2)
    assert row.axes["lora.rank"] == "4"
    later = [run.chosen[1].config.rank for run in runs[12:]]
    assert later.count(4) > later.count(64)  # what breaks the constraint is proposed less


@needs_optuna
def test_a_failed_trial_is_left_out_and_the_search_goes_on(written, tmp_path):
    read = reading.read(written(f"search: {{trials: 3, {SPACE}}}"))

    def make(runs):
        for run in runs:
            (tmp_path / RUNS / run.folder).mkdir(parents=True)
            write_made_of(run, tmp_path / RUNS / run.folder, "no memory")

    assert len(search.made(read.search, tmp_path, make)) == 3
    assert search.best(read.search, []) == {}


@needs_optuna
def test_a_trial_that_failed_stays_failed_so_that_the_search_can_go_on(written, tmp_path):
    file = written(f"search: {{trials: 14, {SPACE}}}")
    read = reading.read(file)

    def make(runs, fails=True):
        for run in runs:
            if state(tmp_path / RUNS / run.folder).status != DONE:
                if fails and run.name.endswith("003"):
                    (tmp_path / RUNS / run.folder).mkdir(parents=True)
                    write_made_of(run, tmp_path / RUNS / run.folder, "no memory")
                else:
                    make_done(run, tmp_path, a_report("lora", run.chosen[1].training.lr, 0))

    before = search.made(read.search, tmp_path, make)
    again = search.made(reading.read(file).search, tmp_path, lambda runs: make(runs, fails=False))
    assert [run.sha256 for run in again] == [run.sha256 for run in before]


@needs_optuna
def test_runs_of_a_grid_are_no_trials(written, tmp_path, capsys):
    read = reading.read(
        file := written(f"base: {{variants: lora}}\ngrid: {{seeds: [0]}}\nsearch: {{trials: 1, {SPACE}}}")
    )
    make_done(read.runs[0], tmp_path, a_report("lora", 0.9, 0))
    for run in search.made(read.search, tmp_path, lambda _: None):
        make_done(run, tmp_path, a_report("lora", 0.1, 0))
    assert cli.main(["sweep", str(file), "--out", str(tmp_path), "--report"]) == 0
    said = capsys.readouterr().out
    assert "| lora      | lora trial 000 | as it is | 10.0%" in said
    assert said.count("| 1      |") == 2  # two recipes of one run each, not one of two


def test_a_failed_run_may_be_mended_in_the_file(written, tmp_path):
    (run,) = runs_of(written("list: [{name: a, seeds: 0}]"))
    (tmp_path / RUNS / run.folder).mkdir(parents=True)
    write_made_of(run, tmp_path / RUNS / run.folder, "no such model")
    check_same(runs_of(written("list: [{name: a, seeds: 1}]")), tmp_path)


@pytest.mark.parametrize(
    ("needed", "fits"), [((2, 0, 4), True), ((8, 0, 4), False), ((1, 1, 1), False), ((1, 0, 99), False)]
)
def test_resources_that_no_node_has_are_refused(needed, fits):
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "memory": 8 * 2**30}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0, "memory": 999 * 2**30}},
    ]
    if fits:
        cluster.check_room(nodes, reading.Resources(*needed))
    else:
        with pytest.raises(UsageError, match="the nodes have: 4 cores, 0 GPUs"):
            cluster.check_room(nodes, reading.Resources(*needed))


def test_a_folder_with_other_runs_is_refused(written, tmp_path, capsys):
    make_done(runs_of(written("list: [{name: a, seeds: 0}]"))[0], tmp_path / "out", a_report("lora", 1, 0))
    file = written("list: [{name: a, seeds: 1}]")
    assert cli.main(["sweep", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "run 'a' in it was made with other settings; choose another --out" in capsys.readouterr().err


def test_other_facts_make_another_run(written, tmp_path):
    file = written("list: [{name: a, patterns: facts.yaml}]")
    (before,) = runs_of(file)
    (tmp_path / "facts.yaml").write_text(FACTS.replace("1111", "9999"))
    assert runs_of(file)[0].sha256 != before.sha256


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--jobs", "0"], "--jobs: 0 makes no run"),
        (["--jobs", "two"], "--jobs: 'two' is not a whole number"),
        (["--store", "s3://x"], "--store: only runs on a cluster need it"),
        (["--out", "a,b"], "a comma would end the name of a variant's file"),
    ],
)
def test_options_that_cannot_be_are_refused(written, options, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", str(written("grid: {seeds: [0]}")), *options]) == 2
    assert says in capsys.readouterr().err


def test_a_dry_run_lists_runs_and_makes_none(written, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(["sweep", str(written("base: {backend: mlx}\ngrid: {seeds: [0, 1], variants: [lora]}")), "--dry-run"])
        == 0
    )
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("2 runs, 0 of them done; up to ")
    assert rest[0] == "seeds=0 variants=lora: --engram-backend=mlx --engram-seeds=0 --engram-variants=lora"
    assert not (tmp_path / "my-runs").exists()


@pytest.mark.parametrize(
    ("log", "code", "why"),
    [
        ("x\n! _pytest.outcomes.Exit: unknown variant 'x' !\nno tests ran in 0.16s", 2, "unknown variant 'x'"),
        ("!!!!!!!!! _pytest.outcomes.Exit: unknown variant 'x' !!!!!!!!\nno tests ran", 2, "unknown variant 'x'"),
        ("ERROR: usage\nmore", 4, "usage"),
        ("E   ValueError: 3\n1 failed", 1, "ValueError: 3"),
        ("loading", -9, "killed by signal 9"),
        ("", 3, "exit code 3"),
    ],
)
def test_why_a_run_failed_is_a_line(log, code, why):
    assert reason(log, code) == why


# Whole sweeps

SIX = """
base: {{model: {model}, backend: cpu, profile: smoke, patterns: facts.yaml}}
grid:
  variants: [engram-keyed, dictionary, prompted]
  items: [3, 4]
resources: {{cpus: 1, memory: 0.5}}
"""


def table_of(out, without=TIMES):
    with (out / "sweep.csv").open(encoding="utf-8") as file:
        return [{name: text for name, text in row.items() if name not in without} for row in csv.DictReader(file)]


def sweeping(file, out, *more, **kwargs):
    command = [sys.executable, "-m", "engram_bench.cli", "sweep", str(file), "--out", str(out), *more]
    env = environment(PYTHONPATH=PATH, OMP_NUM_THREADS="1")
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **kwargs)


@pytest.fixture(scope="module")
def six(checkpoint, tmp_path_factory):
    """A sweep's file, and the folder of the same sweep when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("six")
    (folder / "facts.yaml").write_text(FACTS)
    (folder / "six.yaml").write_text(SIX.format(model=checkpoint))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGRAM_BENCH_CACHE", str(folder / "cache"))
        whole = sweeping(folder / "six.yaml", folder / "whole", "-j", "2")
        assert whole.communicate(timeout=300)[0].count("| dictionary items=3") == 1
    assert whole.returncode == 0
    return folder / "six.yaml", folder / "whole"


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_ended_sweep_goes_on_and_comes_to_the_same(six, own_cache, tmp_path, sent):
    file, whole = six
    process = sweeping(file, tmp_path / "ended", "-j", "2")
    for line in process.stderr:
        if line.startswith("2/6"):
            break
    process.send_signal(sent)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert (tmp_path / "ended" / "sweep.csv").is_file() == (sent == signal.SIGINT)
    done = {folder for folder in (tmp_path / "ended" / RUNS).iterdir() if state(folder).status == DONE}
    assert 2 <= len(done) < 6
    before = {folder: state(folder).place.stat().st_mtime_ns for folder in done}
    again = sweeping(file, tmp_path / "ended", "-j", "2")
    again.communicate(timeout=300)
    assert again.returncode == 0
    assert {folder: state(folder).place.stat().st_mtime_ns for folder in done} == before
    assert table_of(tmp_path / "ended") == table_of(whole)


@needs_torch
@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(written, checkpoint, own_cache, tmp_path, capsys):
    file = written(
        f"base: {{model: {checkpoint}, backend: cpu, profile: smoke, patterns: facts.yaml, variants: dictionary}}\n"
        "list: [{name: lost, model: ./nowhere}, {name: fine, seeds: 0}]"
    )
    assert cli.main(["sweep", str(file), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "1/2 failed" in said.err
    assert "2/2 done" in said.err
    lost, fine = table_of(tmp_path / "out")
    assert (lost["status"], fine["status"]) == (FAILED, DONE)
    assert "nowhere" in lost["why"]
    assert report(tmp_path / "out" / RUNS / "fine")["run"]["complete"]


@needs_torch
@pytest.mark.slow
def test_a_folder_that_another_sweep_writes_is_refused(six, own_cache, tmp_path):
    first = sweeping(six[0], tmp_path / "out")
    for line in first.stderr:
        if line.startswith("6 runs"):
            break
    second = sweeping(six[0], tmp_path / "out")
    assert "another sweep is writing there" in second.communicate(timeout=60)[1]
    assert second.returncode == 2
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)


CLUSTER = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from engram_bench import cli

if __name__ == "__main__":
    file, out, *more = sys.argv[1:]
    cluster = Cluster()
    size = {"num_cpus": 1, "memory": 2 * 2**30, "object_store_memory": 80 * 2**20}
    nodes = [cluster.add_node(**size) for _ in range(3)]
    cluster.wait_for_nodes()

    def kill():
        while len(list(Path(out).glob("runs/*/run.json"))) < 2:
            time.sleep(0.2)
        cluster.remove_node(nodes[2], allow_graceful=False)
        print("removed a node", flush=True)

    threading.Thread(target=kill, daemon=True).start()
    code = cli.main(["sweep", file, "--out", out, "--ray", cluster.address, *more])
    cluster.shutdown()
    sys.exit(code)
"""


@needs_torch
@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None or find_spec("pyarrow") is None, reason="ray is not installed")
@pytest.mark.parametrize("stored", [False, True], ids=["folder", "store"])
def test_three_nodes_one_of_them_killed_come_to_the_same(six, own_cache, tmp_path, stored):
    file, whole = six
    (tmp_path / "cluster.py").write_text(CLUSTER)
    more = ["--store", (tmp_path / "store").as_uri()] if stored else []
    command = [sys.executable, tmp_path / "cluster.py", file, tmp_path / "there", *more]
    env = environment(PYTHONPATH=PATH)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=400, env=env)
    assert done.returncode == 0, done.stderr
    assert stored or "removed a node" in done.stdout
    assert table_of(tmp_path / "there") == table_of(whole)
    again = sweeping(file, tmp_path / "there")
    assert again.communicate(timeout=100)[1].count(" done 0 s ") == 6
    assert again.returncode == 0
    if stored:
        assert len(list((tmp_path / "store" / RUNS).glob("*/*/report.json"))) == 6


@needs_torch
@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_an_address_where_nothing_answers_is_a_line(six, tmp_path):
    start = time.monotonic()
    process = sweeping(six[0], tmp_path / "out", "--ray", "127.0.0.1:9")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2, said
    assert "--ray 127.0.0.1:9: no cluster can be used there" in said.splitlines()[-1]
    assert time.monotonic() - start < 120


def test_without_ray_a_line_says_how_to_install_it(written, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    file = written("base: {backend: mlx}\ngrid: {seeds: [0]}")
    assert cli.main(["sweep", str(file), "--out", str(tmp_path / "out"), "--ray", "local"]) == 2
    assert 'pip install "engram-bench[ray]"' in capsys.readouterr().err


def test_without_optuna_a_line_says_how_to_install_it(written, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    file = written(f"search: {{trials: 2, {SPACE}}}")
    assert cli.main(["sweep", str(file), "--out", str(tmp_path / "out")]) == 2
    assert 'pip install "engram-bench[sweep]"' in capsys.readouterr().err
    assert Path(tmp_path / "out").exists() is False


def test_the_page_on_large_sweeps_shows_the_committed_figures():
    found = json.loads(sweep_scale.RESULTS.read_text(encoding="utf-8"))
    assert sweep_scale.text(found) in (ROOT / "docs" / "large-sweeps.md").read_text(encoding="utf-8")
