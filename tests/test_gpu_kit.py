"""benchmarks/gpu_kit.sh with a tiny model and no network: pack, unpack, run, collect; damaged parts; a step's limit."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks import gpu_table
from tests.conftest import needs_torch
from tests.running import ROOT, environment

SCRIPT = ROOT / "benchmarks" / "gpu_kit.sh"
LATER_THAN_3_2 = {
    "upper and lower case by expansion": r"\$\{\w+(,,?|\^\^?)",
    "an array, which may be empty": r"\$\{\w+\[[@*]\]\}|\w+=\(",
    "mapfile and other later commands": r"\b(mapfile|readarray|coproc|declare -[A-Zgn]|local -n|wait -n)\b",
    "|& and &>>": r"\|&|&>>",
    "negative length or index": r"\$\{\w+: ?-?\w+: ?-",
    "quoting by @Q": r"\$\{\w+@\w\}",
    "a test of a variable": r"\[\[? -v ",
    "a pause after a pattern": r";;?&",
    "epoch variables": r"\$\{?EPOCH",
    "printf with a time": r"%\(.*\)T",
}


def kit(folder, *args, **env):
    """The script's result, as if started in the background; whatever asks the network meets a closed port."""
    closed = "http://127.0.0.1:9"
    given = environment(KIT=str(folder), PYTHON=sys.executable, http_proxy=closed, https_proxy=closed, **env)
    given.setdefault("PIP_INDEX_URL", closed)
    ignore = "trap '' INT; exec bash \"$@\""
    command = ["bash", "-c", ignore, "-", str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=given)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A folder with one wheel, of a package of one module."""
    folder = tmp_path_factory.mktemp("wheels")
    with zipfile.ZipFile(folder / "kit_probe-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("kit_probe.py", "FOUND = True\n")
        about = "kit_probe-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: kit-probe\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return folder


@pytest.fixture(scope="module")
def packed(wheels, checkpoint, tmp_path_factory):
    """Two parts of a tiny model."""
    folder = tmp_path_factory.mktemp("packed")
    result = kit(folder, "pack", MODEL=str(checkpoint), WHEELS=str(wheels))
    assert result.returncode == 0, result.stderr
    assert [line.partition(": ")[2].split()[1] for line in result.stdout.splitlines()] == ["MiB,", "MiB,"]
    return folder


@pytest.fixture
def parts(packed, tmp_path):
    """The parts on the machine with the GPU, which has nothing else of the kit."""
    for part in ("part-1", "part-2"):
        shutil.copytree(packed / part, tmp_path / "carried" / part)
    return tmp_path / "carried"


@needs_torch
def test_the_model_and_the_wheels_arrive(parts, checkpoint, tmp_path):
    box = tmp_path / "kit" / "box"
    first = kit(tmp_path / "kit", "unpack", parts / "part-1")
    assert (first.returncode, (box / "model").exists()) == (0, False), first.stderr
    assert "other half" in first.stdout
    second = kit(tmp_path / "kit", "unpack", parts / "part-2")
    assert second.returncode == 0, second.stderr
    files = sorted(file.name for file in checkpoint.iterdir())
    assert sorted(file.name for file in (box / "model").iterdir()) == files
    assert all((box / "model" / name).read_bytes() == (checkpoint / name).read_bytes() for name in files)
    assert (box / "site" / "kit_probe.py").is_file()


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_part_is_refused_and_may_come_again(parts, packed, tmp_path, damage):
    piece = parts / "part-2" / "piece.ab"
    content = piece.read_bytes()
    if damage == "missing":
        piece.unlink()
    else:
        piece.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = kit(tmp_path / "kit", "unpack", parts / "part-2")
    assert result.returncode == 2
    assert "part-2: damaged" in result.stderr
    assert "piece.ab" in result.stderr
    assert not list((tmp_path / "kit").glob("box/pieces/*"))


def test_parts_of_two_packs_make_no_model(parts, tmp_path):
    for file in ("piece.ab", "SHA256SUMS"):
        other = (parts / "part-2" / file).read_bytes()
        (parts / "part-2" / file).write_bytes(other[::-1] if file == "piece.ab" else other)
    piece = parts / "part-2" / "piece.ab"
    summed = subprocess.run(["sha256sum", "./piece.ab", "./model.sha256"], cwd=piece.parent, capture_output=True)
    (parts / "part-2" / "SHA256SUMS").write_bytes(summed.stdout)
    kit(tmp_path / "kit", "unpack", parts / "part-1")
    result = kit(tmp_path / "kit", "unpack", parts / "part-2")
    assert result.returncode == 2
    assert "another checksum" in result.stderr
    assert not (tmp_path / "kit" / "box" / "model").exists()


@needs_torch
def test_steps_run_within_their_limits_and_their_results_are_collected(checkpoint, tmp_path):
    sizes = {"BATCHES": "1,2", "ROWS": "2000", "TOKENS": "2"}
    env = {"DEVICE": "cpu", "MODEL": str(checkpoint), "COLLECT": str(tmp_path / "out"), "OMP_NUM_THREADS": "1", **sizes}
    named = kit(
        tmp_path / "kit", "run", "smoke", "cost", "scratch", "unsloth", "workers", LIMIT_smoke="1", GRACE="300", **env
    )
    assert named.returncode == 1, named.stdout + named.stderr
    results = tmp_path / "kit" / "box" / "results"
    last = dict(line.split("\t")[:2] for line in (results / "steps.tsv").read_text().splitlines())
    assert last["smoke"] == "cut", "its limit is a second"
    assert "KeyboardInterrupt" in (results / "smoke.log").read_text(), "not killed: a run may write what it has"
    assert last["cost"] == "ended", (results / "cost.log").read_text()
    assert last["unsloth"].startswith("skipped")
    assert last["workers"].startswith("skipped")
    files = {file.name: file for file in (tmp_path / "out").iterdir()}
    assert files.keys() == {"machine.txt", "table.md", "rest.tar.gz"}
    table = files["table.md"].read_text()
    assert re.search(r"^\| smoke \| cut \| \d+ of 1 \|", table, re.MULTILINE)
    assert "| 2,000 rows on the host | 2 |" in table
    with tarfile.open(files["rest.tar.gz"]) as rest:
        assert {"./cost.json", "./cost.log", "./steps.tsv"} <= set(rest.getnames())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "usage"),
        (("run", "smok"), "smok: no such step"),
        (("unpack", "."), "no SHA256SUMS"),
        (("collect", "out"), "no results"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_a_line(tmp_path, args, says):
    result = kit(tmp_path, *args)
    assert result.returncode == 2
    assert result.stderr.startswith("gpu_kit: ")
    assert says in result.stderr.splitlines()[0]


def test_the_table_tells_the_last_outcome_the_gpus_use_and_each_variant(tmp_path):
    lines = ["smoke\tunfinished\t0\t60", "smoke\tended\t41\t60", "quick\tunfinished\t0\t180"]
    (tmp_path / "steps.tsv").write_text("\n".join([*lines, "scratch\tskipped, no command\t0\t0"]) + "\n")
    (tmp_path / "smoke.gpu.csv").write_text("10, 500\n[N/A], 4\n50, 900\n")
    (tmp_path / "smoke" / "run").mkdir(parents=True)
    report = {
        "run": {"peak_memory_mb": 1500, "tokens_s": {"lora": 812.4}},
        "variants": [{"name": "lora", "train": {"seconds": 3.21}, "cached": False}],
        "speed": [{"variant": "lora", "decode_tokens_s": 61.2}],
    }
    (tmp_path / "smoke" / "run" / "report.json").write_text(json.dumps(report))
    text = gpu_table.text(tmp_path)
    assert "| smoke | ended | 41 of 60 | 30, at most 50 | 1.5 |" in text
    assert "| quick | unfinished | 0 of 180 |  |  |" in text
    assert "| scratch | skipped, no command |  |  |  |" in text
    assert "| smoke | lora | 3.2 | 812 | 61.2 |" in text


def test_docs_show_the_table_of_the_committed_results():
    """Right answers in each way; a way that is true by construction stays empty."""
    lines = gpu_table.text(ROOT / "benchmarks" / "results" / "h200").splitlines()
    shown = [line.replace("| default |", "|") for line in lines if line.startswith("| default | engram-keyed |")]
    assert shown[1] == "| engram-keyed | 99 | 98 | 0 | 0 | 39 | 52 | 24 | 97 | by construction |"
    docs = (ROOT / "docs" / "gpu.md").read_text("utf-8").splitlines()
    assert {line.replace("| default |", "|") for line in lines if line.endswith("by construction |")} <= set(docs)


@pytest.mark.parametrize("script", sorted(Path(ROOT, "benchmarks").glob("*.sh")), ids=lambda file: file.name)
def test_scripts_use_nothing_that_bash_3_2_lacks(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    text = script.read_text()
    found = {name: match[0] for name, pattern in LATER_THAN_3_2.items() if (match := re.search(pattern, text))}
    assert not found
    assert os.access(script, os.X_OK)
