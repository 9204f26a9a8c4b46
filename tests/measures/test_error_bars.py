"""Error bars: a nominal 95% interval covers the exact value in 90 to 99% of 200 repetitions; `rtol` delivers."""

import pytest
import torch
from measure_oracle import generator, randomise
from torch import nn

from flatminima import Minimum, measures
from flatminima.core.perturbation import Explicit, Gaussian
from flatminima.errors import UsageError
from flatminima.estimate import Estimate
from flatminima.measures._measure import MOST, until
from flatminima.statistics import InputJacobian

REPETITIONS = 200


def covered(intervals, exact):
    return sum(low <= exact <= high for low, high in intervals) / len(intervals)


def network():
    return randomise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), 3)


def population(n, seed=0):
    x = torch.randn(n, 3, generator=generator(seed), dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=generator(seed + 1))


@pytest.fixture(scope="module")
def fisher_repetitions():
    """The Fisher family on 200 data sets of 120 samples, and on the 24,000 samples together."""
    net, (x, y) = network(), population(120 * REPETITIONS)
    names = ("fisher_logdet", "fisher_trace", "fisher_frobenius", "fisher_spectral_radius")
    whole = Minimum(net, (x, y), batch_size=2000)
    exact = {name: getattr(measures, name)(whole, subset=4, trials=6000).value for name in names}
    found = {name: [] for name in names}
    for xs, ys in zip(x.split(120), y.split(120), strict=True):
        m = Minimum(net, (xs, ys))
        for name in names:
            found[name].append(getattr(measures, name)(m, subset=4, trials=30).interval())
    return found, exact


@pytest.mark.parametrize("name", ["fisher_logdet", "fisher_trace", "fisher_frobenius", "fisher_spectral_radius"])
def test_intervals_of_the_fisher_family_cover_the_population(fisher_repetitions, name):
    found, exact = fisher_repetitions
    assert 0.90 <= covered(found[name], exact[name]) <= 0.99


def test_intervals_of_robustness_cover_the_whole_data():
    net, data = network(), population(3000)
    m = Minimum(net, data, batch_size=3000)
    squares = m[InputJacobian(3000)].square()
    exact = float(squares.mean())
    assert measures.robustness(m, samples=3000).value == pytest.approx(exact, rel=1e-12)
    found = [measures.robustness(m, samples=60, seed=s).interval() for s in range(1, REPETITIONS + 1)]
    assert 0.90 <= covered(found, exact) <= 0.99


def test_intervals_of_expected_sharpness_cover_the_closed_form():
    """A linear network with squared loss: E L(w + u) - L(w) = sum_i H_ii sigma_i^2 / 2, whatever the samples."""
    net = nn.Linear(3, 1, bias=False).double()
    net.weight.data.copy_(torch.tensor([[0.5, -1.0, 2.0]]))
    x = torch.randn(50, 3, generator=generator(0), dtype=torch.float64)
    m = Minimum(net, (x, net(x).detach()), "mse")
    sigma = (0.1, 0.2, 0.3)
    exact = sum(s * s * float(h) for s, h in zip(sigma, x.square().mean(0), strict=True))
    noise = Gaussian(Explicit(torch.tensor(sigma, dtype=torch.float64)))
    found = [
        measures.expected_sharpness(m, perturbation=noise, draws=40, samples=50, seed=s).interval()
        for s in range(REPETITIONS)
    ]
    assert 0.90 <= covered(found, exact) <= 0.99


DRAWN = {"gamma": 0.1, "epsilon": 2.0, "rho": "norm", "samples": None}


@pytest.fixture(scope="module")
def pacgen_exact():
    """A minimum of 20 samples, and pacGen's mean over 600 draws of u."""
    m = Minimum(network(), population(20))
    return m, measures.pacgen(m, draws=600, seed=10_000, **DRAWN)


@pytest.mark.parametrize("draws", [2, 5])
def test_intervals_of_pacgen_cover_its_mean_over_draws(pacgen_exact, draws):
    """Student's t makes them honest even for the default's two draws of u."""
    m, exact = pacgen_exact
    assert exact.details["curvature_bound"] > 0.3
    found = [measures.pacgen(m, draws=draws, seed=s, **DRAWN).interval() for s in range(REPETITIONS)]
    assert 0.90 <= covered(found, exact.value) <= 0.99


@pytest.fixture(scope="module")
def divergences():
    """Of 200 draws of 60 samples and two of u, and the mean over u on all 500."""
    net, data = network(), population(500)
    m = Minimum(net, data, batch_size=500)
    exact = measures.sharpness_divergence(m, samples=None, draws=400, seed=10_000)
    return [measures.sharpness_divergence(m, samples=60, seed=s) for s in range(REPETITIONS)], exact


def test_intervals_of_the_sharpness_divergence_cover_all_the_data(divergences):
    """They count the draw of samples too: of u alone they covered 75%."""
    found, exact = divergences
    assert exact.details["error_of"] == "draws" and all(e.details["error_of"] == "both" for e in found)
    assert 0.90 <= covered([e.interval() for e in found], exact.value) <= 0.99


def test_a_given_rho_leaves_the_samples_to_draw():
    """Without u: each draw has samples of its own, and all the data nothing to draw."""
    net, data = network(), population(500)
    m = Minimum(net, data, batch_size=500)
    options = {"rho": 0.0, "epsilon": 20.0, "gamma": 0.0}
    exact = measures.pacgen(m, samples=None, **options)
    assert exact.stderr is None and exact.details["error_of"] == "exact" and exact.details["curvature_bound"] > 0.2
    found = [measures.pacgen(m, samples=100, draws=4, seed=s, **options) for s in range(REPETITIONS)]
    assert 0.90 <= covered([e.interval() for e in found], exact.value) <= 0.99
    assert found[0].details["error_of"] == "data"


@pytest.mark.parametrize("diagonal", ["hutchinson", "xdiag", "batch_gradient"])
def test_random_diagonals_are_drawn_anew_also_of_all_the_data(diagonal):
    m = Minimum(network(), population(60), batch_size=60)
    found = measures.pacgen(m, diagonal=diagonal, samples=None, epsilon=20.0, rho=0.0, batch=20)
    assert found.stderr > 0 and found.details["error_of"] == "data"


# -- rtol ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("expected_sharpness", {"draws": 8, "samples": 64, "alpha": 0.1}),
        ("robustness", {"samples": 20}),
        ("fisher_trace", {"subset": 5, "trials": 3}),
        ("fisher_frobenius", {"subset": 5, "trials": 3}),
        ("fisher_spectral_radius", {"subset": 5, "trials": 3}),
        ("fisher_logdet", {"subset": 5, "trials": 3}),
        ("pacgen", {"epsilon": 2.0, "draws": 2}),
    ],
)
def test_rtol_draws_until_the_interval_is_that_tight(name, options):
    m = Minimum(network(), population(2000), batch_size=2000)
    function = getattr(measures, name)
    loose = function(m, **options)
    low, high = loose.interval()
    rtol = 0.4 * (high - low) / 2 / abs(loose.value)
    if rtol >= 0.9:
        rtol = 0.5
    tight = function(m, **options, rtol=rtol)
    low, high = tight.interval()
    assert tight.details["rtol_reached"] and (high - low) / 2 <= rtol * abs(tight.value)
    assert tight.details["n"] > loose.details["n"]


def test_rtol_within_a_table_is_the_direct_call():
    from functools import partial

    from flatminima import measure

    function = partial(measures.expected_sharpness, draws=4, samples=50, alpha=0.02, rtol=0.1)
    data = population(200)
    (found,) = measure(Minimum(network(), data), [function]).values()
    assert found.value == function(Minimum(network(), data)).value


def test_rtol_stops_where_the_data_ends():
    m = Minimum(network(), population(40))
    found = measures.robustness(m, samples=10, rtol=1e-6)
    assert found.details["n"] == 40 and found.details["rtol_reached"] is False


def test_rtol_stops_at_its_cap():
    """A mean of 0 can never be relatively tight."""
    asked = []

    def estimate(k):
        asked.append(k)
        return Estimate(0.0, stderr=1.0, details={"n": k})

    found = until(0.1, 3, estimate)
    assert found.details["rtol_reached"] is False and asked[-1] == 3 * MOST and asked == sorted(set(asked))


def test_rtol_of_what_is_undefined_or_exact_draws_once():
    asked = []
    for result in (Estimate.missing("no"), Estimate(2.0)):
        asked.append(until(0.1, 5, lambda k, result=result: result))
    assert asked[0].undefined == "no" and asked[1].details["rtol_reached"] is True


@pytest.mark.parametrize("rtol", [0.0, 1.0, -1.0, float("nan")])
def test_rtol_outside_its_range(rtol):
    with pytest.raises(UsageError, match=r"in \(0, 1\)"):
        measures.robustness(Minimum(network(), population(40)), rtol=rtol)


# -- the interval itself ---------------------------------------------------------------------------------------------


def test_the_interval_uses_students_t():
    low, high = Estimate(0.0, stderr=1.0, details={"n": 2}).interval()
    assert high == pytest.approx(12.7062047362, rel=1e-9) and low == -high
    assert Estimate(0.0, stderr=1.0).interval()[1] == pytest.approx(1.959963985, rel=1e-9)
    assert Estimate(3.0).interval() == (3.0, 3.0)
    assert Estimate(0.0, stderr=1.0, details={"n": 31}).interval(0.5)[1] == pytest.approx(0.682755693, rel=1e-6)
    with pytest.raises(ValueError, match="undefined"):
        Estimate.missing("no").interval()
    with pytest.raises(ValueError, match="level"):
        Estimate(1.0).interval(1.0)
