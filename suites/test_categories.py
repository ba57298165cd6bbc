"""Every category: exact answers and consistency of each variant in each split. -k selects a category or a group."""

import pytest

from engram_bench.fixtures.cells import Cell


def test_accuracy(cell: Cell) -> None:
    cell.check_accuracy()


@pytest.mark.splits("seen")
def test_consistency(cell: Cell) -> None:
    cell.check_consistency()
