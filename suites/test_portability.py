"""Portability: two keys in one prompt, and questions that need a value for something.

No threshold: no requirement sets one. An answer is right if it contains all that is asked for, and no wrong option.
"""

import pytest

from engram_bench.fixtures.cells import Cell


@pytest.mark.splits("combined")
def test_combined(cell: Cell) -> None:
    assert cell.samples


@pytest.mark.splits("applied")
def test_applied(cell: Cell) -> None:
    assert cell.samples
