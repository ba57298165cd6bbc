"""What a definition decides is called so wherever a report shows it, and a sanity check is called one."""

import re

import pytest

from engram_bench.report import html, plots
from engram_bench.report.markdown import render
from engram_bench.report.scorecard_text import terminal
from tests.test_scorecard import COLLATERAL, VARIANTS, answers, made, variant

DAMAGED = {**variant("engram-zeroed"), "config": {"damage": "zero", "config": {"span": "key"}}}


def told(found, samples=()):
    """The report's pages as plain text, one line for each cell and sentence."""
    page = re.sub(r"<[^>]+>", "\n", html.render(found, samples, {})).replace("&#39;", "'")
    return {"markdown": render(found, list(samples)), "html": page}


@pytest.fixture(scope="module")
def kept():
    """The memory's KL on unrelated text is 0."""
    return made(answers(items=9, categories=("facts",)), categories=("facts",))


@pytest.fixture(scope="module")
def moved():
    """Another value was measured: the memory found a key in the text."""
    measured = [COLLATERAL[0], {**COLLATERAL[1], "kl_mean": 0.25, "kl_max": 0.75}]
    return made(answers(items=9, categories=("facts",)), categories=("facts",), collateral=measured)


def cells(text, section, name):
    (row,) = [line for line in text.split(f"## {section}")[1].split("\n## ")[0].splitlines() if f"| {name} " in line]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_kl_of_0_by_construction_is_no_figure_of_the_collateral_table(kept, moved):
    told_kept, told_moved = (render(found, []) for found in (kept, moved))
    assert cells(told_kept, "Collateral", "engram")[3:] == ["0 by construction"] * 2 + ["100% by construction"]
    assert cells(told_kept, "Collateral", "lora")[3:] == ["1.8", "1", "90.0%"]
    assert cells(told_moved, "Collateral", "engram")[3:] == ["0.25", "0.75", "90.0%"]


def test_it_is_no_figure_of_any_sentence_either(kept, moved):
    for page, text in told(kept).items():
        assert "lora 1.8, engram 0 by construction" in text, page
        assert "shifts the model by a KL of 1.8" in text, page
        assert "shifts the model by a KL of 0" not in text, page
        assert not re.search(r"engram 0(?! by construction)[,.]", text), page
        assert "a KL of 0 on unrelated text is no finding" in text, page
    for page, text in told(moved).items():
        assert "engram shifts the model by a KL of 0.25" in text, page


def test_it_has_a_mark_of_its_own_in_the_terminal_and_in_the_plot(kept, moved):
    assert [line for line in terminal(kept) if re.match(r"engram .* 0\* ", line)]
    pooled = made(answers(items=9))
    (axis,) = plots.frontier(pooled).axes
    fills = {bars.get_label(): bars.lines[0].get_markerfacecolor() for bars in axis.containers}
    assert fills["baseline"] == fills["engram"] == "white" != fills["lora"]
    assert "white: 0 by construction" in axis.get_xlabel()


def test_a_damaged_table_is_a_sanity_check_and_no_finding(kept):
    for text in told(kept).values():
        assert "sanity check" not in text
    damaged = made(answers(["engram"], items=9, categories=("facts",)), [*VARIANTS, DAMAGED], categories=("facts",))
    for text in told(damaged).values():
        assert "engram-zeroed: sanity checks, not findings." in text


def test_a_look_up_among_equally_many_rows_is_constant_by_construction():
    measured = [{"rows": 10**n, "seconds": 2e-5, "mapped_seconds": 3e-5, "mapped_bytes": 10**n} for n in (3, 8)]
    found = made([], lookup=measured)
    for text in told(found).values():
        assert "by construction their time does not depend on it" in text
    (axis,) = plots.lookup(found).axes
    assert "as many touched rows for every size, in memory" in [line.get_label() for line in axis.lines]
