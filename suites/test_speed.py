"""Speed at batch 1, recorded for the report. Times depend on the machine, so none is asserted."""

import pytest

from engram_bench.fixtures.cells import needs
from engram_bench.run import soundness
from engram_bench.run.bench import Bench
from engram_bench.run.speed import NEW_TOKENS, TABLE_ROWS
from engram_bench.variants.configs import EngramConfig

LOOKED_UP = "engram-keyed"


@pytest.fixture(scope="module", autouse=True)
def recorded_speed(request: pytest.FixtureRequest, bench: Bench) -> None:
    """Record the speed of every variant; not with xdist workers, which slow each other down, nor in a smoke run."""
    if bench.settings.plan.asserted and not hasattr(request.config, "workerinput"):
        bench.speed()


def test_what_is_timed_is_the_answer(bench: Bench, variant: str) -> None:
    """`stream`, which is timed, gives the same answer as `generate`, which is scored, and continues after its end."""
    timed, answer = soundness.streamed(bench, variant)
    assert len(timed) == NEW_TOKENS
    assert timed[: len(answer)] == answer


def test_lookup_time_by_table_size(bench: Bench) -> None:
    """Recorded for the report. The size of each table is a prime, at or just above the nominal number of rows."""
    needs(bench, LOOKED_UP)
    found = bench.lookup(LOOKED_UP)
    config = bench.variant(LOOKED_UP).config
    assert isinstance(config, EngramConfig)
    row = config.hashes * config.heads * config.width * 4  # bytes: one row of every table of a layer, in float32
    ratios = [measured["mapped_bytes"] / (measured["rows"] * row) for measured in found]
    assert [measured["rows"] for measured in found] == list(TABLE_ROWS)
    assert min(ratios) >= 1
    assert ratios[-1] < 1.001
