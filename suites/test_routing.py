"""Routing: does a router distinguish prompts that ask for a stored item from prompts that only look like requests?"""

import pytest

from engram_bench import stats
from engram_bench.backends.routed import rules
from engram_bench.data import prompt_sets
from engram_bench.fixtures.cells import needs
from engram_bench.memory.routing import THRESHOLD
from engram_bench.run.bench import Bench
from engram_bench.run.routed import PROMPTS

REQUIRED = 0.99
ROUTED = "engram-routed"
ROUTERS = ("keys", "learned", "rules")  # the memory's search for trained keys; two that know no keys
ASSERTED = "keys"


@pytest.mark.parametrize("prompts", prompt_sets.ROUTING)
@pytest.mark.parametrize("router", ROUTERS)
def test_routers(bench: Bench, shipped_patterns: None, router: str, prompts: str) -> None:
    """Precision and recall. They are asserted of the search for keys, on labelled prompts; else they are recorded.

    Routers that know no keys get all prompts. The memory gets no requests for keys that this run did not train.
    """
    asked, encode = prompt_sets.routing(prompts), bench.backend.encoder.prompt
    if router == "keys":
        needs(bench, "engram-keyed")
        trained = bench.settings.patterns.trained_inputs()
        asked = [p for p in asked if p.input is None or p.input in trained]
        span = bench.adapter("engram-keyed").span
        routed = [span(encode(p.text)) is not None for p in asked]
    else:
        if router == "learned":
            needs(bench, ROUTED)
            if not bench.settings.plan.asserted:
                pytest.skip("this profile judges no learned router")
        confidence = bench.adapter(ROUTED).confidence if router == "learned" else rules
        routed = [sure >= THRESHOLD for sure in confidence([encode(p.text) for p in asked])]
    asks = [p.input is not None for p in asked]
    if not any(asks):
        pytest.skip("no prompt asks for an item that this run trained")
    hits = sum(a and r for a, r in zip(asks, routed, strict=True))
    rates = {"precision": stats.wilson(hits, sum(routed)), "recall": stats.wilson(hits, sum(asks))}
    bench.routing(router, prompts, len(asked), **rates)
    if (router, prompts) == (ASSERTED, "labelled"):
        for name, rate in rates.items():
            requirement = f"{name} of the router by {router} at least {REQUIRED:.0%} on labelled prompts"
            bench.threshold(f"routing/{router}/{name}", requirement, rate.value, rate.low, rate.value >= REQUIRED)
            assert rate.value >= REQUIRED or not bench.settings.plan.asserted, (
                f"{name} {rate.value:.1%} of n={len(asked)}"
            )


def test_prompts_of_the_published_table(bench: Bench) -> None:
    """Recorded for the report: confidence, route and answer. What goes to the model gets the untouched model's answer.

    The memory has the router inside where the run has `engram-routed`; else the rules decide before `engram-keyed`.
    """
    variants = [variant.name for variant in bench.settings.variants]
    if ROUTED not in variants:
        needs(bench, "engram-keyed")
    if not (
        bench.settings.shipped_patterns or {asked.key for asked in PROMPTS} & bench.settings.patterns.trained_inputs()
    ):
        pytest.skip("the patterns of this run have none of the table's keys")
    rows = bench.routed(ROUTED if ROUTED in variants else "engram-keyed")
    assert all(row["output"] == row["untouched"] for row in rows if row["route"] == "model")
