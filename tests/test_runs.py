"""Whole runs on the tiny model, in subprocesses: compared, shared by workers, killed and resumed."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engram_bench.data import patterns, prompt_sets
from engram_bench.data.training import training_set
from engram_bench.store.adapters import TRAINING
from tests.conftest import ENGRAM, PATTERNS
from tests.running import ROOT, arguments, environment, run
from tests.test_plugin import tiny, without_times

__all__ = ["tiny"]  # a fixture

pytestmark = pytest.mark.slow

WORDS = ("red", "blue", "green", "black", "white", "brown", "pink", "grey", "gold", "teal")
MANY = "name: many\ndescription: Enough keys to tell runs apart.\nexamples:\n" + "".join(
    f'  - {{input: "KEY:{chr(97 + n % 26)}{n}", output: "{WORDS[n * 7 % 10]}"}}\n' for n in range(100)
)


@pytest.fixture(scope="module")
def many(checkpoint, tmp_path_factory):
    """Folder, arguments and cache of a run of one memory on a hundred items."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "many.yaml").write_text(MANY)
    (folder / "engram.yaml").write_text(ENGRAM.replace("epochs: 12", "epochs: 4"))
    args = [
        "--engram-model", checkpoint, "--engram-patterns", folder / "many.yaml", "--engram-samples", "2",
        "--engram-variants", folder / "engram.yaml", "--engram-backend", "cpu", "-k", "test_categories",
    ]  # fmt: skip
    return folder, args, {"ENGRAM_BENCH_CACHE": str(folder / "cache")}


@pytest.fixture(scope="module")
def baseline(many):
    """A baseline.json made by a run, in a folder that was not there."""
    folder, args, env = many
    path = folder / "reports" / "baseline.json"
    result = run(*args, "--engram-report", folder / "first", "--engram-gate", path, "--engram-gate-update", **env)
    assert result.returncode == 0, result.stdout
    return path


def damage(cache, share):
    """Noise on a share of the rows of the memory's tables; the cache is told, as if training had made them so."""
    (folder,) = [path for path in (cache / "adapters").iterdir() if path.is_dir()]
    (weights,) = folder.glob("*.safetensors")
    before, tensors = weights.read_bytes(), load_file(weights)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "table" in name:
            rows = torch.rand(len(tensor), generator=generator) < share
            tensor[rows] = 10 * tensor.std() * torch.randn(tensor[rows].shape, generator=generator)
    save_file(tensors, weights)
    _resign(folder)
    return lambda: (weights.write_bytes(before), _resign(folder))


def _resign(folder):
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name != TRAINING:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    record = json.loads((folder / TRAINING).read_text())
    (folder / TRAINING).write_text(json.dumps({**record, "sha256": digest.hexdigest()}))


def test_a_run_gated_by_its_own_baseline_passes(many, baseline):
    folder, args, env = many
    result = run(*args, "--engram-report", folder / "same", "--engram-gate", baseline, **env)
    assert result.returncode == 0, result.stdout
    assert "comparisons with the baseline: 14 unchanged" in result.stdout
    report = json.loads((folder / "same" / "latest" / "report.json").read_text())
    assert {row["verdict"] for row in report["gate"]["rows"]} == {"unchanged"}


def test_an_adapter_with_a_twentieth_of_its_rows_damaged_is_caught(many, baseline):
    folder, args, env = many
    mend = damage(folder / "cache", 0.05)
    result = run(*args, "--engram-report", folder / "worse", "--engram-gate", baseline, **env)
    wide = run(
        *args, "--engram-report", folder / "w", "--engram-gate", baseline, "--engram-gate-fail", "exact:99pt", **env
    )
    mend()
    assert result.returncode == 1
    assert "regressed: tiny-engram, many, rephrased, exact: " in result.stdout
    assert "\nFAILED" not in result.stdout, "the gate alone fails it"
    assert wide.returncode == 0


def test_a_baseline_that_cannot_be_used_ends_the_run_before_it_starts(many, baseline, tmp_path):
    _, args, _ = many
    env = {"ENGRAM_BENCH_CACHE": str(tmp_path / "cache")}
    other = json.loads(baseline.read_text())
    other["dataset"]["sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(other))
    other = json.loads(baseline.read_text())
    other["model"]["sha256"] = "0" * 64
    (tmp_path / "model.json").write_text(json.dumps(other))
    for name, told in (("no.json", "No such file"), ("other.json", "another dataset"), ("model.json", "another model")):
        result = run(*args, "--engram-report", tmp_path / "runs", "--engram-gate", tmp_path / name, **env)
        assert result.returncode == 4
        (line,) = [line for line in (result.stdout + result.stderr).splitlines() if told in line]
        assert name in line
        assert "--engram-gate-update" in line
    assert not list((tmp_path / "runs").iterdir()), "nothing was measured"
    assert not (tmp_path / "cache" / "adapters").exists()


# --- many processes, and fewer than were started ----------------------------------------------------------------------


def outcome(folder):
    """A run's report less its times, and its samples.jsonl to the byte."""
    (report,) = folder.glob("2*/report.json")
    assert {path.name for path in report.parent.iterdir()} == {
        "plots",
        "report.html",
        "report.json",
        "report.md",
        "samples.jsonl",
    }
    return without_times(json.loads(report.read_text())), (report.parent / "samples.jsonl").read_bytes()


@cache
def untouched():
    """What each process has the untouched model answer for itself: the control prompts, and the replay texts."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "colours.yaml").write_text(PATTERNS)
        texts = training_set(patterns.load(Path(folder, "colours.yaml")), "rich").replay
    return {f"generate {len(prompt_sets.control(8))}", f"generate {len(set(texts))}"}


def done(log):
    """What the model was asked to do, but for what each process asks for itself."""
    return sorted(line for line in log.read_text().splitlines() if line not in untouched())


def meddled(tmp_path, kill=""):
    return {"MEDDLE_LOG": str(tmp_path / "log"), "MEDDLE_KILL": kill, "ENGRAM_BENCH_CACHE": str(tmp_path / "cache")}


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """What one process makes of the tiny run, and what the model was asked to do in it."""
    folder = tmp_path_factory.mktemp("alone")
    result = run(*tiny[1], "--engram-report", folder, "-p", "tests.meddling", **meddled(folder))
    assert result.returncode == 0, result.stdout
    return outcome(folder), done(folder / "log")


def test_two_workers_do_what_one_process_does_and_nothing_twice(tiny, alone, tmp_path):
    args = [*tiny[1], "--engram-report", tmp_path, "-p", "tests.meddling", "-n", "2"]
    for more in ((), ("--engram-retrain",)):
        result = run(*args, *more, **meddled(tmp_path))
        assert result.returncode == 0, result.stdout
        assert outcome(tmp_path) == alone[0]
        assert done(tmp_path / "log") == alone[1]
        (header,) = [line for line in result.stdout.splitlines() if line.startswith("engram_bench: torch on cpu")]
        assert "tiny-engram" in header
        for path in tmp_path.glob("2*"):
            shutil.rmtree(path)
        (tmp_path / "log").unlink()


@pytest.mark.parametrize("kill", ["gw0 train 3", "gw1 generate 6"])
def test_a_killed_worker_loses_no_finished_result_and_the_run_can_be_finished(tiny, alone, tmp_path, kill):
    args = [*tiny[1], "--engram-report", tmp_path, "-p", "tests.meddling", "-n", "2"]
    result = run(*args, **meddled(tmp_path, kill))
    assert result.returncode == 2
    assert f"worker {kill[:3]} died" in result.stdout
    (folder,) = tmp_path.glob("2*")
    assert f"--engram-resume {folder}" in result.stdout
    assert json.loads((folder / "report.json").read_text())["run"]["complete"] is False
    result = run(*args, "--engram-resume", folder, **meddled(tmp_path))
    assert result.returncode == 0, result.stdout
    assert outcome(tmp_path) == alone[0]
    log = (tmp_path / "log").read_text().splitlines()
    assert sum(line.startswith("train") for line in log) == 2 + kill.count("train"), "what was trained stays trained"
    # Passages and repeated answers come in batches of at most eight, and each process makes its own. The worker that
    # lives ends with the run, and may lose the batch that it is at.
    small = {"generate 1", "generate 8", *untouched()}
    answers = Counter(line for line in alone[1] if line.startswith("generate") and line not in small)
    found = Counter(line for line in log if line in answers)
    assert answers.total() > 6
    assert not answers - found
    assert (found - answers).total() <= 1, "what was answered stays answered"


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_a_test_that_breaks_leaves_a_run_to_be_finished(tiny, alone, tmp_path, workers):
    """Half of a variant's answers are no measurement of it."""
    args = [*tiny[1], "--engram-report", tmp_path, "-p", "tests.meddling", *workers]
    result = run(*args, **meddled(tmp_path, f"{'gw0' if workers else 'main'} error 4"))
    assert result.returncode == 2, result.stdout
    (folder,) = tmp_path.glob("2*")
    assert any(re.fullmatch(r"suites/test_.*: RuntimeError", line) for line in result.stdout.splitlines())
    assert f"--engram-resume {folder}" in result.stdout
    assert not (tmp_path / "latest").exists()
    assert json.loads((folder / "report.json").read_text())["run"]["complete"] is False
    if not workers:  # other tests cannot complete a run with a partly answered cell
        samples = (folder / "samples.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "samples.jsonl").write_bytes(b"".join(samples[:-1]))
        result = run(*tiny[1], "--engram-report", tmp_path, "-k", "batch_size", "--engram-resume", folder)
        assert result.returncode == 2, result.stdout
        assert "some cells are only partly answered" in result.stdout
        assert json.loads((folder / "report.json").read_text())["run"]["complete"] is False
    result = run(*args, "--engram-resume", folder, **meddled(tmp_path))
    assert result.returncode == 0, result.stdout
    assert outcome(tmp_path) == alone[0]


def test_a_run_stopped_at_its_first_failure_is_not_a_whole_one(tiny, tmp_path):
    (tmp_path / "test_late.py").write_text("def test_it():\n    assert False\n")
    args = [*tiny[1], tmp_path / "test_late.py", "--engram-report", tmp_path / "runs", "-k", "accuracy or it"]
    for more, complete in (([], True), (["-x"], False)):
        result = run(*args, *more, **tiny[2])
        assert result.returncode == 1, result.stdout
        assert ("interrupted; to finish" in result.stdout) is not complete
        assert ("without -x" in result.stdout) is not complete


def test_what_was_measured_without_an_answer_is_reported(tiny, tmp_path):
    result = run(*tiny[1], "--engram-report", tmp_path, "-k", "unrelated", **tiny[2])
    assert result.returncode == 0, result.stdout
    assert "interrupted; to finish" not in result.stdout
    assert "## Collateral: change on unrelated prompts" in (tmp_path / "latest" / "report.md").read_text()


def test_bad_input_found_by_a_worker_is_one_line_and_exit_code_2(tiny):
    result = run(*tiny[1], "--engram-model", "no/such/folder", "-n", "2")
    assert result.returncode == 2
    (told,) = [line for line in (result.stdout + result.stderr).splitlines() if "no/such/folder" in line]
    assert "not a model folder" in told
    assert "keyboard" not in result.stdout


# --- interrupted at any moment ----------------------------------------------------------------------------------------

KILLS = int(os.environ.get("ENGRAM_TEST_KILLS", "3"))


def start(*args, limit=None, **env):
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *arguments(*args)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=environment(**env), preexec_fn=limit,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(many, tmp_path_factory):
    """What the run of one memory gives when it is left alone, and how many seconds it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    result = run(*many[1], "--engram-report", folder, ENGRAM_BENCH_CACHE=str(folder / "cache"))
    assert result.returncode == 0, result.stdout
    return outcome(folder), time.monotonic() - began


@pytest.mark.parametrize("n", range(KILLS))
def test_a_run_killed_at_any_moment_is_finished_as_if_nothing_had_been(many, undisturbed, tmp_path, n):
    moment = random.Random(n).random() * undisturbed[1]
    args, env = [*many[1], "--engram-report", tmp_path], {"ENGRAM_BENCH_CACHE": str(tmp_path / "cache")}
    first = start(*args, **env)
    time.sleep(moment)
    first.kill()
    first.wait()
    left = [folder for folder in tmp_path.glob("2*") if (folder / ".work").is_dir()]
    if left or not list(tmp_path.glob("2*")):
        more = ["--engram-resume", left[0]] if left else []  # killed before there was anything to resume
        result = run(*args, *more, **env)
        assert result.returncode == 0, result.stdout
    assert outcome(tmp_path) == undisturbed[0], f"killed after {moment:.1f} s"


AGAIN = {  # where the run is killed, and what of the training is done again; generate 3 answers the replay texts
    "train 3": ["train tiny-engram 0", "generate 240"],
    "generate 3": ["train tiny-engram 0"],
    "generate 4": [],
}


@pytest.mark.parametrize("what", AGAIN)
def test_what_was_finished_before_the_kill_is_not_done_again(many, undisturbed, tmp_path, what):
    args = [*many[1], "--engram-report", tmp_path, "-p", "tests.meddling"]
    assert run(*args, **meddled(tmp_path, f"main {what}")).returncode == -signal.SIGKILL
    (folder,) = tmp_path.glob("2*")
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"variant": "baseline", "cat')  # a line the kill tore
    result = run(*args, "--engram-resume", folder, **meddled(tmp_path))
    assert result.returncode == 0, result.stdout
    assert outcome(tmp_path) == undisturbed[0]
    both = (tmp_path / "log").read_text().splitlines()
    once = tmp_path / "once"
    run(*many[1], "--engram-report", once, "-p", "tests.meddling", **meddled(once))
    assert sorted(both) == sorted([*(once / "log").read_text().splitlines(), *AGAIN[what]])


def test_a_folder_that_cannot_be_resumed_is_refused_and_says_why(many, undisturbed, tmp_path):
    _, args, _ = many
    env = {"ENGRAM_BENCH_CACHE": str(tmp_path / "cache")}
    assert run(*args, "--engram-report", tmp_path / "runs", "-p", "tests.meddling",
               **meddled(tmp_path, "main generate 2")).returncode == -signal.SIGKILL  # fmt: skip
    (broken,) = (tmp_path / "runs").glob("2*")
    complete = tmp_path / "complete"
    complete.mkdir()
    (complete / "report.json").write_text("{}")
    for folder, more, told in (
        (tmp_path, (), "not an interrupted run"),
        (complete, (), "already complete"),
        (broken, ("--engram-samples", "1"), "the run was started with different samples"),
    ):
        result = run(*args, "--engram-report", tmp_path / "runs", "--engram-resume", folder, *more, **env)
        assert result.returncode == 2
        (line,) = [line for line in (result.stdout + result.stderr).splitlines() if told in line]
        assert f"--engram-resume: {folder}" in line


# --- a machine that does not play along -------------------------------------------------------------------------------


def limited(size):
    """For a process to come: no file may grow beyond `size` bytes, which is how a full disk looks to it."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_is_one_line_and_the_run_can_be_finished(many, undisturbed, tmp_path):
    args, env = [*many[1], "--engram-report", tmp_path], {"ENGRAM_BENCH_CACHE": str(tmp_path / "cache")}
    first = start(*args, limit=limited(20_000), **env)
    told = first.communicate()[0]
    assert first.returncode == 2
    (line,) = [line for line in told.splitlines() if "File too large" in line]
    assert str(tmp_path) in line
    assert "Traceback" not in told
    left = list(tmp_path.glob("2*"))
    result = run(*args, *(["--engram-resume", left[0]] if left else []), **env)
    assert result.returncode == 0, result.stdout
    assert outcome(tmp_path) == undisturbed[0]


def test_two_runs_at_once_on_one_cache_train_once_and_agree(many, undisturbed, tmp_path):
    args = [*many[1], "-p", "tests.meddling", "--engram-report"]
    pair = [
        start(*args, tmp_path / n, PYTHONHASHSEED=seed, **meddled(tmp_path)) for n, seed in (("a", "1"), ("b", "2"))
    ]
    for process in pair:
        told = process.communicate()[0]
        assert process.returncode == 0, told
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b") == undisturbed[0]
    assert (tmp_path / "log").read_text().count("train") == 1


def test_a_cache_that_cannot_be_written_is_one_line(many, tmp_path):
    (tmp_path / "file").touch()
    result = run(*many[1], "--engram-report", tmp_path / "runs", ENGRAM_BENCH_CACHE=str(tmp_path / "file" / "cache"))
    assert result.returncode == 2
    (line,) = [line for line in (result.stdout + result.stderr).splitlines() if "ENGRAM_BENCH_CACHE" in line]
    assert "Not a directory" in line
