"""A snapshot of each profile's items and of the difference it can detect, so that a change shows in the diff."""

import pytest
from syrupy.assertion import SnapshotAssertion
from tabulate import tabulate

from engram_bench import shipped, stats
from engram_bench.data import patterns
from engram_bench.data.questions import questions
from engram_bench.data.ways import WAYS
from engram_bench.options import PROFILES, chosen_items


@pytest.mark.usefixtures("shipped_patterns")
def test_items_and_detectable_differences(snapshot: SnapshotAssertion) -> None:
    """Each entry: number of questions, and minimum detectable difference in points of a paired test (80% power)."""
    every = patterns.load(shipped.PATTERNS)
    names = [profile for profile in PROFILES if profile != "facts"]  # which is for somebody's own data
    asked = {profile: chosen_items(every, profile).categories for profile in names}
    rows = [
        [name, way, *(size(len(found)) if found else "" for found in by_profile)]
        for name in every.categories
        for way in WAYS
        if any(
            by_profile := [
                questions(chosen[name], way, PROFILES[profile].most(way)) if name in chosen else []
                for profile, chosen in asked.items()
            ]
        )
    ]
    assert tabulate(rows, headers=["category", "way", *asked], tablefmt="github") == snapshot


def size(items: int) -> str:
    return f"{items}: {100 * stats.minimum_detectable(items):.0f}"
