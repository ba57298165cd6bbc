"""Intervals, paired tests and power: thin calls of scipy and statsmodels, and Newcombe's interval, which both lack.

Functions import statsmodels when called: its import takes a second, and pytest imports this module at collection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import scipy  # imports its submodules lazily

LEVEL = 0.95
POWER = 0.80
PLANNED_DISCORDANCE = 0.2  # assumed share of items on which two variants differ, unless more do
RESAMPLES = 9999
MORE_RESAMPLES = 99_999  # for a p so small that its resampling error could change a Holm-adjusted verdict
SEED = 0
BATCH = 1000  # resamples held at once; all of them would take 8 GB for 100,000 items
ENOUGH_SEEDS = 5  # number of training seeds from which their spread can be estimated
MARGIN = 0.02  # "no worse" than the baseline means worse by less than this


@dataclass(frozen=True)
class Interval:
    """A point estimate and its 95% interval."""

    value: float
    low: float
    high: float


def wilson(k: float, n: int) -> Interval:
    """Rate k/n with its Wilson score interval; the interval is [0, 1] if n is 0.

    `k` may be fractional, because outcomes of an item are first averaged over training seeds.
    """
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return Interval(0.0, 0.0, 1.0)
    low, high = proportion_confint(k, n, alpha=1 - LEVEL, method="wilson")
    # Rounding must not move a bound off 0 or 1.
    return Interval(k / n, float(low) if k else 0.0, float(high) if k < n else 1.0)


def rate(k: float, n: int) -> dict[str, float]:
    """`wilson` as a report stores it: {"k", "rate", "low", "high"}."""
    found = wilson(k, n)
    return {"k": k, "rate": found.value, "low": found.low, "high": found.high}


def clopper_pearson(k: int, n: int) -> Interval:
    """Rate k/n with its exact binomial interval.

    For bounds: it always covers at least 95%, whereas Wilson's interval covers 95% on average.
    """
    found = scipy.stats.binomtest(k, n).proportion_ci(LEVEL, method="exact")
    return Interval(k / n, float(found.low), float(found.high))


def crossed(values: np.ndarray) -> tuple[Interval, float, float]:
    """Mean over training seeds and items, both treated as random samples.

    So it supports a claim about training, not only about these adapters. Two-way clustered standard error (Cameron,
    Gelbach & Miller 2011); Student's t takes its degrees of freedom from the smaller of seeds and items. A two-way
    bootstrap agrees for many seeds, but its percentile interval is too narrow for five.

    Args:
        values: [seeds, items].

    Returns:
        The interval, the p-value against zero, the standard error.
    """
    from statsmodels.regression.linear_model import OLS

    seeds, items = values.shape
    groups = np.stack([index.ravel() for index in np.indices(values.shape)], axis=1)
    fits = [
        OLS(values.ravel(), np.ones(values.size)).fit(cov_type="cluster", cov_kwds={"groups": g}, use_t=True)
        for g in (groups, groups[:, 0], groups[:, 1])
    ]
    error = max(float(np.sqrt(max(0.0, fit.cov_params()[0, 0]))) for fit in fits)  # two-way can be below one-way
    point, student = float(values.mean()), scipy.stats.t(min(seeds, items) - 1)
    half_width = error * float(student.ppf((1 + LEVEL) / 2))
    p = float(2 * student.sf(abs(point) / error)) if error else float(point == 0)
    return Interval(point, point - half_width, point + half_width), p, error


def mean(values: Sequence[float]) -> Interval:
    """Mean of the items' shares with its percentile bootstrap interval (BCa is undefined on constant data)."""
    return ratio(values, [1] * len(values))


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> Interval:
    """Sum of the items' parts over the sum of their wholes, with its percentile bootstrap interval over items.

    Items without a whole are left out.
    """
    part, whole = (np.asarray(values, dtype=float)[np.asarray(wholes) > 0] for values in (parts, wholes))
    if len(whole) == 0:
        return Interval(0.0, 0.0, 1.0)
    shares = part / whole
    if np.ptp(shares) == 0:
        # Resampling equal shares gives an interval of width 0. Instead: if n of n agree, at least the share `same` of
        # all items agrees (exact binomial bound), and the rest may take any value.
        same = clopper_pearson(len(shares), len(shares)).low
        point = float(shares[0])
        return Interval(point, same * point, same * point + (1 - same) * max(1.0, point))

    def pooled(some: np.ndarray, of: np.ndarray, axis: int) -> np.ndarray:
        totals: np.ndarray = some.sum(axis=axis) / of.sum(axis=axis)
        return totals

    options = {"method": "percentile", "n_resamples": RESAMPLES, "confidence_level": LEVEL, "rng": SEED, "batch": BATCH}
    found = scipy.stats.bootstrap((part, whole), pooled, paired=True, **options).confidence_interval
    return Interval(float(part.sum() / whole.sum()), float(found.low), float(found.high))


@dataclass(frozen=True)
class Comparison:
    """Paired difference b - a over n items, with interval, p-value and minimum detectable effect.

    Attributes:
        identical: a and b agree on every item.
        p_holm: the p-value adjusted within its family; equals `p` for a single comparison.
    """

    n: int
    difference: Interval
    p: float
    mde: float
    identical: bool
    p_holm: float

    def as_record(self) -> dict[str, float]:
        """The numbers as a report stores them."""
        difference = {"difference": self.difference.value, "low": self.difference.low, "high": self.difference.high}
        return {"n": self.n, **difference, "p": self.p, "p_holm": self.p_holm, "mde": self.mde}


@dataclass(frozen=True)
class Paired:
    """Outcomes of two variants, a and b, on the same items; `compare` explains the fields."""

    a: Sequence[float]
    b: Sequence[float]
    by_seed: np.ndarray | None = None

    def least_p(self) -> float:
        """Lower bound of the p-value, from the number of items that differ, whatever their direction.

        For d differing items, the McNemar and the sign-flip test reach 2^(1-d) if all differ in the same direction.
        """
        if self.by_seed is not None and len(self.a) > 1 and np.ptp(self.by_seed):
            return 0.0
        return min(1.0, 2.0 ** (1 - sum(x != y for x, y in zip(self.a, self.b, strict=True))))


def compare_all(pairs: Sequence[Paired]) -> list[Comparison]:
    """Compare every pair; adjusts all p-values so that the chance of any false verdict is at most 5%.

    Holm's procedure covers the `testable` comparisons only. The rest could never reject, so they get p_holm = 1 and do
    not enlarge the family. A minimum detectable effect is for a test at Holm's first step; for a comparison that is not
    testable, the family counts as one larger.
    """
    tested = testable([pair.least_p() for pair in pairs])
    family = sum(tested)
    sizes = [family if counts else family + 1 for counts in tested]
    found = [compare(p.a, p.b, family=size, by_seed=p.by_seed) for p, size in zip(pairs, sizes, strict=True)]
    adjusted = iter(holm([c.p for c, counts in zip(found, tested, strict=True) if counts]))
    return [replace(c, p_holm=next(adjusted) if counts else 1.0) for c, counts in zip(found, tested, strict=True)]


def compare(
    a: Sequence[float],
    b: Sequence[float],
    *,
    family: int = 1,
    by_seed: np.ndarray | None = None,
) -> Comparison:
    """Compare two variants on the same items.

    The test and the interval depend on the outcomes:

    - correct or not (0 or 1): exact McNemar test, Newcombe's interval for a paired difference;
    - shares of correct answers, averaged over an item's training seeds, phrasings and draws: sign-flip permutation
      test, Newcombe's interval;
    - `by_seed` given: `crossed`. Its interval is widened to at least Newcombe's, because items that are rarely lost
      show no spread until one is lost.

    Args:
        a: outcomes of one variant, by item.
        b: outcomes of the other variant.
        family: how many comparisons share the 5%; the MDE is for a test at 5%/family, Holm's first step.
        by_seed: [seeds, items] differences, given for `ENOUGH_SEEDS` or more seeds.

    Returns:
        The comparison; without items, a difference of 0 with interval [-1, 1] and p = 1.

    Raises:
        ValueError: a and b differ in length.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    if len(a) != len(b):
        raise ValueError(f"paired data must have equal lengths, not {len(a)} and {len(b)} items")
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    n = len(x)
    if n == 0:
        return Comparison(0, Interval(0.0, -1.0, 1.0), 1.0, 1.0, True, 1.0)
    identical = bool(np.array_equal(x, y))
    quantiles = [1 - (1 - LEVEL) / (2 * family), POWER]  # for a two-sided test and its power
    table = _table(x, y)
    if by_seed is not None and n > 1 and np.ptp(by_seed):
        found, p, error = crossed(by_seed)
        least = newcombe(table)
        interval = Interval(found.value, min(max(-1.0, found.low), least.low), max(min(1.0, found.high), least.high))
        mde = float(scipy.stats.t(min(by_seed.shape) - 1).ppf(quantiles).sum()) * error
        return Comparison(n, interval, p, min(1.0, mde), identical, p)
    if np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all():
        p = 1.0 if identical else float(mcnemar(table, exact=True).pvalue)
        cancelling = 2 * float(min(table[0, 1], table[1, 0])) / n
        return Comparison(n, newcombe(table), p, minimum_detectable(n, cancelling, family), identical, p)
    differences = y - x
    if n == 1:
        return Comparison(1, Interval(float(differences[0]), -1.0, 1.0), 1.0, 1.0, identical, 1.0)
    # Without any spread, assume the largest that a share can have.
    spread = float(differences.std(ddof=1)) if np.ptp(differences) else 0.5
    mde = float(scipy.stats.norm.ppf(quantiles).sum()) * spread / math.sqrt(n)
    p = _sign_flip(differences)
    return Comparison(n, newcombe(table), p, min(1.0, mde), identical, p)


def _table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[[both, only b], [only a, neither]]: counts of items answered correctly.

    For shares, expected counts that treat the outcomes of a and b on one item as independent.
    """
    return np.array([[b @ a, b @ (1 - a)], [(1 - b) @ a, (1 - b) @ (1 - a)]])


def _sign_flip(differences: np.ndarray) -> float:
    """p-value of the mean under sign flips of the items; tries all flips if they are few, else random ones."""

    def p_value(resamples: int) -> float:
        result = scipy.stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=resamples, batch=BATCH, rng=SEED
        )
        return float(result.pvalue)

    if not np.any(differences):
        return 1.0
    p = p_value(RESAMPLES)
    return p_value(MORE_RESAMPLES) if p < 10 / RESAMPLES else p


def newcombe(table: np.ndarray) -> Interval:
    """Difference of two paired rates with its 95% interval: Newcombe 1998 (Stat. Med. 17:2635), method 10.

    Combines the squared Wilson limits of both rates with the correlation between them. Unlike a bootstrap interval, it
    does not collapse to a point if all pairs differ in the same direction.

    Args:
        table: [[both, only b], [only a, neither]] counts, see `_table`; the difference is b - a.
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

    def distance(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up**2 - 2 * phi * up * down + down**2))

    difference = rate_b.value - rate_a.value
    low = difference - distance(rate_b.value - rate_b.low, rate_a.high - rate_a.value)
    high = difference + distance(rate_b.high - rate_b.value, rate_a.value - rate_a.low)
    return Interval(float(difference), float(max(-1.0, low)), float(min(1.0, high)))


def minimum_detectable(n: int, cancelling: float = 0.0, family: int = 1) -> float:
    """Least true difference of paired 0/1 outcomes that the exact McNemar test at 5%/family detects with 80% power.

    Sums the power of the exact test over all numbers of discordant items, so it also holds for few items. Assumes that
    the share of discordant items is the difference plus `cancelling`, and at least `PLANNED_DISCORDANCE`.

    Args:
        n: number of items.
        cancelling: share of discordant items whose differences cancel out.
        family: how many comparisons share the 5%.

    Returns:
        The difference; 1.0 if none could be detected.
    """
    alpha, counts = (1 - LEVEL) / family, np.arange(n + 1)
    least = scipy.stats.binom.isf(alpha / 2, counts, 0.5) + 1  # how many of them in one direction are significant

    def lacking(delta: float) -> float:
        share = min(1.0, max(PLANNED_DISCORDANCE, cancelling + delta))
        found = scipy.stats.binom.sf(least - 1, counts, (share + delta) / (2 * share))
        return POWER - float(scipy.stats.binom.pmf(counts, n, share) @ found)

    return float(scipy.optimize.brentq(lacking, 0.0, 1.0, xtol=1e-4)) if lacking(1.0) < 0 else 1.0


def testable(least: Sequence[float]) -> list[bool]:
    """Which tests of a family can reject at all, given the lower bound of each p-value.

    Tarone 1990 (Biometrics 46:515): find the smallest k for which at most k tests can reach 5%/k; these tests share the
    5%. The choice depends on how many items differ, not on their direction, so the 5% still holds.
    """
    chosen = ([p <= (1 - LEVEL) / k for p in least] for k in count(1))
    return next(some for k, some in enumerate(chosen, 1) if sum(some) <= k)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def equivalent(difference: Interval, margin: float) -> bool:
    """Whether the 95% interval lies within the margin on both sides: two one-sided tests at 2.5% (Schuirmann 1987)."""
    return -margin <= difference.low and difference.high <= margin


def no_worse(difference: Interval, margin: float = MARGIN) -> bool:
    """Whether the 95% interval excludes a loss of the margin or more: a one-sided test at 2.5%."""
    return difference.low > -margin


def verdict(comparison: Comparison) -> str:
    """Verdict: improved or regressed if p_holm < 5%; unchanged if all items agree; else inconclusive."""
    if comparison.p_holm < 1 - LEVEL:
        return "improved" if comparison.difference.value > 0 else "regressed"
    return "unchanged" if comparison.identical else "inconclusive"
