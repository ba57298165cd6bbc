"""Statistics, checked against published figures, the libraries they call, and simulations."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from engram_bench import metrics, stats


def test_wilson_is_scipys_and_survives_no_observation():
    for k, n in ((0, 5), (5, 5), (9, 104)):
        interval = binomtest(k, n).proportion_ci(method="wilson")
        found = stats.wilson(k, n)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert stats.wilson(0, 0) == stats.Interval(0.0, 0.0, 1.0)
    assert stats.wilson(0, 100).low == 0.0
    assert stats.wilson(100, 100).high == 1.0


def coverage(interval, n, rates):
    """Exact coverage at each rate: the probability of every k, summed where the interval holds the rate."""
    found = [interval(k, n) for k in range(n + 1)]
    low, high = (np.array([getattr(i, side) for i in found]) for side in ("low", "high"))
    return np.array([binom.pmf(np.arange(n + 1), n, r)[(low <= r) & (r <= high)].sum() for r in rates])


@pytest.mark.parametrize("n", [30, 50, 100, 200])
def test_wilson_covers_95_percent_on_average_and_clopper_pearson_always(n):
    rates = np.linspace(0.02, 0.98, 97)
    assert 0.945 <= coverage(stats.wilson, n, rates).mean() <= 0.96
    assert coverage(stats.clopper_pearson, n, rates).min() >= 0.95


def test_newcombe_gives_his_published_example():
    # Newcombe 1998, table II, example (a): 36 both, 12 first only, 2 second only, 0 neither, method 10.
    found = stats.newcombe(np.array([[36, 12], [2, 0]]))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=5e-4)
    assert {type(x) for x in (found.value, found.low, found.high)} == {float}, "plain numbers: workers send them"


def test_newcombe_covers_a_paired_difference():
    rng = np.random.default_rng(1)
    truth, inside = 0.3, []
    for _ in range(1500):
        both, only_b, only_a, neither = rng.multinomial(60, [0.3, 0.4, 0.1, 0.2])
        found = stats.newcombe(np.array([[both, only_b], [only_a, neither]]))
        inside.append(found.low <= truth <= found.high)
    assert 0.93 <= np.mean(inside) <= 0.98


def test_six_discordant_items_all_one_way_are_the_least_that_count():
    zeros = [0] * 20
    assert stats.compare(zeros, [1] * 6 + [0] * 14).p == pytest.approx(0.03125)
    assert stats.compare(zeros, [1] * 5 + [0] * 15).p > 0.05


def test_a_comparison_without_a_difference_is_certain_of_nothing():
    same = stats.compare([1, 0, 1], [1, 0, 1])
    assert (same.difference.value, same.p) == (0.0, 1.0)
    assert stats.compare([], []).p == 1.0
    with pytest.raises(ValueError, match="paired data"):
        stats.compare([1], [1, 0])


def test_total_improvement_keeps_an_honest_interval():
    found = stats.compare([0] * 40, [1] * 40)
    assert found.difference.value == 1.0
    assert 0.8 < found.difference.low < 0.95


def test_fractions_are_compared_by_permutation():
    rng = np.random.default_rng(2)
    a = rng.uniform(0.2, 0.6, 40)
    found = stats.compare(a.tolist(), (a + 0.3).tolist())
    assert found.difference.value == pytest.approx(0.3)
    assert found.p < 0.001
    assert found.difference.low < 0.2, "the answers behind a share vary, too"


def test_a_constant_difference_keeps_its_doubt():
    few, many = stats.compare([1 / 3] * 3, [1.0] * 3), stats.compare([1 / 3] * 60, [1.0] * 60)
    assert few.difference.low < 0.2 < many.difference.low < 2 / 3
    assert stats.mean([1.0] * 5).low < 0.7
    assert stats.compare([0.5] * 5, [0.5] * 5).mde > 0.5
    assert many.mde > 0.1, "rounding is no spread"


def test_the_comparison_holds_its_false_positive_rate():
    rng = np.random.default_rng(3)
    found = [stats.compare(*rng.integers(0, 2, (2, 40))).p < 0.05 for _ in range(1000)]
    assert np.mean(found) <= 0.06


@pytest.mark.parametrize(("n", "points"), [(50, 18), (100, 13), (200, 9.5), (400, 6.5)])
def test_the_minimum_detectable_effect_is_the_textbooks(n, points):
    assert 100 * stats.minimum_detectable(n) == pytest.approx(points, abs=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "cancelling", "family"), [(30, 0.0, 1), (160, 0.0, 1), (160, 0.3, 1), (160, 0.1, 150)])
def test_a_true_difference_of_the_minimum_detectable_size_is_found_four_times_in_five(n, cancelling, family):
    rng = np.random.default_rng(4)
    delta = stats.minimum_detectable(n, cancelling, family)
    share = max(stats.PLANNED_DISCORDANCE, cancelling + delta)
    draws = rng.multinomial(n, [(share + delta) / 2, (share - delta) / 2, 1 - share], 2000)
    p = [stats.compare([0] * up + [1] * down + [1] * same, [1] * up + [0] * down + [1] * same).p
         for up, down, same in np.unique(draws, axis=0)]  # fmt: skip
    counts = np.unique(draws, axis=0, return_counts=True)[1]
    assert 0.77 <= counts[np.array(p) < 0.05 / family].sum() / 2000 <= 0.83


@pytest.mark.slow
def test_the_power_of_a_comparison_of_shares_is_what_its_mde_says():
    rng = np.random.default_rng(5)
    n, spread = 60, 0.12
    delta = 2.8016 * spread / n**0.5
    found = []
    for _ in range(300):
        a = rng.uniform(0.45, 0.5, n)
        found.append(stats.compare(a.tolist(), (a + rng.normal(delta, spread, n)).tolist()))
    assert np.mean([c.mde for c in found]) == pytest.approx(delta, rel=0.05)
    assert 0.73 <= np.mean([c.p < 0.05 for c in found]) <= 0.87
    assert np.mean([c.difference.low <= delta <= c.difference.high for c in found]) >= 0.95


def effects(rng, seeds, items, between_seeds, between_items, noise=1.0):
    """A mean of zero, an effect for each seed and for each item, and noise."""
    rows = rng.normal(0, between_seeds, (seeds, 1)) if between_seeds else 0
    columns = rng.normal(0, between_items, (1, items)) if between_items else 0
    return rows + columns + rng.normal(0, noise, (seeds, items))


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "items"), [(5, 60), (10, 100)])
def test_crossed_covers_where_seeds_differ_and_items_alone_would_not(seeds, items):
    rng = np.random.default_rng(6)
    data = [effects(rng, seeds, items, 0.5, 0.5) for _ in range(400)]
    inside = [(i := stats.crossed(d)[0]).low <= 0 <= i.high for d in data]
    assert 0.93 <= np.mean(inside) <= 0.985
    naive = [(i := stats.mean((d.mean(axis=0)).tolist())).low <= 0 <= i.high for d in data[:60]]
    assert np.mean(naive) < 0.7, "what it would be to take the seeds for all there are"


def test_crossed_is_used_from_five_seeds_on_and_survives_a_constant():
    rng = np.random.default_rng(7)
    zeros, ones = [0.0] * 40, [1.0] * 40
    wide = stats.compare(zeros, ones, by_seed=1 + effects(rng, 5, 40, 0.4, 0.1, 0.1))
    assert wide.difference.high - wide.difference.low > 0.3
    assert stats.compare(zeros, ones, by_seed=np.ones((5, 40))) == stats.compare(zeros, ones)


@pytest.mark.parametrize(("low", "high", "equal", "spared"), [
    (-0.01, 0.015, True, True), (-0.01, 0.05, False, True), (-0.03, 0.01, False, False), (-0.02, 0.02, True, False),
])  # fmt: skip
def test_no_worse_and_equivalent_judge_the_interval(low, high, equal, spared):
    interval = stats.Interval(0.0, low, high)
    assert stats.equivalent(interval, 0.02) is equal
    assert stats.no_worse(interval) is spared


def test_a_loss_of_the_margin_is_hardly_ever_called_no_worse():
    rng = np.random.default_rng(8)
    wrong = 0
    for up, down, same in rng.multinomial(400, [0.01, 0.03, 0.96], 1000):
        found = stats.compare([0] * up + [1] * (down + same), [1] * up + [0] * down + [1] * same)
        wrong += stats.no_worse(found.difference)
    assert wrong / 1000 <= 0.04


@pytest.mark.parametrize("seeds", [3, 5])
def test_items_lost_for_good_are_not_hidden_by_a_few_that_a_seed_lost_by_chance(seeds):
    rng = np.random.default_rng(9)
    wrong, n = 0, 154
    for _ in range(300):
        lost, missed = rng.random(n) < 0.02, rng.random((2, seeds, n)) < 0.005
        ours, theirs = 1.0 - (lost | missed[0]), 1.0 - missed[1]
        by_seed = ours - theirs if seeds >= stats.ENOUGH_SEEDS else None
        found = stats.compare(theirs.mean(axis=0).tolist(), ours.mean(axis=0).tolist(), by_seed=by_seed)
        wrong += stats.no_worse(found.difference)
    assert wrong / 300 <= 0.04


def test_too_few_items_can_detect_nothing():
    assert stats.minimum_detectable(3) == 1.0


def test_a_large_effect_does_not_make_a_comparison_look_weak():
    none, all, noisy = ([1] * 40, [0] * 40, [1, 0] * 20)
    large, small = stats.compare(none, all), stats.compare(none, none)
    assert large.mde == small.mde
    assert stats.compare(noisy, [0, 1] * 20).mde > small.mde


def test_one_item_answered_differently_by_training_seeds_is_compared():
    found = stats.compare([0.0], [0.6], by_seed=np.array([[0.0], [0.0], [1.0], [1.0], [1.0]]))
    assert (found.n, found.p) == (1, 1.0)


def test_what_a_comparison_among_others_could_have_found():
    lost, same = stats.Paired([1] * 40, [0] * 40), stats.Paired([1] * 40, [1] * 40)
    alone, beside = (stats.compare_all([same, *[lost] * n])[0].mde for n in (0, 9))
    assert alone == stats.minimum_detectable(40)
    assert beside == stats.minimum_detectable(40, family=10)


def test_tests_that_cannot_reject_are_the_ones_left_out():
    assert stats.testable([]) == []
    assert stats.testable([1.0] * 9) == [False] * 9
    assert stats.testable([0.04, 1.0, 1.0]) == [True, False, False]
    assert stats.testable([0.04, 0.04]) == [False, False], "at k = 2, neither can"
    assert stats.testable([0.04, 0.02, 0.02]) == [False, True, True]


def test_one_total_loss_is_found_among_many_that_could_not_be():
    """A quick run's 160 comparisons of twelve items: 12 of 12 lost is p = 0.0005, and 0.078 if all of them counted."""
    lost, same = stats.Paired([1] * 12, [0] * 12), stats.Paired([1] * 12, [1] * 12)
    one_off = stats.Paired([1] * 12, [1] * 11 + [0])
    found = stats.compare_all([lost, *[same] * 100, *[one_off] * 59])
    assert found[0].p_holm == pytest.approx(found[0].p)
    assert {c.p_holm for c in found[1:]} == {1.0}


@pytest.mark.slow
def test_a_family_without_a_true_difference_is_right_in_nineteen_of_twenty():
    """Families of unlike sizes, noisier in one place than in another, as categories are."""
    rng = np.random.default_rng(9)
    wrong = 0
    for _ in range(1000):
        family = []
        for n, share in [(12, 0.4), (12, 0.05), (48, 0.2), (160, 0.1), (160, 0.01)] * 4:
            differs, up = rng.random(n) < share, rng.random(n) < 0.5
            family.append(stats.Paired((differs & ~up).astype(float).tolist(), (differs & up).astype(float).tolist()))
        wrong += any(c.p_holm < 0.05 for c in stats.compare_all(family))
    assert wrong / 1000 <= 0.06


def test_holm_is_holm():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == []


def test_a_ratio_of_sums_has_the_interval_of_its_items():
    rng = np.random.default_rng(11)
    truth, inside = 0.5 * 10 / 30, []
    for _ in range(150):
        wholes = rng.integers(20, 41, 60)
        parts = np.where(rng.random(60) < 0.5, 10, 0)
        found = stats.ratio(parts.tolist(), wholes.tolist())
        inside.append(found.low <= truth <= found.high)
    assert found.value == pytest.approx(parts.sum() / wholes.sum())
    assert 0.88 <= np.mean(inside) <= 0.99
    assert stats.ratio([], []) == stats.ratio([0], [0]) == stats.Interval(0.0, 0.0, 1.0)
    assert stats.ratio([1, 0], [2, 0]).value == 0.5


def test_verdicts_follow_the_adjusted_test():
    up, down = stats.compare([0] * 20, [1] * 20), stats.compare([1] * 20, [0] * 20)
    assert stats.verdict(up) == "improved"
    assert stats.verdict(down) == "regressed"
    assert stats.verdict(replace(up, p_holm=0.2)) == "inconclusive"
    assert stats.verdict(stats.compare([1, 0], [1, 0])) == "unchanged"
    assert stats.verdict(stats.compare([1, 0], [0, 1])) == "inconclusive", "they differ, evenly"


def test_exact_is_the_whole_answer_and_prefix_is_not():
    assert metrics.exact(" Paris\n", "Paris")
    assert not metrics.exact("Paris.", "Paris")
    assert not metrics.exact("The capital is Paris", "Paris")
    assert metrics.prefix("Paris is the capital", "Paris")
    assert not metrics.prefix("In Paris", "Paris")
