"""Thresholds over a group of categories, each of which has too few items for one of its own."""

from types import SimpleNamespace

import pytest

from engram_bench.fixtures import cells
from engram_bench.records import BASELINE, Sample


class Answered:
    """What `cells` needs of a bench: answers to two items of each category, right or wrong by variant."""

    def __init__(self, groups, right):
        self._right, self.recorded = right, {}
        self.planned = {(name, "seen") for name in groups}
        categories = {name: SimpleNamespace(name=name, group=group) for name, group in groups.items()}
        plan = SimpleNamespace(asserted=True)
        self.settings = SimpleNamespace(patterns=SimpleNamespace(categories=categories), plan=plan)

    def samples(self, variant, category, way):
        right = self._right.get((variant, category), variant != BASELINE)
        common = {"phrasing": "{input}", "seed": 0, "prompt": "", "expected": "v", "output": "v", "tokens": 1,
                  "canonical_tokens": 1, "prefix": right}  # fmt: skip
        return [
            Sample(
                variant=variant, category=category, split=way, item=f"{category}{n}", sample=k, exact=right, **common
            )
            for n in range(2)
            for k in range(3)
        ]

    def threshold(self, id, requirement, measured, low, passed):
        self.recorded[id] = (requirement, measured, passed)


GROUPS = {"a": "core", "b": "core", "c": "core", "d": "core", "e": "lookups", "f": "lookups"}


@pytest.mark.parametrize(("metric", "name", "least"), [("exact", "accuracy", 10), ("consistency", "consistency", 20)])
def test_a_group_is_judged_over_all_its_categories_and_no_others(metric, name, least):
    bench = Answered(GROUPS, {("lora", "e"): False, ("lora", "f"): False})
    cells.check_group(bench, metric, "lora", BASELINE, "core", "seen")
    requirement, measured, passed = bench.recorded[f"{name}/core/lora/seen"]
    assert f"at least {least} points above baseline" in requirement
    assert (measured, passed) == (1.0, True)


@pytest.mark.parametrize("metric", ["exact", "consistency"])
def test_a_group_that_gains_nothing_misses_its_threshold_and_is_on_record(metric):
    bench = Answered(GROUPS, {("prompted", category): True for category in GROUPS})
    with pytest.raises(AssertionError, match=r"-over-prompted/core/lora/seen: \+0\.0 points over prompted"):
        cells.check_group(bench, metric, "lora", "prompted", "core", "seen")
    ((_, _, passed),) = bench.recorded.values()
    assert not passed


def test_a_group_of_too_few_items_is_not_judged():
    bench = Answered(GROUPS, {})
    with pytest.raises(pytest.skip.Exception, match="4 items are too few"):
        cells.check_group(bench, "exact", "lora", BASELINE, "lookups", "seen")
    assert not bench.recorded
