"""Every category: exact answers and consistency of each variant. -k selects a category or a group."""

import pytest

from engram_bench.fixtures.cells import Cell


@pytest.mark.splits("seen", "rephrased", "heldout")
def test_accuracy(cell: Cell) -> None:
    cell.check_accuracy()


@pytest.mark.splits("seen")
def test_consistency(cell: Cell) -> None:
    cell.check_consistency()
