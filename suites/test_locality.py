"""Locality: prompts that training must leave alone.

Right is the untouched model's answer, character for character; where the prompt states another value, that value. No
threshold: no requirement sets one, and the untouched model's own figures are right by construction.
"""

import pytest

from engram_bench.fixtures.cells import Cell
from engram_bench.run.bench import Bench


@pytest.mark.splits("mention")
def test_mention(cell: Cell) -> None:
    assert cell.samples


@pytest.mark.splits("contradicted")
def test_contradicted(cell: Cell) -> None:
    assert cell.samples


@pytest.mark.splits("neighbour")
def test_neighbour(cell: Cell) -> None:
    assert cell.samples


def test_recited(bench: Bench, variant: str) -> None:
    """How often a variant recites the stored value where its key is only named; recorded, never asserted."""
    if not any(way == "mention" for _, way in bench.planned):
        pytest.skip("no prompts that only name a key are selected")
    bench.recited(variant)
