"""Routing: does a router distinguish prompts that ask for a stored item from prompts that only look like requests?"""

import pytest

from engram_bench import stats
from engram_bench.data import prompt_sets
from engram_bench.fixtures.cells import needs
from engram_bench.memory import routing
from engram_bench.run.bench import Bench

REQUIRED = 0.99
ROUTERS = ("keys", "rules")  # the memory's search for trained keys; rules on the text, which know no keys


@pytest.mark.parametrize("prompts", prompt_sets.ROUTING)
@pytest.mark.parametrize("router", ROUTERS)
def test_routers(bench: Bench, shipped_patterns: None, router: str, prompts: str) -> None:
    """Precision and recall; asserted on labelled prompts, recorded on the other sets.

    The rules know no keys, so they get all prompts. The memory gets no requests for keys that this run did not train.
    """
    asked = prompt_sets.routing(prompts)
    if router == "keys":
        needs(bench, "engram")
        trained = {item.input for c in bench.settings.patterns.categories.values() for item in c.split("seen")}
        asked = [p for p in asked if p.input is None or p.input in trained]
        span, encoder = bench.adapter("engram").span, bench.backend.encoder
        routed = [span(encoder.prompt(p.text)) is not None for p in asked]
    else:
        routed = [routing.confidence(p.text) >= routing.THRESHOLD for p in asked]
    asks = [p.input is not None for p in asked]
    if not any(asks):
        pytest.skip("no prompt asks for an item that this run trained")
    hits = sum(a and r for a, r in zip(asks, routed, strict=True))
    rates = {"precision": stats.wilson(hits, sum(routed)), "recall": stats.wilson(hits, sum(asks))}
    bench.routing(router, prompts, len(asked), **rates)
    if prompts == "labelled":
        for name, rate in rates.items():
            requirement = f"{name} of the router by {router} at least {REQUIRED:.0%} on labelled prompts"
            bench.threshold(f"routing/{router}/{name}", requirement, rate.value, rate.low, rate.value >= REQUIRED)
            assert rate.value >= REQUIRED or not bench.settings.plan.asserted, (
                f"{name} {rate.value:.1%} of n={len(asked)}"
            )
