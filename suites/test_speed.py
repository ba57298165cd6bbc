"""Speed at batch 1: recorded for the report. A time says as much of the machine as of the code, so none is asserted."""

import pytest
from engram_bench.fixtures.cells import needs

from engram_bench.run.bench import Bench
from engram_bench.run.speed import NEW_TOKENS, TABLE_ROWS
from engram_bench.variants import BESIDE, EngramConfig

LOOKED_UP = "engram"


def test_what_is_timed_is_the_answer(request: pytest.FixtureRequest, bench: Bench) -> None:
    """One prompt at a time, token by token, as speed is measured, gives what is scored, and goes on after its end."""
    if hasattr(request.config, "workerinput"):
        pytest.skip("workers take each other's time; speed is measured without -n")
    if bench.settings.plan.asserted:  # other profiles show that things run, not how fast
        bench.speed()
    category = next(iter(bench.settings.patterns.categories.values()))
    prompt = bench.backend.encoder.prompt(category.question(category.split("seen")[0], "seen")[1])
    for variant in (v for v in bench.settings.variants if v.kind not in BESIDE):
        with bench.backend.attached(bench.adapter(variant.name)):
            (answer,) = bench.backend.generate([prompt], NEW_TOKENS)
            timed = list(bench.backend.stream(prompt, NEW_TOKENS, ignore_eos=True))
        assert len(timed) == NEW_TOKENS, variant.name
        assert timed[: len(answer)] == answer, variant.name


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
