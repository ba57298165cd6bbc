"""Plots show the report's numbers and nothing else."""

import pytest

from engram_bench.report import plots
from tests.test_report import AFTER, BEFORE, report, sample


def test_a_point_a_cell_with_its_interval():
    new = [sample("engram", f"h{n}", n == 0, split="heldout", category="mine") for n in range(4)]
    made = report(BEFORE + AFTER + new, categories=("facts", "mine"))
    figure = plots.exact(made)
    seen, heldout = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["seen", "held out"]
    drawn = {bars.get_label(): bars for bars in seen.containers}
    assert list(drawn["baseline"].lines[0].get_xdata()) == pytest.approx([10.0, 10.0])
    assert list(drawn["engram"].lines[0].get_xdata()) == pytest.approx([90.0, 90.0])
    cell = next(c["exact"] for c in made["cells"] if c["variant"] == "engram" and c["split"] == "heldout")
    _, bar = next(b for b in heldout.containers if b.get_label() == "engram").lines[2][0].get_segments()
    assert bar[:, 0] == pytest.approx([100 * cell["low"], 100 * cell["high"]])


def test_a_category_of_ones_own_has_its_row():
    figure = plots.exact(report([sample("baseline", "i", True, category="mine")], categories=("facts", "mine")))
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["all core", "mine"]


def test_the_picture_is_written_twice_the_same(tmp_path):
    made = report(BEFORE + AFTER)
    for name in ("a", "b"):
        plots.write(made, tmp_path / name)
    first = (tmp_path / "a" / "exact.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert int.from_bytes(first[16:20], "big") == 1920
    assert first == (tmp_path / "b" / "exact.png").read_bytes()
