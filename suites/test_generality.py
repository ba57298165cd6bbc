"""Generality: trained items whose key is put in other words.

No threshold: no requirement sets one, and a variant that cannot do it shows here and nowhere else.
"""

import pytest

from engram_bench.fixtures.cells import Cell


@pytest.mark.splits("paraphrased")
def test_paraphrased(cell: Cell) -> None:
    assert cell.samples
