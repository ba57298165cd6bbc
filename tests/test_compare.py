"""The parts of `make compare` that need no model. benchmarks/ is not a package, so sys.path gets its folder."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
measures, sides = import_module("measures"), import_module("sides")

ECHO = """
import sys; sys.path.insert(0, {peers!r})
from serve import serve
serve(lambda job: {{"seconds": 1.0, "asked": job["ask"]}}, ("pytest",))
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Writes a side's program."""
    peers = str(sides.PEERS)
    monkeypatch.setattr(sides, "PEERS", tmp_path)
    monkeypatch.setattr(sides, "PEERS_PYTHON", sys.executable)
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text.format(peers=peers), "utf-8")


def test_a_side_says_its_versions_and_does_jobs_in_turn(program, tmp_path):
    program("echo", ECHO)
    with sides.started("echo", tmp_path, "float32") as side:
        assert side.versions["pytest"] == pytest.__version__
        assert [side.do({"ask": n})["asked"] for n in range(3)] == [0, 1, 2]


def test_a_side_that_fails_ends_the_comparison_with_its_last_words(program, tmp_path):
    program("broken", "raise SystemExit('no such model')")
    with (
        pytest.raises(SystemExit, match=r"broken stopped:\n.*no such model"),
        sides.started("broken", tmp_path, "float32"),
    ):
        pass


def test_runs_take_turns():
    order = []
    runs = {name: lambda name=name: order.append(name) or {"seconds": 0.0} for name in ("ours", "theirs")}
    sides.take_turns(runs, 2)
    assert order == ["ours", "theirs", "ours", "theirs"]


def test_a_ratio_is_of_median_rates_and_above_one_where_ours_is_ahead():
    found = {
        "ours": [{"done": 10, "seconds": s} for s in (1.0, 2.0, 9.0)],
        "theirs": [{"done": 4, "seconds": s} for s in (4.0, 2.0, 1.0)],
    }
    compared = measures.versus(found, "ours", "theirs")
    assert compared["per_second"] == {"ours": 5.0, "theirs": 2.0}
    assert compared["ratio"] == 2.5


def test_a_spread_keeps_order_and_distance_and_never_more_than_there_is():
    assert measures.spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert measures.spread(range(3), 5) == [0, 1, 2]
