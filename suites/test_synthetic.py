"""Random pairs: a sanity check. No prior knowledge helps, so a memory without its rows' contents must answer none."""

import pytest

from engram_bench.fixtures.cells import exact_rate, needs
from engram_bench.run.bench import Bench

PAIRS = "synthetic"
CONTROLS = ("engram-keyed-shuffled", "engram-keyed-zeroed")


@pytest.mark.parametrize("control", CONTROLS)
def test_a_memory_without_its_contents_answers_nothing(bench: Bench, control: str) -> None:
    """The same adapter with shuffled or emptied tables answers at most 1% exactly."""
    needs(bench, control)
    if PAIRS not in bench.settings.patterns.categories:
        pytest.skip("the patterns of this run have no random pairs")
    rate = exact_rate(bench, control, [PAIRS], "seen")
    requirement = f"sanity check: {control.removeprefix('engram-')} tables answer at most 1% of the random pairs"
    bench.threshold(f"control/synthetic/{control}/seen", requirement, rate.value, rate.low, rate.value <= 0.01)
    assert rate.value <= 0.01 or not bench.settings.plan.asserted
