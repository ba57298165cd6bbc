"""Statistics against published figures, the libraries they call, and simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest

from engram_bench import metrics, stats


def test_wilson_is_scipys_and_survives_no_observation():
    for k, n in ((0, 5), (5, 5), (9, 104)):
        interval = binomtest(k, n).proportion_ci(method="wilson")
        found = stats.wilson(k, n)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert stats.wilson(0, 0) == stats.Interval(0.0, 0.0, 1.0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_wilson_covers_what_it_says(rate):
    rng = np.random.default_rng(0)
    inside = [(i := stats.wilson(k, 50)).low <= rate <= i.high for k in rng.binomial(50, rate, 2000)]
    assert 0.92 <= np.mean(inside) <= 0.98


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


def test_fractions_are_compared_by_permutation_and_bootstrap():
    rng = np.random.default_rng(2)
    a = rng.uniform(0.2, 0.6, 40)
    found = stats.compare(a.tolist(), (a + 0.3).tolist())
    assert found.difference.value == pytest.approx(0.3)
    assert found.p < 0.001


def test_a_constant_difference_keeps_its_doubt():
    few, many = stats.compare([1 / 3] * 3, [1.0] * 3), stats.compare([1 / 3] * 60, [1.0] * 60)
    assert few.difference.low < 0.2 < many.difference.low < 2 / 3
    assert stats.mean([1.0] * 5).low < 0.7
    assert stats.compare([0.5] * 5, [0.5] * 5).mde > 0.5


def test_the_comparison_holds_its_false_positive_rate():
    rng = np.random.default_rng(3)
    found = [stats.compare(*rng.integers(0, 2, (2, 40))).p < 0.05 for _ in range(1000)]
    assert np.mean(found) <= 0.06


@pytest.mark.parametrize(("n", "points"), [(50, 18), (100, 13), (200, 9.5), (400, 6.5)])
def test_the_minimum_detectable_effect_is_the_textbooks(n, points):
    assert 100 * stats.minimum_detectable(n, 0.2) == pytest.approx(points, abs=1.0)


def test_a_true_difference_of_the_minimum_detectable_size_is_found_four_times_in_five():
    rng = np.random.default_rng(4)
    n, delta = 200, stats.minimum_detectable(200, 0.2)
    gained, lost = (0.2 + delta) / 2, (0.2 - delta) / 2
    hits = 0
    for _ in range(400):
        up, down, rest = rng.multinomial(n, [gained, lost, 0.8])
        hits += stats.compare([0] * up + [1] * down + [1] * rest, [1] * up + [0] * down + [1] * rest).p < 0.05
    assert 0.70 <= hits / 400 <= 0.88


def test_too_few_items_can_detect_nothing():
    assert stats.minimum_detectable(3, 0.2) == 1.0


def test_holm_is_holm():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == []


def test_verdicts_follow_the_adjusted_test():
    up, down = stats.compare([0] * 20, [1] * 20), stats.compare([1] * 20, [0] * 20)
    assert stats.verdict(up, 0.01) == "improved"
    assert stats.verdict(down, 0.01) == "regressed"
    assert stats.verdict(up, 0.2) == "inconclusive"
    assert stats.verdict(stats.compare([1, 0], [1, 0]), 1.0) == "unchanged"
    assert stats.verdict(stats.compare([1, 0], [0, 1]), 1.0) == "inconclusive", "they differ, evenly"


def test_exact_is_the_whole_answer_and_prefix_is_not():
    assert metrics.exact(" Paris\n", "Paris")
    assert not metrics.exact("Paris.", "Paris")
    assert not metrics.exact("The capital is Paris", "Paris")
    assert metrics.prefix("Paris is the capital", "Paris")
    assert not metrics.prefix("In Paris", "Paris")


def test_consistency_is_the_share_of_the_commonest():
    assert metrics.consistency(["a", "a ", "b"]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no samples"):
        metrics.consistency([])


def test_token_efficiency_is_never_above_one():
    assert metrics.token_efficiency(3, 30) == pytest.approx(0.1)
    assert metrics.token_efficiency(3, 2) == 1.0
    assert metrics.token_efficiency(3, 0) == 0.0
