"""One GPU per worker: the environment selects it, and each worker sees it before importing torch."""

import pytest

from engram_bench.backends import gpus
from tests.conftest import needs_torch

SMI = """#!/bin/sh
echo 'GPU 0: NVIDIA H100 (UUID: GPU-a)'
echo '  MIG 1g.10gb Device 0: (UUID: MIG-b)'
echo 'GPU 1: NVIDIA H100 (UUID: GPU-c)'
"""


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        (None, ["0", "1"]),
        ("1", ["1"]),
        ("3, 2", ["3", "2"]),
        ("GPU-a,GPU-c", ["GPU-a", "GPU-c"]),
        ("", []),
        ("-1", []),
        ("2,-1,3", ["2"]),
    ],
)
def test_gpus_are_those_that_are_listed_or_all(listed, found):
    assert gpus.visible(listed, ["0", "1"]) == found


def test_workers_take_gpus_in_turn():
    assert [gpus.assigned(f"gw{n}", ["2", "5"]) for n in range(12)] == ["2", "5"] * 6


def test_a_worker_keeps_the_gpu_it_was_given():
    environ = {gpus.WORKER: "gw1", gpus.VISIBLE: "4,6"}
    for _ in range(2):
        gpus.settle(environ)
        assert environ[gpus.VISIBLE] == "6"


@pytest.mark.parametrize("environ", [{}, {gpus.VISIBLE: "4,6"}, {gpus.WORKER: "gw0", gpus.VISIBLE: ""}])
def test_without_a_worker_or_a_gpu_nothing_is_chosen(environ):
    before = dict(environ)
    gpus.settle(environ)
    assert environ == before


@pytest.mark.parametrize(("device", "workers", "count"), [("cpu", 8, 1), ("cuda", 2, 2), ("cuda", 1, 4), ("mps", 1, 1)])
def test_where_each_worker_has_its_own_there_is_nothing_to_say(device, workers, count):
    assert gpus.note(device, workers, count) == ""


def test_more_workers_than_gpus_are_told_why_that_does_not_help():
    assert "4 workers share 1 GPU, so -n does not help" in gpus.note("cuda", 4, 1)
    assert "leave -n out" in gpus.note("mps", 2, 1)
    assert "-n 2 gives each worker its own GPU" in gpus.note("cuda", 3, 2)


@needs_torch
def test_each_worker_has_its_gpu_before_torch_starts(pytester, monkeypatch):
    smi = pytester.mkdir("bin") / "nvidia-smi"
    smi.write_text(SMI)
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(smi.parent), prepend=":")
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    pytester.makepyfile(
        """
        import os, sys, time
        import pytest
        from engram_bench import backends

        class Watcher:
            def find_spec(self, name, *_):
                if name == "torch":
                    seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))

        seen = []
        sys.meta_path.insert(0, Watcher())

        @pytest.mark.parametrize("number", range(2))
        def test_worker(number, worker_id):
            backends.find("auto")
            assert seen == [worker_id.removeprefix("gw")]
            time.sleep(1)
        """
    )
    result = pytester.runpytest_subprocess("-n", "2", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)
