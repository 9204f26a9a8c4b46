"""Paired comparisons against enumeration and scipy: exact p, coverage of the interval, power of the promised
samples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binom, multinomial, ttest_rel

from flatminima.errors import UsageError
from flatminima.ranking import compare_errors, compare_losses
from flatminima.ranking.paired import tango


def wrong(n: int, *spans: tuple[int, int]) -> list[np.ndarray]:
    """Candidates that err on the samples start ... stop."""
    return [(np.arange(n) >= start) & (np.arange(n) < stop) for start, stop in spans]


def test_p_is_the_binomial_tail_of_the_discordant_samples() -> None:
    """Would catch a test of marginal errors, in which the samples both get wrong count."""
    found = compare_errors(wrong(1000, (0, 110), (100, 113)))[0]  # 100 only first, 3 only second, 10 both
    assert (found.only_first, found.only_second) == (100, 3)
    assert found.p == pytest.approx(2 * binom.cdf(3, 103, 0.5), rel=1e-9)
    assert found.difference == pytest.approx(-0.097) and found.told_apart
    same = compare_errors(wrong(50, (0, 5), (0, 5)))[0]
    assert (same.p, same.difference, same.further, same.told_apart) == (1.0, 0.0, None, False)


def test_many_candidates_pay_for_the_choice() -> None:
    """One pair in ten has p times 45 and an interval as wide as that needs; would catch the best of many called
    better."""
    two = compare_errors(wrong(200, (0, 10), (10, 30)))[0]
    ten = compare_errors(wrong(200, (0, 10), (10, 30), *[(30 + i, 45 + i) for i in range(8)]))[0]
    assert ten.p == pytest.approx(min(1.0, 45 * two.p)) and ten.low < two.low and ten.high > two.high
    assert len(compare_errors(wrong(20, (0, 1), (1, 2), (2, 3)))) == 3


def test_the_interval_covers_at_its_level() -> None:
    """Exact coverage by enumeration of all tables of 40 samples; Wald's interval would cover 0.89 at the first."""
    n = 40
    tables = [(b, c) for b, c in itertools.product(range(n + 1), repeat=2) if b + c <= n]
    intervals = {t: tango(t[1], t[0], n, 0.05) for t in tables if t[0] + t[1] <= 20}
    for p_first, p_second in ((0.02, 0.05), (0.1, 0.1), (0.05, 0.2)):
        law = multinomial(n, [p_first, p_second, 1 - p_first - p_second])
        covered = sum(
            law.pmf([b, c, n - b - c])
            for (b, c), (low, high) in intervals.items()
            if low - 1e-9 <= p_second - p_first <= high + 1e-9
        )
        assert 0.93 <= covered <= 1.0, (p_first, p_second, covered)


def test_the_interval_turns_with_the_candidates() -> None:
    low, high = tango(12, 3, 100, 0.01)
    assert tango(3, 12, 100, 0.01) == pytest.approx((-high, -low))
    assert tango(0, 0, 30, 0.05)[0] == pytest.approx(-tango(0, 0, 30, 0.05)[1])
    assert low < 0.09 < high


def test_the_promised_samples_tell_apart_four_times_in_five() -> None:
    """Simulated at the rates seen: the exact test finds the difference in 70 to 90 of 100 (it is a little
    conservative)."""
    found = compare_errors(wrong(300, (0, 9), (5, 21)))[0]
    assert not found.told_apart and found.further is not None
    n, rng = found.n + found.further, np.random.default_rng(0)
    rates = [found.only_first / found.n, found.only_second / found.n]
    draws = rng.multinomial(n, [*rates, 1 - sum(rates)], size=400)
    hits = [2 * binom.cdf(min(b, c), b + c, 0.5) < 0.05 for b, c, _ in draws]
    assert 0.7 <= np.mean(hits) <= 0.9


def test_losses_are_compared_by_paired_t() -> None:
    rng = np.random.default_rng(1)
    one = rng.exponential(size=80)
    other = one + rng.normal(0.1, 0.2, size=80)
    found = compare_losses([one, other])[0]
    assert found.p == pytest.approx(ttest_rel(one, other).pvalue)
    interval = ttest_rel(other, one).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert compare_losses([one, one])[0].further is None
    assert compare_losses([one, one + 0.5])[0].told_apart


@pytest.mark.parametrize("values", [[np.zeros(3, bool), np.zeros(4, bool)], [np.zeros(0, bool)] * 2])
def test_other_samples_cannot_be_paired(values: list[np.ndarray]) -> None:
    with pytest.raises(UsageError, match="give the same of each"):
        compare_errors(values)
