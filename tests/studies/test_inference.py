"""Effects and their intervals: closed forms, another library's least squares, coverage and power on drawn runs."""

import math

import numpy as np
import pytest
from scipy import stats

from flatminima.errors import Undefined, UsageError
from flatminima.studies.inference import difference, holm, proportion, slope, two_lines

_REPEATS = 400


def _runs(values, seeds, *, effect=0.0, varies=0.0, noise=1.0, rng):
    x, blocks = np.tile(np.arange(values), seeds), np.repeat(np.arange(seeds), values)
    slopes = effect + varies * rng.standard_normal(seeds)
    y = 3 * rng.standard_normal(seeds)[blocks] + slopes[blocks] * x + noise * rng.standard_normal(values * seeds)
    return x.astype(float), y, blocks.tolist()


def test_the_slope_of_one_block_is_scipys():
    x, y, blocks = _runs(8, 1, effect=0.5, rng=np.random.default_rng(0))
    found, known = slope(x, y, blocks), stats.linregress(x, y)
    assert found.value == pytest.approx(known.slope) and found.stderr == pytest.approx(known.stderr)
    assert found.p_value() == pytest.approx(known.pvalue)


def test_the_slope_of_blocks_is_that_of_least_squares_with_a_level_each():
    x, y, blocks = _runs(5, 3, effect=0.5, rng=np.random.default_rng(1))  # alike: the F test pools them
    design = np.column_stack([x, *(np.equal(blocks, b).astype(float) for b in range(3))])
    coefficients, rss, *_ = np.linalg.lstsq(design, y, rcond=None)
    error = math.sqrt(rss[0] / (15 - 4) * np.linalg.inv(design.T @ design)[0, 0])
    found = slope(x, y, blocks)
    assert not found.varies
    assert (found.value, found.stderr, found.df) == (pytest.approx(coefficients[0]), pytest.approx(error), 11)


def test_the_difference_of_plain_pairs_is_the_paired_t_test():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 7))
    found, known = difference(a, b, range(7)), stats.ttest_rel(a, b)
    assert found.p_value() == pytest.approx(known.pvalue)
    assert found.interval() == pytest.approx(tuple(known.confidence_interval(0.95)))


def test_settings_have_their_own_differences():
    """With means of settings far apart the plain test would find nothing."""
    rng = np.random.default_rng(1)
    settings = np.tile(np.arange(4), 3)
    shift = 10.0 * settings + 0.1 * rng.standard_normal(12)
    found = difference(shift, [0.0] * 12, np.repeat(np.arange(3), 4).tolist(), settings.tolist())
    assert found.value == pytest.approx(15.0, abs=0.1) and found.stderr < 0.1


@pytest.mark.parametrize(("values", "seeds"), [(4, 3), (4, 5), (7, 3), (6, 1)])
def test_intervals_cover(values, seeds):
    """Binomial standard error of 400 repeats at 0.95 is 0.011."""
    rng, hits = np.random.default_rng(values * 10 + seeds), 0
    for _ in range(_REPEATS):
        low, high = slope(*_runs(values, seeds, effect=0.3, rng=rng)).interval()
        hits += low <= 0.3 <= high
    assert 0.92 <= hits / _REPEATS <= 0.99


def test_intervals_cover_where_slopes_differ_between_seeds():
    """Residuals alone would cover 0.7: they do not know that another seed has another slope."""
    rng, hits, plain = np.random.default_rng(0), 0, 0
    for _ in range(_REPEATS):
        x, y, blocks = _runs(6, 5, effect=0.3, varies=1.0, rng=rng)
        low, high = slope(x, y, blocks).interval()
        hits += low <= 0.3 <= high
        design = np.column_stack([x, *(np.equal(blocks, b).astype(float) for b in range(5))])
        coefficients, rss, *_ = np.linalg.lstsq(design, y, rcond=None)
        plain += abs(coefficients[0] - 0.3) <= 2.06 * math.sqrt(rss[0] / 24 * np.linalg.inv(design.T @ design)[0, 0])
    assert hits / _REPEATS >= 0.91 and plain / _REPEATS < 0.85


def test_power_is_the_share_of_runs_that_find_the_effect():
    rng, found, told = np.random.default_rng(7), 0, []
    for _ in range(_REPEATS):
        effect = slope(*_runs(6, 2, effect=0.4, rng=rng))
        found += effect.p_value() < 0.05
        told.append(effect.power(0.4))
    assert found / _REPEATS == pytest.approx(float(np.mean(told)), abs=0.08)
    assert 0.3 < found / _REPEATS < 0.95


def test_equivalence_is_rare_where_the_effect_is_the_margin_and_common_where_there_is_none():
    rng = np.random.default_rng(8)
    wrong = sum(slope(*_runs(6, 3, effect=0.5, rng=rng)).equivalent(0.5) < 0.05 for _ in range(_REPEATS))
    right = sum(slope(*_runs(6, 3, effect=0.0, rng=rng)).equivalent(0.5) < 0.05 for _ in range(_REPEATS))
    assert wrong / _REPEATS < 0.08 and right / _REPEATS > 0.5
    with pytest.raises(UsageError, match="margin"):
        slope(*_runs(6, 3, rng=rng)).equivalent(0.0)


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [
        (lambda x: 0 * x, 0.0, 0.05),
        (lambda x: -x, 0.0, 0.02),
        (lambda x: np.maximum(3 - x, 0), 0.0, 0.06),
        (lambda x: 0.3 * abs(x - 3), 0.9, 1.0),
    ],
)
def test_a_vertex_is_found_where_there_is_one(shape, low, high):
    rng, found, places = np.random.default_rng(0), 0, 0
    for _ in range(_REPEATS):
        x, y, blocks = _runs(7, 5, noise=0.3, rng=rng)
        vertex = two_lines(x, y + shape(x), blocks)
        found += vertex.before.p_below() < 0.025 and vertex.after.p_above() < 0.025
        places += vertex.low <= 3 <= vertex.high
    assert low <= found / _REPEATS <= high
    if low > 0.5:
        assert places / _REPEATS > 0.9


def test_holm_is_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_a_share_of_three_in_three_is_not_certain():
    assert proportion(3, 3) == (pytest.approx(0.025 ** (1 / 3)), 1.0)
    assert proportion(0, 3) == (0.0, pytest.approx(1 - 0.025 ** (1 / 3)))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (([0, 1, 2, 3], [1.0, 2.0, 3.0, 4.0], [0] * 4), "spread"),  # no interval of no width
        (([0, 0, 0, 0], [1.0, 2.0, 1.5, 4.0], [0] * 4), "vary"),
        (([0, 1], [1.0, 2.0], [0, 0]), "needs"),
        (([0, 1], [1.0, 2.0], [0, 1]), "block of two"),
        (([], [], []), "block of two"),
    ],
)
def test_what_no_interval_can_be_told_of_is_undefined(values, reason):
    with pytest.raises(Undefined, match=reason):
        slope(*values)


def test_pairs_that_all_differ_alike_are_undefined():
    with pytest.raises(Undefined, match="spread"):
        difference([1.0, 2.0, 3.0], [0.0, 1.0, 2.0], range(3))
    with pytest.raises(Undefined, match="more pairs"):
        difference([1.0], [0.0], [0])
    with pytest.raises(UsageError, match="NaN"):
        difference([1.0, math.nan], [0.0, 0.0], [0, 1])
    with pytest.raises(UsageError, match="one of each"):
        slope([1.0], [1.0, 2.0], [0, 0])
