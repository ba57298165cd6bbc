"""Plots show the report's numbers and nothing else."""

import re

import numpy as np
import pytest

from engram_bench.report import plots
from engram_bench.report.markdown import render
from tests.running import ROOT
from tests.test_report import AFTER, BEFORE, a_run, built, report, sample


def test_a_point_a_cell_with_its_interval():
    new = [sample("engram", f"h{n}", n == 0, split="heldout", category="mine") for n in range(4)]
    made = report(BEFORE + AFTER + new, categories=("facts", "mine"))
    figure = plots.exact(made)
    seen, heldout = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["seen", "held out"]
    drawn = {bars.get_label(): bars for bars in seen.containers}
    assert list(drawn["baseline"].lines[0].get_xdata()) == pytest.approx([10.0])
    assert list(drawn["engram"].lines[0].get_xdata()) == pytest.approx([90.0])
    cell = next(c["exact"] for c in made["cells"] if c["variant"] == "engram" and c["split"] == "heldout")
    (bar,) = next(b for b in heldout.containers if b.get_label() == "engram").lines[2][0].get_segments()
    assert bar[:, 0] == pytest.approx([100 * cell["low"], 100 * cell["high"]])


def test_a_category_of_ones_own_has_its_row():
    figure = plots.exact(report([sample("baseline", "i", True, category="mine")], categories=("facts", "mine")))
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["mine"]


COLLATERAL = [{"variant": "engram", "prompts": 2, "tokens": 30, "kl_mean": 0.1, "kl_max": 1.0, "top1_unchanged": 0.9}]
PASSAGES = {
    **COLLATERAL[0], "kind": "prose with keys", "words": 100, "keys": 2, "firings": 1, "firings_per_1000_words": 10.0,
}  # fmt: skip
SPEED = [
    {"variant": name, "prefill_tokens_s": 9.0, "decode_tokens_s": rate, "ttft_s": 0.1, "overhead": 0.0}
    for name, rate in (("baseline", 20.0), ("engram", 19.0))
]


def everything():
    drawn = [
        sample(name, f"i{n}", n < 9, sample=k) for name in ("baseline", "engram") for n in range(20) for k in (1, 2)
    ]
    anew = [{**s, "split": "rephrased"} for s in BEFORE[:10] + AFTER[:10]]
    samples = [*BEFORE, *AFTER, *drawn, *anew]
    samples += [{**s, "category": "mine", "item": f"own {s['item']}"} for s in samples]
    measured = {"collateral": COLLATERAL, "speed": SPEED, "lookup": [{"rows": 10**n, "seconds": 2e-5} for n in (3, 8)]}
    return report(samples, categories=("facts", "mine"), **measured)


def test_every_section_and_plot_the_video_script_names_is_in_a_report():
    text = (ROOT / "docs" / "video.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2:4] for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    missed = {"id": "x", "requirement": "y", "measured": 0.0, "low": 0.0, "passed": False}
    new = [{**s, "split": "heldout"} for s in BEFORE + AFTER]
    parts = [(everything(), []), (built(a_run(np.random.default_rng(0))), []), (report(new, thresholds=[missed]), [])]
    ways = [{**s, "split": way} for s in BEFORE for way in ("rephrased", "paraphrased", "combined", "mention")]
    told = "".join(render(*part) for part in [*parts, (report(ways, passages=[PASSAGES]), ways)])
    titles = re.findall("^## (.*)$", told, re.MULTILINE)
    named = [re.findall(r"\*(.+?)\*", cell) for _, cell in rows]
    assert len(named) == 10
    assert all(named)
    assert [name for names in named for name in names if not any(title.startswith(name) for title in titles)] == []
    drawn = {name for screen, _ in rows for name in re.findall(r"plots/(\w+)\.png", screen)}
    assert drawn <= plots.PLOTS.keys()
    assert all((ROOT / file).exists() for screen, _ in rows for file in re.findall(r"docs/\w+\.png", screen))


def test_what_a_report_has_numbers_for_is_drawn_and_shown_and_nothing_else(tmp_path):
    whole, bare = everything(), report(BEFORE + AFTER)
    bare["variants"][1]["train"] = bare["variants"][0]["train"] = None
    assert set(plots.write(whole, tmp_path / "whole")) == set(plots.PLOTS) == set(plots.ALT)
    assert set(plots.write(bare, tmp_path / "bare")) == {"exact", "scorecard"}
    shown = render(whole, [], plots.PLOTS)
    assert all(f"![{alt}](plots/{name}.png)" in shown for name, alt in plots.ALT.items())
    assert "plots/" not in render(whole, [])


def test_the_frontier_has_a_point_a_variant():
    (axis,) = plots.frontier(everything()).axes
    drawn = {bars.get_label(): bars.lines[0].get_xydata()[0].tolist() for bars in axis.containers}
    assert drawn == {"baseline": [0.0, pytest.approx(20.0)], "engram": [pytest.approx(0.1), pytest.approx(100.0)]}


def test_the_grid_has_a_cell_an_item():
    (axis,) = plots.items(everything()).axes
    grid = axis.images[0].get_array()
    assert grid.shape == (2, 20)
    assert grid.sum(axis=1).tolist() == [4, 20]


def test_pictures_are_written_twice_the_same(tmp_path):
    made = everything()
    first, second = (plots.write(made, tmp_path / name) for name in ("a", "b"))
    assert first == second
    for name, png in first.items():
        assert (tmp_path / "a" / f"{name}.png").read_bytes() == png
        assert png.startswith(b"\x89PNG")
        assert int.from_bytes(png[16:20], "big") == 1920
        assert int.from_bytes(png[20:24], "big") <= 1080, "a screen holds it"


def test_losses_are_drawn_by_epoch_with_the_validation_loss_after_the_last():
    made = everything()
    made["variants"][1]["train"] = {**made["variants"][1]["train"], "losses": [4.0, 2.0, 1.0], "validation_loss": 3.0}
    made["variants"].append({**made["variants"][1], "name": "shuffled", "config": {"adapter_of": "engram"}})
    (axis,) = plots.losses(made).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn == {
        "baseline": [[1, 2.0], [2, 1.0]],
        "engram": [[1, 4.0], [2, 2.0], [3, 1.0]],
        "engram, validation": [[3, 3.0]],
    }


def test_speed_and_what_it_costs_are_drawn_and_so_are_look_ups():
    made = everything()
    made["speed"][1]["overhead"] = 0.05
    (axis,) = plots.speed(made).axes
    assert [bar.get_width() for bar in axis.patches] == [20.0, 19.0]
    assert [text.get_text() for text in axis.texts] == ["20.0 (+0%)", "19.0 (+5%)"]
    (axis,) = plots.lookup(made).axes
    assert axis.lines[0].get_xydata().tolist() == [[1000, pytest.approx(20)], [10**8, pytest.approx(20)]]


def test_consistency_is_drawn_with_its_interval():
    made = everything()
    (axis,) = plots.consistency(made).axes
    cells = {c["variant"]: c["consistency"] for c in made["cells"] if c["consistency"] and c["category"] == "all core"}
    for bars in axis.containers:
        cell = cells[bars.get_label()]
        assert bars.lines[0].get_xdata() == pytest.approx([100 * cell["mean"]])
        assert bars.lines[2][0].get_segments()[0][:, 0] == pytest.approx([100 * cell["low"], 100 * cell["high"]])


def test_more_items_than_pixels_are_drawn_too():
    many = [sample(v, f"i{n}", v == "engram", split="rephrased") for v in ("baseline", "engram") for n in range(2500)]
    (axis,) = plots.items(report(many)).axes
    assert axis.images[0].get_array().shape == (2, 2500)
