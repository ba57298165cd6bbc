"""Intervals, paired tests and power: thin, named calls of scipy and statsmodels, and one interval neither has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95
POWER = 0.80
PLANNED_DISCORDANCE = 0.2  # share of items on which two variants differ, where no more is seen
RESAMPLES = 9999
SEED = 0


@dataclass(frozen=True)
class Interval:
    """A point and its 95% interval."""

    value: float
    low: float
    high: float


def wilson(k: float, n: int) -> Interval:
    """Rate k/n with its Wilson score interval; with no observation the interval is everything.

    `k` may be fractional: items averaged over training seeds first.
    """
    if n == 0:
        return Interval(0.0, 0.0, 1.0)
    low, high = proportion_confint(k, n, alpha=1 - LEVEL, method="wilson")
    return Interval(k / n, float(low), float(high))


def mean(values: Sequence[float]) -> Interval:
    """Mean of shares over items with its percentile bootstrap interval (BCa is undefined on constant data)."""
    return _bootstrap_mean(np.asarray(values, dtype=float), 0.0, 1.0)


def _bootstrap_mean(values: np.ndarray, low: float, high: float) -> Interval:
    """`low` and `high` bound what a single value can be."""
    if len(values) == 0:
        return Interval(0.0, low, high)
    if np.ptp(values) == 0:
        # Resampling a constant gives a point. That all n agree says that at least `same` of all items do (exact
        # binomial bound), and the rest may be anything.
        same = scipy_stats.binomtest(len(values), len(values)).proportion_ci(LEVEL).low
        point = float(values[0])
        return Interval(point, float(same * point + (1 - same) * low), float(same * point + (1 - same) * high))
    result = scipy_stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=RESAMPLES, confidence_level=LEVEL, rng=SEED
    )
    found = result.confidence_interval
    return Interval(float(values.mean()), float(found.low), float(found.high))


@dataclass(frozen=True)
class Comparison:
    """Paired difference b - a over n items, its interval, p-value and minimum detectable effect."""

    n: int
    difference: Interval
    p: float
    mde: float
    identical: bool  # the two agree on every item


def compare(a: Sequence[float], b: Sequence[float], reach: float = 1.0) -> Comparison:
    """Compare two variants on the same items.

    0/1 outcomes: exact McNemar test and Newcombe's interval for a paired difference. Anything else: a sign-flip
    permutation test and a bootstrap over items. `reach` is the largest difference one item can show.

    Raises:
        ValueError: the two are not of one length.
    """
    if len(a) != len(b):
        raise ValueError(f"paired data of {len(a)} and {len(b)} items")
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    n = len(x)
    if n == 0:
        return Comparison(0, Interval(0.0, -1.0, 1.0), 1.0, 1.0, True)
    identical = bool(np.array_equal(x, y))
    if np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all():
        table = np.array([[np.sum((y == i) & (x == j)) for j in (1, 0)] for i in (1, 0)])
        discordance = float(table[0, 1] + table[1, 0]) / n
        p = float(mcnemar(table, exact=True).pvalue) if discordance else 1.0
        return Comparison(n, newcombe(table), p, minimum_detectable(n, discordance), identical)
    differences = y - x
    if n == 1:
        return Comparison(1, Interval(float(differences[0]), -1.0, 1.0), 1.0, 1.0, identical)
    p = 1.0
    if np.any(differences):
        p = float(
            scipy_stats.permutation_test(
                (differences,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=SEED
            ).pvalue
        )
    spread = float(differences.std(ddof=1)) or 0.5  # none seen: as wide as a share can be
    z = scipy_stats.norm.ppf([(1 + LEVEL) / 2, POWER]).sum()
    interval = _bootstrap_mean(differences, -reach, reach)
    return Comparison(n, interval, p, min(1.0, float(z) * spread / math.sqrt(n)), identical)


def newcombe(table: np.ndarray) -> Interval:
    """Difference of two paired rates with its 95% interval: Newcombe 1998 (Stat. Med. 17:2635), method 10.

    Wilson limits of both rates, squared and added with the correlation between them. Unlike a bootstrap it does not
    collapse to a point when every pair differs the same way.

    Args:
        table: [[both, only b], [only a, neither]] counts; the difference is b - a.
    """
    (both, only_b), (only_a, neither) = table.astype(float)
    n = table.sum()
    rate_b, rate_a = wilson(both + only_b, n), wilson(both + only_a, n)
    product = (both + only_b) * (only_a + neither) * (both + only_a) * (only_b + neither)
    cross = both * neither - only_b * only_a
    if cross > n / 2:
        cross -= n / 2
    elif cross >= 0:
        cross = 0.0
    phi = cross / math.sqrt(product) if product else 0.0

    def reach(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up**2 - 2 * phi * up * down + down**2))

    difference = rate_b.value - rate_a.value
    low = difference - reach(rate_b.value - rate_b.low, rate_a.high - rate_a.value)
    high = difference + reach(rate_b.high - rate_b.value, rate_a.value - rate_a.low)
    return Interval(float(difference), float(max(-1.0, low)), float(min(1.0, high)))


def minimum_detectable(n: int, discordance: float) -> float:
    """Least true difference of paired 0/1 outcomes that a two-sided 5% McNemar test finds with 80% power.

    Connor 1987 (Biometrics 43:207), normal approximation. The share of discordant items is what was seen, but at
    least `PLANNED_DISCORDANCE`; 1.0 where no difference could be found.
    """
    psi = max(discordance, PLANNED_DISCORDANCE)
    z_level, z_power = scipy_stats.norm.ppf([(1 + LEVEL) / 2, POWER])

    def lacking(delta: float) -> float:
        return float(z_level * math.sqrt(psi) + z_power * math.sqrt(psi - delta**2) - delta * math.sqrt(n))

    if lacking(psi) > 0:
        return 1.0
    return float(optimize.brentq(lacking, 0.0, psi))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def verdict(comparison: Comparison, p_holm: float) -> str:
    """improved or regressed where the adjusted test says so; unchanged where all items agree; else inconclusive."""
    if p_holm < 1 - LEVEL:
        return "improved" if comparison.difference.value > 0 else "regressed"
    return "unchanged" if comparison.identical else "inconclusive"
