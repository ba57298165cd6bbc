"""The directory of a run in progress: all processes share it, and no line is lost or mixed up."""

import multiprocessing
from pathlib import Path

import pytest

from engram_bench.errors import UsageError
from engram_bench.records import SAMPLES
from engram_bench.run import rundir
from engram_bench.run.rundir import WORK

PRINT = {"model": "m", "seeds": [0]}


def test_processes_of_one_run_share_a_folder_and_two_runs_of_one_second_do_not(tmp_path):
    first, again = (rundir.claim(tmp_path, "cpu", "a", 0.0, PRINT) for _ in range(2))
    other = rundir.claim(tmp_path, "cpu", "b", 0.0, PRINT)
    assert first == again
    assert first.folder.name == "19700101T000000Z-cpu"
    assert other.folder.name == "19700101T000000Z-cpu-2"
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.folder.name, other.folder.name]


def claim(place):
    return rundir.claim(place, "cpu", "a", 0.0, PRINT).folder


def test_claims_at_the_same_moment_agree(tmp_path):
    with multiprocessing.get_context("fork").Pool(8) as pool:
        assert len(set(pool.map(claim, [tmp_path] * 32))) == 1


def write(task):
    folder, n = task
    rundir.RunDir(folder, "a", 0.0).append(SAMPLES, [{"n": n, "k": k, "text": "x" * 5000} for k in range(20)])


def test_lines_of_many_processes_come_whole(tmp_path):
    run = rundir.claim(tmp_path, "cpu", "a", 0.0, PRINT)
    with multiprocessing.get_context("fork").Pool(8) as pool:
        pool.map(write, [(run.folder, n) for n in range(16)])
    found = run.read(SAMPLES)
    assert sorted((r["n"], r["k"]) for r in found) == [(n, k) for n in range(16) for k in range(20)]
    assert [r["k"] for r in found] == list(range(20)) * 16, "those of one call stay together"


@pytest.mark.parametrize("torn", ['{"n": 1, "te', '{"n": 1}', "\n", "\xff\n", "nul\x00"])
def test_a_line_that_a_kill_left_unfinished_spoils_no_other(tmp_path, torn):
    run = rundir.claim(tmp_path, "cpu", "a", 0.0, PRINT)
    run.append(SAMPLES, [{"n": 0}])
    with (run.folder / SAMPLES).open("a", encoding="latin-1") as file:
        file.write(torn)
    run.append(SAMPLES, [{"n": 2, "text": "line\u2028separator\x85"}])
    found = [r["n"] for r in run.read(SAMPLES) if r["n"] != 1]
    assert found == [0, 2]


def test_a_run_is_taken_up_again_only_as_what_it_was(tmp_path, monkeypatch):
    run = rundir.claim(tmp_path, "cpu", "a", 5.0, PRINT)
    assert rundir.resume(run.folder, PRINT) == run
    monkeypatch.chdir(run.folder)
    assert rundir.resume(Path(), PRINT) == run
    with pytest.raises(UsageError, match="the run was started with different seeds; repeat"):
        rundir.resume(run.folder, {**PRINT, "seeds": [1]})
    (run.folder / "report.json").touch()
    run.close()
    with pytest.raises(UsageError, match="already complete"):
        rundir.resume(run.folder, PRINT)
    with pytest.raises(UsageError, match="not an interrupted run"):
        rundir.resume(tmp_path, PRINT)
    (run.folder / WORK).mkdir()
    (run.folder / rundir.MANIFEST).write_text('{"id": 1, "started": "soon"')
    with pytest.raises(UsageError, match="name the folder of an interrupted run"):
        rundir.resume(run.folder, PRINT)


def test_a_place_that_is_no_folder_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"^--engram-report: [^\n]*choose another folder$"):
        rundir.claim(tmp_path / "file", "cpu", "a", 0.0, PRINT)
