"""Speed at batch 1: recorded for the report. A time says as much of the machine as of the code, so none is asserted."""

import pytest

from engram_bench.run.bench import Bench
from fixtures.cells import needs


def test_speed(request: pytest.FixtureRequest, bench: Bench) -> None:
    if hasattr(request.config, "workerinput"):
        pytest.skip("workers take each other's time; speed is measured without -n")
    if not bench.settings.plan.asserted:
        pytest.skip("this profile shows that things run, not how fast")
    found = bench.speed()
    assert all(speed.decode_tokens_s > 0 for speed in found.values())


def test_lookup_time_by_table_size(bench: Bench) -> None:
    needs(bench, "engram")
    found = bench.lookup("engram")
    assert [measured["rows"] for measured in found] == sorted(measured["rows"] for measured in found)
