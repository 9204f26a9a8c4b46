"""Granulated tau, conditional information and the worst environment against definitions written out by brute force."""

import io
import itertools
import math

import numpy as np
import pytest

from flatminima.errors import UsageError
from flatminima.estimate import Estimate
from flatminima.ranking import controlled, order, probabilities, rank
from flatminima.ranking.table import render_correlations
from flatminima.table import MeasureTable

GRID = [{"width": w, "lr": r, "wd": d} for w in (1, 2, 3) for r in (0.1, 0.2) for d in (0, 1)]


def sign(x):
    return int(x > 0) - int(x < 0)


def random_zoo(seed, ties=False):
    rng = np.random.default_rng(seed)
    values, gaps = rng.normal(size=len(GRID)), rng.normal(size=len(GRID))
    return (values.round(), gaps.round()) if ties else (values, gaps)


def brute_psi(values, gaps, name):
    """Jiang et al. eq. 5: tau within each group in which only `name` varies, averaged over the groups."""
    taus = []
    for rest in {tuple(v for k, v in p.items() if k != name) for p in GRID}:
        group = [i for i, p in enumerate(GRID) if tuple(v for k, v in p.items() if k != name) == rest]
        pairs = [(i, j) for i in group for j in group if i < j and gaps[i] != gaps[j]]
        if pairs:
            taus.append(np.mean([sign(values[i] - values[j]) * sign(gaps[i] - gaps[j]) for i, j in pairs]))
    return np.mean(taus)


def brute_information(values, gaps, given):
    """I(V_mu; V_g | U_S) / H(V_g | U_S) from the table of ordered pairs."""
    rows = [
        (tuple((GRID[i][n], GRID[j][n]) for n in given), sign(values[i] - values[j]), sign(gaps[i] - gaps[j]))
        for i, j in itertools.permutations(range(len(GRID)), 2)
        if gaps[i] != gaps[j]
    ]
    information = entropy = 0.0
    for u in {r[0] for r in rows}:
        sub = [r for r in rows if r[0] == u]
        weight = len(sub) / len(rows)
        for b in {r[2] for r in sub}:
            pb = sum(r[2] == b for r in sub) / len(sub)
            entropy -= weight * pb * math.log(pb)
            for a in {r[1] for r in sub}:
                pa = sum(r[1] == a for r in sub) / len(sub)
                pab = sum(r[1] == a and r[2] == b for r in sub) / len(sub)
                if pab:
                    information += weight * pab * math.log(pab / (pa * pb))
    return information / entropy if entropy else None


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_all_three_are_their_definitions(seed, ties):
    values, gaps = random_zoo(seed, ties)
    found = controlled(values, gaps, GRID)
    psi = {name: brute_psi(values, gaps, name) for name in GRID[0]}
    assert found.by_hyperparameter == pytest.approx(psi)
    assert found.granulated == pytest.approx(np.mean(list(psi.values())))
    given = [s for k in range(3) for s in itertools.combinations(GRID[0], k)]
    information = [v for s in given if (v := brute_information(values, gaps, s)) is not None]
    assert found.conditional == pytest.approx(min(information), abs=1e-12)
    assert brute_information(values, gaps, found.given) == pytest.approx(found.conditional, abs=1e-12)
    errors = {}
    for i, j in itertools.combinations(range(len(GRID)), 2):
        different = [n for n in GRID[0] if GRID[i][n] != GRID[j][n]]
        if len(different) == 1 and gaps[i] != gaps[j]:
            key = (different[0], *sorted((GRID[i][different[0]], GRID[j][different[0]]), key=repr))
            wrong = abs(sign(values[i] - values[j]) - sign(gaps[i] - gaps[j])) / 2
            errors.setdefault(key, []).append(wrong)
    means = {k: np.mean(v) for k, v in errors.items()}
    assert found.worst == pytest.approx(max(means.values())) and found.environments == len(means)
    assert means[found.environment] == pytest.approx(found.worst)


def test_a_perfect_measure_and_its_opposite():
    gaps = np.random.default_rng(0).normal(size=len(GRID))
    right, wrong = controlled(gaps, gaps, GRID), controlled(-gaps, gaps, GRID)
    assert (right.granulated, right.conditional, right.worst) == (1.0, pytest.approx(1.0), 0.0)
    assert (wrong.granulated, wrong.worst) == (-1.0, 1.0)
    assert wrong.conditional == pytest.approx(1.0), "information does not know the sign, as in the paper"


def test_a_measure_that_only_follows_the_width_is_found_out():
    """Its plain tau is high, because the gap follows the width too; held fixed, the width leaves it nothing."""
    rng = np.random.default_rng(1)
    gaps = np.array([10 * p["width"] for p in GRID]) + rng.normal(size=len(GRID))
    width = np.array([float(p["width"]) for p in GRID])
    found = controlled(width, gaps, GRID)
    assert found.by_hyperparameter["width"] == 1.0 and found.by_hyperparameter["lr"] == 0.0
    assert found.conditional == pytest.approx(0.0, abs=1e-12) and "width" in found.given and found.worst == 0.5


def test_what_has_no_pairs_is_undefined():
    found = controlled([1.0, 2.0], [1.0, 2.0], [{"a": 0, "b": 0}, {"a": 1, "b": 1}])
    assert found.granulated is None and found.worst is None and "one hyper-parameter alone" in found.undefined
    assert controlled([1, 2], [3, 3], [{"a": 0}, {"a": 1}]).undefined


@pytest.mark.parametrize(
    ("values", "gaps", "points", "words"),
    [
        ([1.0], [1.0, 2.0], [{"a": 1}], "one of each"),
        ([], [], [], "one of each"),
        ([float("nan"), 1.0], [1.0, 2.0], [{"a": 1}, {"a": 2}], "NaN or Inf"),
        ([1.0, 2.0], [1.0, 2.0], [{"a": 1}, {"b": 2}], "same hyper-parameters"),
        ([1.0, 2.0], [1.0, 2.0], [{}, {}], "same hyper-parameters"),
    ],
)
def test_bad_input(values, gaps, points, words):
    with pytest.raises(UsageError, match=words):
        controlled(values, gaps, points)


# -- in the table ----------------------------------------------------------------------------------------------------


def tables(**columns):
    found = []
    for row in zip(*columns.values(), strict=True):
        estimates = [v if isinstance(v, Estimate) else Estimate(float(v)) for v in row]
        found.append(MeasureTable(dict(zip(columns, estimates, strict=True)), 1, 1, 0.0, 0.0, 0.0, "", ""))
    return found


def test_rank_scores_by_hyperparameters_where_they_are_given():
    values, gaps = random_zoo(3)
    partly = [Estimate.missing("no") if i == 4 else Estimate(float(v)) for i, v in enumerate(values)]
    found = rank(tables(whole=values, partly=partly), gaps, hyperparameters=GRID)
    assert found.controlled["whole"] == controlled(values, gaps, GRID)
    keep = [i for i in range(len(GRID)) if i != 4]
    assert found.controlled["partly"] == controlled(values[keep], gaps[keep], [GRID[i] for i in keep])
    assert "granulated" in str(found) and max(map(len, str(found).splitlines())) <= 80
    assert found.to_pandas().loc["whole", "worst"] == found.controlled["whole"].worst
    assert found.to_dict()["whole"]["controlled"]["granulated"] == found.controlled["whole"].granulated
    assert "granulated" not in str(rank(tables(whole=values), gaps))
    with pytest.raises(UsageError, match="hyper-parameters of 1"):
        rank(tables(whole=values), gaps, hyperparameters=GRID[:1])


# -- one order -------------------------------------------------------------------------------------------------------


def test_measures_vote_by_their_ranks():
    found = order(tables(a=[1, 2, 3, 4], b=[1, 2, 3, 4], c=[2, 1, 4, 3]), list("pqrs"), ["a", "b", "c"])
    assert [p.name for p in found.places] == ["p", "q", "r", "s"]
    assert [p.rank for p in found.places] == pytest.approx([4 / 3, 5 / 3, 10 / 3, 11 / 3])
    assert found.agreement == pytest.approx(12 * ((np.array([4, 5, 10, 11]) - 7.5) ** 2).sum() / (9 * 60))
    assert all(p.low <= p.rank <= p.high for p in found.places)
    assert [p.best for p in found.places] == pytest.approx(probabilities([p.rank for p in found.places]).tolist())


def test_directions_are_respected():
    higher = [Estimate(v, direction="higher") for v in (1.0, 2.0)]
    assert [p.name for p in order(tables(m=higher), ["low", "high"], ["m"]).places] == ["high", "low"]


def test_noise_widens_the_interval():
    sure = [Estimate(v, stderr=1e-9) for v in (1.0, 1.1, 1.2)]
    unsure = [Estimate(v, stderr=1.0) for v in (1.0, 1.1, 1.2)]
    one, other = (order(tables(m=column), measures=["m"]).places[0] for column in (sure, unsure))
    assert (one.low, one.high) == (1.0, 1.0)
    assert other.high > 2


def test_measures_that_are_undefined_somewhere_do_not_vote():
    found = order(tables(a=[1, 2], b=[Estimate.missing("no"), Estimate(1.0)]), measures=["a", "b"])
    assert found.measures == ("a",)
    with pytest.raises(UsageError, match="defined: a"):
        order(tables(a=[1, 2], b=[Estimate.missing("no"), Estimate(1.0)]), measures=["b"])
    with pytest.raises(UsageError, match="two networks"):
        order(tables(a=[1]))


def test_the_order_fits_a_terminal():
    found = order(tables(path_norm=[3, 1, 2], margin=[1, 2, 3]), ["a/very/long/path/" + "x" * 60, "b", "c"])
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80 and "W = " in text
    assert found.to_dict()["places"][0]["name"] == found.places[0].name


def test_the_table_by_hyperparameters_breaks_no_word():
    """Two columns more had left "undecided" so little room that it was cut in the middle."""
    from rich.console import Console

    values, gaps = random_zoo(3)
    console = Console(width=80, record=True, file=io.StringIO())
    render_correlations(rank(tables(hessian_top_eigenvalue=values), gaps, hyperparameters=GRID), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = (line for line in lines if "hessian_top_eigenvalue" in line)
    assert row.split()[-1] in ("undecided", "yes", "no")
