"""Answers of earlier runs: the same letter for letter, of what is unchanged alone, and never in the way."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from engram_bench.store import answers
from engram_bench.store.answers import Answers
from tests.conftest import ENGRAM, LORA, PATTERNS, needs_torch
from tests.running import ROOT, run


@pytest.fixture
def told():
    return []


@pytest.fixture
def store(tmp_path, told):
    return Answers(tmp_path / "new" / "answers.sqlite", told.append)


def again(store, told, **more):
    """The same file, opened by another run."""
    return Answers(store._file, told.append, **more)


def never():
    raise AssertionError("made again")


def test_a_value_is_made_once_for_the_same_question(store, told):
    assert store.once({"a": [1, 2], "b": None}, lambda: [[7], []]) == ([[7], []], False)
    assert store.once({"b": None, "a": [1, 2]}, never) == ([[7], []], True)
    assert again(store, told).once({"a": [1, 2], "b": None}, never) == ([[7], []], True)
    assert store.once({"a": [2, 1], "b": None}, lambda: None) == (None, False)
    assert store.once({"a": [2, 1], "b": None}, never) == (None, True)
    assert not told


def test_whoever_asks_anew_leaves_the_new_value(store, told):
    store.once("q", lambda: 1)
    assert again(store, told, ask=True).once("q", lambda: 2) == (2, False)
    assert store.once("q", never) == (2, True)


@pytest.mark.parametrize("harm", ["no database", "cut", "value", "another's value", "version"])
def test_a_damaged_file_is_dropped_with_one_line(store, told, harm):
    for n in range(200):
        store.once(n, lambda n=n: [n] * 50)
    if harm in ("no database", "cut"):
        store._database.close()
        whole = store._file.read_bytes()
        store._file.write_bytes(b"x" * 5000 if harm == "no database" else whole[: len(whole) // 2])
    elif harm == "version":
        store._database.execute("PRAGMA user_version = 99")
    elif harm == "value":
        store._database.execute("UPDATE answers SET value = substr(value, 1, length(value) - 3)")
    else:
        store._database.execute("UPDATE answers SET value = (SELECT value FROM answers ORDER BY rowid LIMIT 1)")
    new = again(store, told)
    assert [new.once(n, lambda n=n: [n] * 50) for n in (199, 100)] == [([199] * 50, False), ([100] * 50, False)]
    assert new.once(199, never) == ([199] * 50, True)
    (line,) = told
    assert "dropped" in line


def test_where_nothing_can_be_written_every_value_is_made_and_one_line_says_so(tmp_path, told):
    (tmp_path / "file").write_text("no folder")
    store = Answers(tmp_path / "file" / "answers.sqlite", told.append)
    assert [store.once("q", lambda: 1), store.once("q", lambda: 2)] == [(1, False), (2, False)]
    (line,) = told
    assert "answers are not kept" in line


def test_on_a_full_disk_what_is_kept_stays_readable(store, told, monkeypatch):
    store.once("first", lambda: 1)
    store._database.execute(f"PRAGMA max_page_count = {store._database.execute('PRAGMA page_count').fetchone()[0]}")
    assert store.once("large", lambda: list(range(100_000)))[1] is False
    assert len(told) == 1
    assert "full" in told[0]
    assert again(store, told).once("first", never) == (1, True)


def test_the_file_does_not_grow_for_ever(store, monkeypatch):
    monkeypatch.setattr(answers, "MOST_BYTES", 1 << 20)
    for n in range(400):
        store.once(n, lambda: os.urandom(4000).hex())
    assert store._file.stat().st_size < 3 << 20
    assert store.once(399, never)[1]
    assert not store.once(0, lambda: "")[1]


WRITER = """
import sys
from pathlib import Path
from engram_bench.store.answers import Answers
store, first = Answers(Path(sys.argv[1]), lambda line: print(line, file=sys.stderr)), int(sys.argv[2])
for n in range(first, first + 300):
    store.once(n, lambda: [n] * 200)
    print(n, flush=True)
"""


def writer(file, first, **more):
    command = [sys.executable, "-c", WRITER, str(file), str(first)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **more)


def test_two_writers_and_a_killed_one_lose_nothing_and_mix_nothing(tmp_path, told):
    file = tmp_path / "answers.sqlite"
    killed, one, other = writer(file, 0), writer(file, 1000), writer(file, 2000)
    done = [killed.stdout.readline() for _ in range(20)]
    killed.send_signal(signal.SIGKILL)
    assert [process.communicate()[1] for process in (one, other)] == ["", ""]
    killed.communicate()
    store = Answers(file, told.append)
    for n in [*map(int, done), *range(1000, 1300), *range(2000, 2300)]:
        assert store.once(n, never) == ([n] * 200, True)
    assert not told


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(checkpoint, tmp_path_factory):
    """A function that runs variants on the colours and returns (report, answers); all its runs have one cache."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "colours.yaml").write_text(PATTERNS)
    for text in (ENGRAM, LORA):
        (folder / f"{re.search('name: (.*)', text)[1]}.yaml").write_text(text)
    count = iter(range(100))

    def made(names, *more, **env):
        out = folder / str(next(count))
        given = ",".join(str(folder / f"{name}.yaml") if name.startswith("tiny") else name for name in names)
        args = ["--engram-model", checkpoint, "--engram-patterns", folder / "colours.yaml", "--engram-samples", "2"]
        args += ["--engram-variants", given, "--engram-backend", "cpu", "--engram-report", out, "-k", "not speed"]
        cache = {"ENGRAM_BENCH_CACHE": str(folder / "cache"), "ENGRAM_BENCH_REASK": ""}
        done = run(*args, *more, **{**cache, **env})
        assert (out / "latest").exists(), done.stdout + done.stderr
        lines = (out / "latest" / "samples.jsonl").read_text("utf-8")
        return json.loads((out / "latest" / "report.json").read_text("utf-8")), lines

    return made


@needs_torch
@pytest.mark.slow
def test_a_second_run_asks_nothing_and_a_new_variant_is_asked_alone(runs):
    first, answered = runs(["baseline", "tiny-engram"])
    assert first["run"]["kept"] == {}
    assert first["run"]["evaluation_s"].keys() == {"baseline", "tiny-engram"}
    second, same = runs(["baseline", "tiny-engram"])
    assert same == answered
    of = [json.loads(line)["variant"] for line in same.splitlines()]
    count = {name: of.count(name) for name in first["run"]["evaluation_s"]}
    assert second["run"]["kept"] == count
    assert not second["run"]["evaluation_s"], "what was not measured has no time"
    assert second["collateral"] == first["collateral"]
    third, more = runs(["baseline", "tiny-engram", "tiny-lora"])
    assert third["run"]["kept"] == count
    assert third["run"]["evaluation_s"].keys() == {"tiny-lora"}
    assert set(answered.splitlines()) < set(more.splitlines())


@needs_torch
@pytest.mark.slow
def test_asked_again_or_by_a_memory_trained_otherwise_nothing_is_kept(runs):
    _, answered = runs(["baseline", "tiny-engram"])
    asked, same = runs(["baseline", "tiny-engram"], "--engram-reask")
    assert asked["run"]["kept"] == {}
    assert same == answered
    other, _ = runs(["baseline", "tiny-engram"], "--engram-seeds", "5")
    assert other["run"]["kept"].keys() == {"baseline"}


@needs_torch
@pytest.mark.slow
def test_workers_share_what_is_kept(runs):
    _, answered = runs(["baseline", "tiny-engram"])
    report, same = runs(["baseline", "tiny-engram"], "-n", "2")
    assert sorted(same.splitlines()) == sorted(answered.splitlines())
    assert report["run"]["kept"].keys() == {"baseline", "tiny-engram"}
