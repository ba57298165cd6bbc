"""The plugin from a user's view: options and their precedence, exit codes, one-line errors, a whole tiny run."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from engram_bench import cli, options, plugin
from engram_bench.data import patterns
from engram_bench.errors import UsageError
from engram_bench.run.bench import Bench
from engram_bench.run.evaluate import REPEATED
from engram_bench.run.progress import Reporter
from engram_bench.store import adapters
from tests.conftest import ENGRAM, LORA, PATTERNS, needs_torch
from tests.running import ROOT, environment, run, run_from_scratch
from tests.test_report import SCHEMA


def no_ini(_):
    return ""


def test_importing_plugin_and_fixtures_imports_no_framework_and_no_statistics():
    """Every pytest run of an environment does."""
    heavy = {"bm25s", "matplotlib", "mlx", "numpy", "rich", "scipy", "statsmodels", "torch", "transformers"}
    modules = ", ".join(["engram_bench.plugin", "engram_bench.options", *plugin.pytest_plugins])
    code = f"import sys, {modules}; print(sorted({heavy} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


FOREIGN = {
    "conftest.py": """\
import pytest
from engram_bench.run import invocation

def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        option, settled = session.config.option, invocation._settings in session.config.stash
        print("AFTER", option.dist, option.maxworkerrestart, settled)

@pytest.fixture
def bench():
    return "a desk"

@pytest.fixture(params=["plain", "varnished"])
def variant(request):
    return request.param
""",
    "test_desks.py": "def test_it(bench, variant):\n    assert bench == 'a desk'\n",
}
OWN = {
    "test_all.py": "def test_it(cell):\n    pass\n\ndef test_each(bench, category):\n    pass\n",
    "test_group.py": "MEASURES = 'lookups'\n\ndef test_it(bench, category):\n    pass\n",
    "test_one.py": "MEASURES = 'port'\n\ndef test_it(bench, category):\n    pass\n",
}


def elsewhere(folder, files, *args, **env):
    """pytest in a folder outside the repository, on these files."""
    for name, text in files.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:hypothesispytest", "-p", "no:anyio", *args]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment(PYTHONPATH=path, **env))


def test_a_project_that_does_not_use_the_bench_is_left_alone(tmp_path):
    """Its own fixtures of these names are its own, and xdist does as it would without the plugin."""
    result = elsewhere(tmp_path, FOREIGN, "-n", "2", ENGRAM_BENCH_REASK="")  # an option would make the run ours
    assert "2 passed" in result.stdout, result.stdout
    assert "AFTER load None False" in result.stdout
    assert "engram_bench:" not in result.stdout


def test_a_module_of_ones_own_measures_all_categories_or_those_it_names(tmp_path):
    result = elsewhere(tmp_path, OWN, "--collect-only", "-q")
    found = [line for line in result.stdout.splitlines() if "::" in line]
    assert sum(line.startswith("test_all.py::test_each") for line in found) == 13
    assert "test_all.py::test_it[lookups-port-lora-rephrased]" in found
    assert "test_all.py::test_it[synthetic-baseline-seen]" in found
    assert sum(line.startswith("test_group.py") for line in found) == 7
    assert [line for line in found if line.startswith("test_one.py")] == ["test_one.py::test_it[lookups-port]"]


@pytest.mark.parametrize(("chosen", "count"), [("facts", 102), ("lookups", 657), ("synthetic", 95)])
def test_categories_are_chosen_by_name_or_group(chosen, count):
    """Ten variants, nine ways, consistency; groups have targets, random pairs have controls and no paraphrases.

    Two variants are not asked what an adapter leaves alone. Two have thresholds over `prompted`, for seen, rephrased
    and consistency.
    """
    result = run("--collect-only", "-q", "-k", chosen)
    assert sum("::" in line for line in result.stdout.splitlines()) == count, result.stdout


def test_without_the_plugin_a_checkout_says_what_to_install():
    result = run_from_scratch("-p", "no:engram_bench")
    assert result.returncode == 2
    assert "engram_bench is not installed in this environment; run: pip install -e ." in result.stdout + result.stderr


def test_a_run_that_ends_early_advises_to_delete_no_snapshot(tmp_path):
    result = run("--engram-model", tmp_path, "--engram-report", tmp_path / "runs", "--import-mode", "importlib")
    assert result.returncode == 2
    assert f"{tmp_path}: no config.json in this folder" in result.stdout
    assert "snapshot-update" not in result.stdout


def test_help_of_bench_names_pytests_options(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "--help"])
    assert ended.value.code == 0
    assert "It takes pytest's options" in " ".join(capsys.readouterr().out.split())


def test_an_option_beats_the_environment_beats_the_ini_file_beats_the_default(monkeypatch):
    ini = {"engram_profile": "full", "engram_samples": "7", "engram_seeds": "5"}.get
    monkeypatch.setenv("ENGRAM_BENCH_PROFILE", "default")
    monkeypatch.setenv("ENGRAM_BENCH_SAMPLES", "8")
    found = options.settle({"engram_profile": "quick"}, lambda name: ini(name, ""))
    assert (found.profile, found.samples, found.seeds, found.model) == ("quick", 8, (5,), "bundled")


@pytest.mark.parametrize(
    ("marker", "backend"),
    [("cpu", "cpu"), ("cuda and not slow", "cuda"), ("cpu or cuda", "auto"), ("not cuda", "auto"), ("", "auto")],
)
def test_a_marker_chooses_the_backend(marker, backend):
    assert options.settle({}, no_ini, marker).backend == backend


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"engram_profile": "huge"}, "--engram-profile: 'huge' is not one of smoke, quick"),
        ({"engram_backend": "tpu"}, "--engram-backend: 'tpu'"),
        ({"engram_samples": "many"}, "--engram-samples: 'many'"),
        ({"engram_samples": "3,5"}, "not one whole number"),
        ({"engram_seeds": "1,-2"}, "--engram-seeds: '1,-2'"),
        ({"engram_variants": "lroa"}, "unknown variant 'lroa'"),
        ({"engram_patterns": "no/such/folder"}, "No such file"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_its_option(given, reason):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        options.settle(given, no_ini)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "args",
    [
        ["--engram-profile", "huge"],
        ["--engram-patterns", "no/such"],
        ["--engram-report", "/dev/null/x"],
        pytest.param(["--engram-model", "no/such/folder"], marks=needs_torch),
        pytest.param(["--engram-backend", "cuda" if sys.platform == "darwin" else "mps"], marks=needs_torch),
        pytest.param(["--engram-lora-engine", "unsloth", "--engram-backend", "cpu"], marks=needs_torch),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(args):
    result = run(*args)
    assert result.returncode == 2
    assert "Traceback" not in result.stdout + result.stderr
    told = [line for line in (result.stdout + result.stderr).splitlines() if "Exit" in line]
    assert len(told) == 1
    assert args[1] in told[0]


@pytest.fixture(scope="module")
def tiny(checkpoint, tmp_path_factory):
    """Arguments and cache of a run on the tiny model, two variants, one small category."""
    folder = tmp_path_factory.mktemp("tiny-run")
    for name, text in (("colours.yaml", PATTERNS), ("engram.yaml", ENGRAM), ("lora.yaml", LORA)):
        (folder / name).write_text(text)
    args = [
        "--engram-model", checkpoint, "--engram-patterns", folder / "colours.yaml",
        "--engram-variants", f"{folder / 'engram.yaml'},{folder / 'lora.yaml'}", "--engram-backend", "cpu",
    ]  # fmt: skip
    return folder, args, {"ENGRAM_BENCH_CACHE": str(folder / "cache")}


def whole_run(tiny, name, *more):
    folder, args, env = tiny
    result = run(*args, "--engram-report", folder / name, *more, **env)
    assert result.returncode == 0, result.stdout + result.stderr
    latest = folder / name / "latest"
    return result, json.loads((latest / "report.json").read_text()), latest


def without_times(report):
    report = json.loads(json.dumps(report))
    for key in ("started", "duration_s", "evaluation_s", "tokens_s", "matmul_gflops", "peak_memory_mb", "argv"):
        del report["run"][key]
    del report["backend"]["load_seconds"], report["speed"], report["lookup"]
    for variant in report["variants"]:
        del variant["cached"]
        if variant["train"]:
            del variant["train"]["seconds"]
    for row in report["scorecard"]:
        del row["train_seconds"], row["seconds_per_right"]
    report["thresholds"] = [t for t in report["thresholds"] if "seconds" not in t["id"]]
    return report


@pytest.fixture(scope="module")
def first(tiny):
    """Output, report and folder of one whole run."""
    return whole_run(tiny, "first")


def test_a_whole_run_leaves_a_report_of_the_published_schema(tiny, first):
    result, report, latest = first
    jsonschema.validate(report, SCHEMA)
    assert "report: " in result.stdout
    assert "engram_bench: torch on cpu" in result.stdout
    assert "LoRA by peft (Unsloth needs a CUDA device)" in result.stdout
    assert [v["train"]["engine"] for v in report["variants"][1:]] == [None, "peft"]
    assert report["model"]["revision"] is None
    cards = {row["variant"]: row for row in report["scorecard"]}
    assert cards["tiny-engram"]["train_seconds"] > 0
    assert cards["tiny-engram"]["seconds_per_right"] > 0
    sizes = [sum(file.stat().st_size for file in folder.iterdir() if file.name != adapters.TRAINING)
             for folder in sorted((tiny[0] / "cache" / "adapters").glob("tiny-*")) if folder.is_dir()]  # fmt: skip
    assert [v["adapter_bytes"] for v in report["variants"]] == [None, *sizes]
    assert re.search("^tiny-engram +100 ", result.stdout, re.MULTILINE)
    assert {p.name for p in latest.iterdir()} == {"plots", "report.html", "report.json", "report.md", "samples.jsonl"}
    assert [v["name"] for v in report["variants"]] == ["baseline", "tiny-engram", "tiny-lora"]
    assert {c["category"] for c in report["cells"]} == {"colours"}
    exact = {(c["variant"], c["split"]): c["exact"]["rate"] for c in report["cells"]}
    assert exact["tiny-engram", "rephrased"] > 0.8 > exact["baseline", "rephrased"]
    told = {m["variant"]: m["told"]["rate"] for m in report["mentions"]}
    assert told.keys() == {"tiny-engram", "tiny-lora"}
    assert told["tiny-engram"] > 0.8, "a memory speaks up wherever its key stands"
    lines = [json.loads(line) for line in (latest / "samples.jsonl").read_text().splitlines()]
    trained = 8 + 6 * 3 + REPEATED + 8  # seen, six with three drawn, those asked for again, and rephrased
    others = 4 + 5 + 5 + 2 + 2  # combined, mention, contradicted, neighbour, heldout
    assert len(lines) == 3 * (trained + others)


def test_a_report_rebuilt_from_its_answers_is_the_same_to_the_byte(first, tmp_path):
    _, report, latest = first
    folder = shutil.copytree(latest, tmp_path / "run")
    for name in ("report.md", "plots/exact.png"):
        (folder / name).unlink()
    emptied = {**report, "cells": [], "outcomes": [], "contrasts": []}
    (folder / "report.json").write_text(json.dumps(emptied), encoding="utf-8")
    assert cli.main(["report", str(folder)]) == 0
    for name in ("report.json", "report.md", "report.html", "plots/exact.png"):
        assert (folder / name).read_bytes() == (latest / name).read_bytes(), name


def test_a_report_of_a_run_broken_off_is_rebuilt_from_each_answer_once(first, tmp_path):
    _, report, latest = first
    folder = shutil.copytree(latest, tmp_path / "run")
    broken = {**report, "run": {**report["run"], "complete": False}}
    (folder / "report.json").write_text(json.dumps(broken), encoding="utf-8")
    lines = (latest / "samples.jsonl").read_bytes().splitlines(keepends=True)
    odd = {**json.loads(lines[-1]), "output": "line\u2028separator"}
    kept = [*lines, lines[0], json.dumps(odd, ensure_ascii=False).encode() + b"\n", lines[1][:9]]
    (folder / "samples.jsonl").write_bytes(b"".join(kept))
    assert cli.main(["report", str(folder)]) == 0
    rebuilt = json.loads((folder / "report.json").read_text("utf-8"))
    assert [cell["n"] for cell in rebuilt["cells"]] == [cell["n"] for cell in report["cells"]]
    assert rebuilt["contrasts"] == report["contrasts"]


def test_a_variant_that_does_not_fit_the_model_is_refused_before_anything_is_trained(tiny, tmp_path):
    folder, args, env = tiny
    (tmp_path / "deep.yaml").write_text(ENGRAM.replace("[0, 1]", "[0, 7]"))
    deep = ["--engram-variants", f"{folder / 'lora.yaml'},{tmp_path / 'deep.yaml'}", "--engram-retrain"]
    result = run(*args, *deep, "--engram-report", tmp_path / "runs", **env)
    assert result.returncode == 2
    (told,) = [line for line in (result.stdout + result.stderr).splitlines() if "does not exist" in line]
    assert "variant tiny-engram: layer 7 does not exist: this model has layers 0 to 2" in told
    assert "loss" not in result.stdout


@pytest.mark.parametrize("kept", [0, 40])
def test_a_report_is_not_rebuilt_from_fewer_answers_unless_it_may_say_so(first, tmp_path, capsys, kept):
    *_, latest = first
    folder = shutil.copytree(latest, tmp_path / "run")
    lines = (latest / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "samples.jsonl").write_bytes(b"".join(lines[:kept]))
    assert cli.main(["report", str(folder)]) == 2
    assert f"{kept} of {len(lines)} answers" in capsys.readouterr().err
    for name in ("report.json", "report.md", "report.html"):
        assert (folder / name).read_bytes() == (latest / name).read_bytes(), name
    assert cli.main(["report", str(folder), "--partial"]) == 0
    heading = f"engram-bench report (partial: {kept} of {len(lines)} answers)"
    assert (folder / "report.md").read_text("utf-8").splitlines()[0] == f"# {heading}"
    assert f"<h1>{heading}</h1>" in (folder / "report.html").read_text("utf-8")
    shutil.copy(latest / "samples.jsonl", folder)
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.json").read_bytes() == (latest / "report.json").read_bytes(), "whole again"


def test_a_changed_answer_is_found_out(first, tmp_path, capsys):
    *_, latest = first
    folder = shutil.copytree(latest, tmp_path / "run")
    text = (folder / "samples.jsonl").read_text("utf-8")
    (folder / "samples.jsonl").write_text(text.replace('"exact": false', '"exact": true', 1), encoding="utf-8")
    assert cli.main(["report", str(folder)]) == 2
    assert "not those of the run" in capsys.readouterr().err


def test_a_report_that_cannot_be_rebuilt_says_why_in_one_line(first, tmp_path, capsys):
    _, report, latest = first
    nothing, newer, odd = (tmp_path / name for name in ("nothing", "newer", "odd"))
    for folder in (newer, odd):
        shutil.copytree(latest, folder)
    (newer / "report.json").write_text(json.dumps({**report, "schema_version": 2}), encoding="utf-8")
    (odd / "samples.jsonl").write_text("[]\n", encoding="utf-8")
    told = {nothing: "name the folder of a run", newer: "schema version 2", odd: "answers do not fit report.json"}
    for folder, reason in told.items():
        assert cli.main(["report", str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line
    assert (odd / "report.md").read_bytes() == (latest / "report.md").read_bytes()


def test_a_second_run_takes_adapters_from_the_cache_and_gives_the_same_report(tiny, first):
    _, second, _ = whole_run(tiny, "second")
    assert all(v["cached"] for v in second["variants"] if v["train"])
    assert without_times(second) == without_times(first[1])


def test_a_run_that_trains_anew_gives_the_same_report(tiny, first):
    _, again, _ = whole_run(tiny, "again", "--engram-retrain")
    assert not any(v["cached"] for v in again["variants"])
    assert without_times(again) == without_times(first[1])


def test_workers_give_the_same_report(tiny, first):
    _, together, _ = whole_run(tiny, "together", "-n", "2")
    assert without_times(together) == without_times(first[1])


def test_a_run_of_one_variant_trains_no_other(tiny):
    folder, args, _ = tiny
    env = {"ENGRAM_BENCH_CACHE": str(folder / "another-cache")}
    result = run(*args, "--engram-report", folder / "one", "-k", "accuracy and tiny-lora and seen", **env)
    assert result.returncode == 0, result.stdout
    trained = {p.name.rsplit("-", 1)[0] for p in (folder / "another-cache" / "adapters").iterdir() if p.is_dir()}
    assert trained == {"tiny-lora"}


def test_a_damaged_adapter_ends_the_run_with_one_line(tiny, first):
    folder, args, env = tiny
    saved = {file: file.read_bytes() for file in (folder / "cache" / "adapters").glob("tiny-engram-*/*.safetensors")}
    for file, whole in saved.items():
        file.write_bytes(whole[: len(whole) // 2])
    result = run(*args, "--engram-report", folder / "damaged", **env)
    for file, whole in saved.items():
        file.write_bytes(whole)
    assert result.returncode == 2
    assert "the adapter is damaged" in result.stdout + result.stderr
    assert "FAILURES" not in result.stdout


def test_a_threshold_that_is_missed_fails_the_run_and_is_on_record(tiny):
    folder, _, env = tiny
    weak = folder / "weak.yaml"
    weak.write_text(LORA.replace("tiny-lora", "lora").replace("lr: 1.0e-2", "lr: 1.0e-9"))
    two = folder / "two"
    two.mkdir()
    (two / "colours.yaml").write_text(PATTERNS)
    alike = re.sub('output: "[a-z]+"', 'output: "red"', PATTERNS).replace("colours", "alike").replace("KEY", "SAME")
    (two / "alike.yaml").write_text(alike)
    args = [*tiny[1][:2], "--engram-patterns", two, "--engram-variants", f"{weak},prompted,retrieval"]
    result = run(
        *args, "--engram-backend", "cpu", "--engram-report", folder / "weak", "-k", "test_categories", "-rs", **env
    )
    assert result.returncode == 1
    report = json.loads((folder / "weak" / "latest" / "report.json").read_text())
    thresholds = {t["id"]: t for t in report["thresholds"]}
    for name in ("accuracy", "accuracy-over-prompted", "consistency", "consistency-over-prompted"):
        assert not thresholds[f"{name}/colours/lora/seen"]["passed"]
    assert "above prompted" in thresholds["accuracy-over-prompted/colours/lora/rephrased"]["requirement"]
    assert "accuracy/alike/lora/seen" in thresholds
    assert "accuracy-over-prompted/alike/lora/seen" not in thresholds
    assert "prompted has a question of alike without a solved example" in " ".join(result.stdout.split())
    (contrast,) = [c for c in report["non_inferiority"] if (c["category"], c["split"]) == ("colours", "seen")]
    assert (contrast["a"], contrast["b"], contrast["n"]) == ("retrieval", "lora", 8)
    cards = {row["variant"]: row for row in report["scorecard"]}
    facts = sum(len(f"{o['input']} = {o['output']}\n") for o in trained_in(two))
    assert [v["facts_bytes"] for v in report["variants"]] == [None, None, None, facts]
    assert all(row["prompt_tokens_counted"] for row in cards.values())


def trained_in(folder):
    return [
        {"input": item.input, "output": item.output}
        for category in patterns.load(folder).categories.values()
        for item in category.split("seen")
    ]


@pytest.mark.parametrize("more", ["", ",engram-routed"])
def test_the_published_routing_table_is_answered_end_to_end(tiny, tmp_path, more):
    _, args, env = tiny
    (tmp_path / "engram.yaml").write_text(ENGRAM.replace("tiny-engram", "engram-keyed"))
    (tmp_path / "towns.yaml").write_text(
        PATTERNS.replace("KEY:bcd", "CAPITAL:France").replace("name: colours", "name: towns")
    )
    args = [*args[:2], "--engram-patterns", tmp_path / "towns.yaml", *args[6:]]
    variants = ["--engram-variants", f"{tmp_path / 'engram.yaml'}{more}"]
    result = run(*args, *variants, "--engram-report", tmp_path, "-k", "published_table", **env)
    assert result.returncode == 0, result.stdout
    report = json.loads((tmp_path / "latest" / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    rows = report["routed"]
    assert [(row["prompt"], row["trained"]) for row in rows] == [
        ("ACRONYM:GPU", False),
        ("CAPITAL:France", True),
        ("What is the capital of France?", True),
        ("Write a poem about cats", False),
        ("How do I sort a list?", False),
    ]
    if not more:  # the rules decide; else a classifier of the tiny model's hidden state
        assert [row["confidence"] for row in rows] == [1.0, 1.0, 0.7, 0.0, 0.0]
        assert rows[1]["output"] == "blue" != rows[1]["untouched"]
    assert {row["variant"] for row in rows} == {more[1:] or "engram-keyed"}
    assert all((row["route"] == "memory") == (row["confidence"] >= 0.5) for row in rows)
    assert all(row["output"] == row["untouched"] for row in rows if row["route"] == "model")
    assert "## Routing, end to end" in (tmp_path / "latest" / "report.md").read_text()


def test_the_readmes_own_category_runs(tiny, tmp_path):
    """Two examples, no phrasings, no group: measured, and nothing is asserted of so few."""
    _, args, env = tiny
    file = tmp_path / "airports.yaml"
    file.write_text(
        "name: airports\ndescription: Airport codes.\nexamples:\n"
        '  - {input: "IATA:ZRH", output: "Zurich"}\n  - {input: "IATA:KEF", output: "Keflavik"}\n'
    )
    args = [*args[:2], "--engram-patterns", file, *args[4:]]
    result = run(*args, "--engram-report", tmp_path / "runs", **env)
    assert result.returncode == 0, result.stdout
    report = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())
    assert {c["n"] for c in report["cells"]} == {1}


def test_without_mlx_its_suites_are_skipped_and_say_which_extra_to_install(tiny, tmp_path):
    _, args, env = tiny
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("raise ImportError('no such library here')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = run_from_scratch(*args[:-1], "mlx", "-k", "test_categories", "-rs", **env, PYTHONPATH=path)
    assert result.returncode == 0, result.stdout
    assert "passed" not in result.stdout
    assert 'mlx is not installed (no such library here); run: pip install -e ".[mlx]"' in result.stdout


def test_a_run_broken_off_says_so_and_leaves_latest_alone(tiny, first, tmp_path):
    _, args, env = tiny
    result = run(*args, "--engram-report", tmp_path, "-k", "test_categories", "-p", "tests.interrupting", **env)
    assert result.returncode == 2
    (report,) = tmp_path.glob("*/report.json")
    assert json.loads(report.read_text())["run"]["complete"] is False
    assert not (tmp_path / "latest").exists()


def test_the_command_line_trains_and_resolves_and_refuses(tiny, checkpoint, capsys, monkeypatch):
    folder, _, env = tiny
    monkeypatch.setenv("ENGRAM_BENCH_CACHE", env["ENGRAM_BENCH_CACHE"])
    assert cli.main(["model", str(checkpoint)]) == 0
    assert capsys.readouterr().out.strip() == str(checkpoint)
    data = ["--patterns", str(folder / "colours.yaml"), "--model", str(checkpoint), "--backend", "cpu"]
    assert cli.main(["train", str(folder / "lora.yaml"), *data]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "adapter_model.safetensors").is_file()
    nothing, several = ["dictionary", *data], [str(folder / "lora.yaml"), "--seeds", "0,1", "--out", "x", *data]
    for bad in (["model", "no/such/folder"], *(["train", *of] for of in (["baseline", *data], nothing, several))):
        assert cli.main(bad) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    monkeypatch.setattr(Bench, "trained", lambda *_: pytest.fail("trained before the folder was checked"))
    assert cli.main(["train", str(folder / "lora.yaml"), "--out", str(folder), *data]) == 2
    assert f"--out: {folder}: not empty" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_redrawn_line_on_a_terminal_and_few_lines_elsewhere():
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        report = Reporter(stream)
        for step in range(1, 101):
            report("x[/y]: loss [bold]", step, 100)
    assert "x[/y]: loss [bold]" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[2K"), "and gone at the end"
    assert len(file.getvalue().splitlines()) == 2
