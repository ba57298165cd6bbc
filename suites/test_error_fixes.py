"""Error fixes: a line with one mistake, put right. Its held-out items can be had by knowing the language."""

import pytest
from syrupy.assertion import SnapshotAssertion

from engram_bench.run.bench import Bench
from fixtures.cells import Cell, verdict_table

MEASURES = "error_fixes"


def test_accuracy(cell: Cell) -> None:
    cell.check_accuracy()


@pytest.mark.splits("seen")
def test_consistency(cell: Cell) -> None:
    cell.check_consistency()


def test_verdicts(category: str, bench: Bench, as_shipped: None, snapshot: SnapshotAssertion) -> None:
    assert verdict_table(bench, category) == snapshot
