"""Random pairs: nothing a model knows helps, so what it answers it has stored."""

import pytest
from syrupy.assertion import SnapshotAssertion

from engram_bench.run.bench import Bench
from fixtures.cells import Cell, exact_rate, needs, verdict_table

MEASURES = "synthetic"
CONTROLS = ("engram-shuffled", "engram-zeroed")


def test_accuracy(cell: Cell) -> None:
    cell.check_accuracy()


@pytest.mark.splits("seen")
def test_consistency(cell: Cell) -> None:
    cell.check_consistency()


@pytest.mark.parametrize("control", CONTROLS)
def test_the_tables_contents_carry_the_effect(bench: Bench, control: str) -> None:
    """The same adapter with the rows of its tables shuffled, or emptied, has to fail: at most 1% exact."""
    needs(bench, control)
    if MEASURES not in bench.settings.patterns.categories:
        pytest.skip("there are no random pairs among the patterns of this run")
    rate = exact_rate(bench, control, [MEASURES], "seen")
    requirement = f"control: {control.removeprefix('engram-')} tables answer at most 1% of the random pairs"
    bench.threshold(f"control/synthetic/{control}/seen", requirement, rate.value, rate.low, rate.value <= 0.01)
    assert rate.value <= 0.01 or not bench.settings.plan.asserted


def test_verdicts(category: str, bench: Bench, as_shipped: None, snapshot: SnapshotAssertion) -> None:
    assert verdict_table(bench, category) == snapshot
