"""Random pairs: nothing a model knows helps, so what it answers it has stored."""

from dataclasses import asdict

import pytest
from syrupy.assertion import SnapshotAssertion

from engram_bench import stats
from engram_bench.bench import Bench
from engram_bench.report.build import outcomes
from fixtures.cells import Cell, verdict_table

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
    if control not in [variant.name for variant in bench.settings.variants]:
        pytest.skip(f"{control} is not among the variants of this run")
    if MEASURES not in bench.settings.patterns.categories:
        pytest.skip("there are no random pairs among the patterns of this run")
    found = outcomes(map(asdict, bench.samples(control, MEASURES, "seen")))
    rate = stats.wilson(sum(found.values()), len(found))
    requirement = f"control: {control.removeprefix('engram-')} tables answer at most 1% of the random pairs"
    bench.threshold(f"control/synthetic/{control}/seen", requirement, rate.value, rate.low, rate.value <= 0.01)
    assert rate.value <= 0.01 or not bench.settings.plan.asserted


def test_verdicts(category: str, bench: Bench, as_shipped: None, snapshot: SnapshotAssertion) -> None:
    assert verdict_table(bench, category) == snapshot
