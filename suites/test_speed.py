"""Speed at batch 1: recorded for the report. A time says as much of the machine as of the code, so none is asserted."""

import pytest

from engram_bench.fixtures.cells import needs
from engram_bench.run.bench import Bench
from engram_bench.run.speed import NEW_TOKENS, TABLE_ROWS
from engram_bench.variants import EngramConfig

LOOKED_UP = "engram"


@pytest.fixture(scope="module", autouse=True)
def recorded_speed(request: pytest.FixtureRequest, bench: Bench) -> None:
    """Of every variant; neither beside other workers, nor in a profile that shows that things run, not how fast."""
    if bench.settings.plan.asserted and not hasattr(request.config, "workerinput"):
        bench.speed()


def test_what_is_timed_is_the_answer(bench: Bench, variant: str) -> None:
    """One prompt, token by token, as speed is measured, gives the answer that is scored, and goes on after its end."""
    category = next(iter(bench.settings.patterns.categories.values()))
    prompt = bench.backend.encoder.prompt(category.question(category.split("seen")[0], "seen")[1])
    with bench.backend.attached(bench.adapter(variant)):
        (answer,) = bench.backend.generate([prompt], NEW_TOKENS)
        timed = list(bench.backend.stream(prompt, NEW_TOKENS, ignore_eos=True))
    assert len(timed) == NEW_TOKENS
    assert timed[: len(answer)] == answer


def test_lookup_time_by_table_size(bench: Bench) -> None:
    """Recorded for the report; the tables have the sizes it names: primes from the nominal number of rows on."""
    needs(bench, LOOKED_UP)
    found = bench.lookup(LOOKED_UP)
    config = bench.variant(LOOKED_UP).config
    assert isinstance(config, EngramConfig)
    row = len(config.orders) * config.heads * config.width * 4  # bytes of one row of each table of a layer, float32
    larger = [measured["mapped_bytes"] / (measured["rows"] * row) for measured in found]
    assert [measured["rows"] for measured in found] == list(TABLE_ROWS)
    assert min(larger) >= 1
    assert larger[-1] < 1.001
