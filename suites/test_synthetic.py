"""Random pairs: nothing a model knows helps, so what it answers it has stored, and an emptied store answers nothing."""

import pytest

from engram_bench.fixtures.cells import exact_rate, needs
from engram_bench.run.bench import Bench

PAIRS = "synthetic"
CONTROLS = ("engram-shuffled", "engram-zeroed")


@pytest.mark.parametrize("control", CONTROLS)
def test_the_tables_contents_carry_the_effect(bench: Bench, control: str) -> None:
    """The same adapter with the rows of its tables shuffled, or emptied, has to fail: at most 1% exact."""
    needs(bench, control)
    if PAIRS not in bench.settings.patterns.categories:
        pytest.skip("there are no random pairs among the patterns of this run")
    rate = exact_rate(bench, control, [PAIRS], "seen")
    requirement = f"control: {control.removeprefix('engram-')} tables answer at most 1% of the random pairs"
    bench.threshold(f"control/synthetic/{control}/seen", requirement, rate.value, rate.low, rate.value <= 0.01)
    assert rate.value <= 0.01 or not bench.settings.plan.asserted
