"""Somebody's own facts, from a table to answers: the command with a tiny model, as a user runs it."""

import json
import subprocess
import sys

import pytest
import yaml

from engram_bench import cli
from engram_bench.data import patterns
from engram_bench.data.items import TRAINED
from engram_bench.errors import UsageError
from engram_bench.run.facts import pattern_file
from tests.conftest import needs_torch
from tests.running import ROOT, environment

TABLE = (
    "Key;Value\n"
    + "".join(f"gate {n} of the yard;code {n}{n}\n" for n in range(1, 13))
    + "gate 1 of the yard;code 11\n"
)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "front desk.csv").write_text(TABLE)
    return tmp_path / "front desk.csv"


def command(*args, **env):
    told = [sys.executable, "-m", "engram_bench.cli", *map(str, args)]
    return subprocess.run(told, capture_output=True, text=True, env=environment(PYTHONPATH=str(ROOT), **env))


@needs_torch
@pytest.mark.slow
def test_a_table_becomes_a_scorecard_and_adapters_that_answer(table, checkpoint, own_cache, tmp_path):
    out, model = tmp_path / "out", ["--backend", "cpu", "--model", str(checkpoint)]
    variants = ["--variants", "baseline,lora,engram-keyed"]  # retrieval's prompts exceed this model's context
    done = command("facts", table, "--out", out, "--say", "How do I open {key}?", *variants, *model)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{table}: cells are separated by ';'" in done.stderr
    assert f"{table}: 1 rows repeat a fact and were left out" in done.stderr
    assert "12 facts; variants baseline, lora, engram-keyed" in done.stderr
    report = json.loads((out / "runs" / "latest" / "report.json").read_text())
    asked = {cell["split"]: cell["n"] for cell in report["cells"] if cell["variant"] == "engram-keyed"}
    assert asked["seen"] == asked["rephrased"] == 12
    assert "heldout" not in asked
    assert (out / "lora" / "adapter_model.safetensors").exists()
    assert f"engram-bench ask {out}/engram-keyed 'gate 1 of the yard' --baseline" in done.stdout
    samples = map(json.loads, (out / "runs" / "latest" / "samples.jsonl").read_text().splitlines())
    told = {sample["prompt"]: sample["output"] for sample in samples if sample["variant"] == "engram-keyed"}
    prompt = next(prompt for prompt, output in told.items() if output.startswith("code"))
    assert f"--baseline --backend cpu --model {checkpoint}" in done.stdout
    assert command("write", out / "engram-keyed", "the new gate", "code 0", *model).returncode == 0
    again = command("facts", table, "--out", out, "--say", "How do I open {key}?", *variants, *model)
    assert again.returncode == 0, "the same facts go on in the same folder"
    assert "the new gate -> code 0" in command("list", out / "engram-keyed").stdout
    answered = command("ask", out / "engram-keyed", prompt, *model)
    assert answered.stdout.startswith(told[prompt]), answered.stderr


def test_the_pattern_file_trains_all_facts_and_the_sentences_that_are_said(table, tmp_path):
    text, _ = pattern_file(table, ["How do I open {key}?"])
    (tmp_path / "a.yaml").write_text(text, "utf-8")
    (category,) = patterns.load(tmp_path / "a.yaml").categories.values()
    assert category.trained == (*TRAINED, "How do I open {input}?")
    assert len(category.split("seen")) == 12
    assert yaml.safe_load(text)["source"] == "front desk.csv"
    assert pattern_file(tmp_path / "a.yaml", []) == (text, [])


@pytest.mark.parametrize("said", ["How do I open it?", "{key} or {key}?"])
def test_a_sentence_without_one_key_is_refused(table, said):
    with pytest.raises(UsageError, match=r"must contain \{key\} exactly once"):
        pattern_file(table, [said])


def test_what_is_wrong_is_said_in_a_line_before_anything_is_trained(table, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    (tmp_path / "bad.csv").write_text("key,value\nx,1\nx,2\n")
    for args, says in (
        ([table, "--out", full], "not empty"),
        ([tmp_path / "bad.csv", "--out", tmp_path / "new"], "'x' is '2' here and '1' in"),
        ([tmp_path / "none.csv", "--out", tmp_path / "new2"], "No such file"),
        ([table, "--out", tmp_path / "new3", "--variants", "lor"], "unknown variant 'lor'"),
    ):
        assert cli.main(["facts", *map(str, args)]) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]
