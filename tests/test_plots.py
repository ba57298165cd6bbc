"""Plots show the report's numbers and nothing else."""

import pytest

from engram_bench.report import plots
from engram_bench.report.markdown import render
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


COLLATERAL = [{"variant": "engram", "prompts": 2, "tokens": 30, "kl_mean": 0.1, "kl_max": 1.0, "top1_unchanged": 0.9}]
SPEED = [
    {"variant": name, "prefill_tokens_s": 9.0, "decode_tokens_s": rate, "ttft_s": 0.1, "overhead": 0.0}
    for name, rate in (("baseline", 20.0), ("engram", 19.0))
]


def everything():
    drawn = [
        sample(name, f"i{n}", n < 9, sample=k) for name in ("baseline", "engram") for n in range(20) for k in (1, 2)
    ]
    anew = [{**s, "split": "rephrased"} for s in BEFORE + AFTER]
    measured = {"collateral": COLLATERAL, "speed": SPEED, "lookup": [{"rows": 10**n, "seconds": 2e-5} for n in (3, 8)]}
    return report(BEFORE + AFTER + drawn + anew, categories=("facts", "mine"), **measured)


def test_what_a_report_has_numbers_for_is_drawn_and_shown_and_nothing_else(tmp_path):
    whole, bare = everything(), report(BEFORE + AFTER)
    bare["variants"][1]["train"] = bare["variants"][0]["train"] = None
    assert set(plots.write(whole, tmp_path / "whole")) == set(plots.PLOTS) == set(plots.ALT)
    assert set(plots.write(bare, tmp_path / "bare")) == {"exact"}
    shown = render(whole, [], plots.PLOTS)
    assert all(f"![{alt}](plots/{name}.png)" in shown for name, alt in plots.ALT.items())
    assert "plots/" not in render(whole, [])


def test_the_frontier_has_a_point_a_variant():
    (axis,) = plots.frontier(everything()).axes
    drawn = {bars.get_label(): bars.lines[0].get_xydata()[0].tolist() for bars in axis.containers}
    assert drawn == {"baseline": [0.0, pytest.approx(10.0)], "engram": [pytest.approx(0.1), pytest.approx(90.0)]}


def test_the_grid_has_a_cell_an_item():
    (axis,) = plots.items(everything()).axes
    grid = axis.images[0].get_array()
    assert grid.shape == (2, 20)
    assert grid.sum(axis=1).tolist() == [2, 18]


def test_pictures_are_written_twice_the_same(tmp_path):
    made = everything()
    first, second = (plots.write(made, tmp_path / name) for name in ("a", "b"))
    assert first == second
    for name, png in first.items():
        assert (tmp_path / "a" / f"{name}.png").read_bytes() == png
        assert png.startswith(b"\x89PNG")
        assert int.from_bytes(png[16:20], "big") == 1920
