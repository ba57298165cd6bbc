"""Every category: exact answers, and consistency and correctness, of each variant. -k selects a category or a group."""

import pytest

from engram_bench.fixtures.cells import Cell
from engram_bench.records import PROMPTED


@pytest.mark.splits("seen", "rephrased", "heldout")
def test_accuracy(cell: Cell) -> None:
    cell.check_accuracy()


@pytest.mark.splits("seen")
def test_consistency(cell: Cell) -> None:
    cell.check_consistency()


@pytest.mark.splits("seen", "rephrased")
@pytest.mark.above(PROMPTED)
def test_accuracy_above_prompted(cell: Cell) -> None:
    """The untouched model, told the form of an answer: what is left of the gain is the fact."""
    cell.check_accuracy(PROMPTED)


@pytest.mark.splits("seen")
@pytest.mark.above(PROMPTED)
def test_consistency_above_prompted(cell: Cell) -> None:
    cell.check_consistency(PROMPTED)
