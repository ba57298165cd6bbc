"""Categories of your own: every pattern file that none of the other suites names. Nothing is asked of their size."""

import pytest

from fixtures.cells import Cell

MEASURES = None


def test_accuracy(cell: Cell) -> None:
    cell.check_accuracy()


@pytest.mark.splits("seen")
def test_consistency(cell: Cell) -> None:
    cell.check_consistency()
