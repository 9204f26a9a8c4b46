"""The noise that raises loss or error by 0.1, on landscapes with a closed form; error bars; Jiang et al.'s formulas."""

import math

import numpy as np
import pytest
import torch
from measure_oracle import Point, blobs, fitted, generator, landscape, mlp
from scipy.stats import norm
from torch import nn

from flatminima import Minimum
from flatminima.core.statistic import Fixed
from flatminima.errors import UsageError
from flatminima.measures import noise_complexity, noise_flatness
from flatminima.statistics import FlatWeights, Level, NoiseLevel, SampleCount, Weights

H = torch.tensor([3.0, 1.0, 2.0, 0.5], dtype=torch.float64)
W = [1.0, -2.0, 0.5, 0.0]


def _bowl():
    """Rise sigma^2 tr(H) / 2 whatever w, since the slope averages out."""
    x = torch.zeros(1, 4, dtype=torch.float64)
    return Minimum(Point(W), (x, torch.zeros(1)), lambda v, _: 0.5 * (H * (v - torch.tensor(W)).square()).sum(1))


def _many(draws=200, **options):
    return noise_flatness(_bowl(), rise="loss", draws=draws, **options)


def test_sigma_is_a_standard_deviation():
    """sigma^2 = 2 target / tr H. Catches a variance passed where a standard deviation belongs."""
    exact = math.log(float(H.sum()) / (2 * 0.1))
    found = _many()
    assert abs(found.value - exact) < 4 * found.stderr + 2e-3
    assert found.details["sigma"] == pytest.approx(math.sqrt(0.2 / 6.5), rel=0.05)
    assert found.details["slope"] == pytest.approx(2 * 0.1, rel=0.05)  # the rise is quadratic in sigma
    other = _many(target=0.4)
    assert other.value - found.value == pytest.approx(-math.log(4.0), abs=5e-3)  # the same draws, scaled


def test_noise_in_proportion_has_two_variances_added():
    """rise = sum h_i (sigma^2 w_i^2 + eps^2) / 2."""
    epsilon = 0.1
    weights = torch.tensor(W, dtype=torch.float64)
    sigma2 = (2 * 0.1 - float(H.sum()) * epsilon**2) / float((H * weights.square()).sum())
    found = _many(magnitude=True, epsilon=epsilon)
    assert abs(found.value + math.log(sigma2)) < 4 * found.stderr + 2e-3


def test_the_worst_case_of_a_bowl():
    """In the box |u_i| <= alpha the corner's rise is alpha^2 tr H / 2."""
    w = [v + 1e-3 for v in W]
    bowl = landscape(lambda v: 0.5 * (H * (v - torch.tensor(W)).square()).sum(1), w)
    found = noise_flatness(bowl, kind="worst", rise="loss", draws=1)
    assert found.value == pytest.approx(math.log(float(H.sum()) / 0.2), abs=0.02)
    assert found.stderr is None
    found = noise_flatness(bowl, kind="worst", rise="loss", draws=1, magnitude=True)
    sigma = found.details["sigma"]
    box = sigma * torch.tensor(w, dtype=torch.float64).abs() + 1e-3
    assert float(0.5 * (H * box.square()).sum()) == pytest.approx(0.1, rel=0.02)


class Threshold(nn.Module):
    """Logits (w x, 0): sample x > 0 of class 0 is wrong once w falls to 0."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return torch.cat([self.w * x, 0 * x], 1)


def test_the_error_rate_of_a_threshold():
    """P(1 + sigma z < 0) = 0.1 at sigma = 1 / 1.2816."""
    minimum = Minimum(Threshold(), (torch.ones(4, 1).double(), torch.zeros(4, dtype=torch.long)))
    found = noise_flatness(minimum, draws=200)
    exact = 2 * math.log(float(norm.isf(0.1)))
    assert abs(found.value - exact) < 4 * found.stderr + 2e-3
    assert found.stderr < 0.2


def test_intervals_cover_the_exact_level():
    exact = math.log(float(H.sum()) / 0.2)
    bowl = _bowl()
    found = [noise_flatness(bowl, rise="loss", draws=10, seed=s).interval() for s in range(200)]
    assert 0.90 <= sum(low <= exact <= high for low, high in found) / 200 <= 0.99


def test_the_network_is_as_it_was():
    minimum = fitted(mlp(4, 6, 3), blobs(30, 4, 3)[0])
    before = [p.detach().clone() for p in minimum.model.parameters()]
    for kind in ("random", "worst"):
        assert noise_flatness(minimum, kind=kind, draws=3).value is not None
    assert all(torch.equal(a, b) for a, b in zip(before, minimum.model.parameters(), strict=True))


def test_where_there_is_no_such_level():
    net, (x, _) = mlp(4, 3), blobs(12, 4, 3)
    assert "no error rate" in noise_flatness(Minimum(net, (x, torch.zeros(12, 3).double()), "mse")).undefined
    wrong = Minimum(net, (x, (net(x).argmax(1) + 1) % 3))
    assert "error is 1" in noise_flatness(wrong).undefined
    flat = landscape(lambda v: 0 * v.sum(1), [1.0])
    assert "no noise raises it" in noise_flatness(flat, rise="loss").undefined


@pytest.mark.parametrize(
    "options",
    [{"kind": "mean"}, {"rise": "accuracy"}, {"target": 0.0}, {"target": 1.0}, {"magnitude": True, "epsilon": 0.0}],
)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(UsageError):
        noise_flatness(Minimum(mlp(3, 3), blobs(9, 3, 3)), **options)


# -- the complexity ---------------------------------------------------------------------------------------------------


def _given(sigma, error, magnitude=False, kind="random"):
    weights = FlatWeights(torch.tensor([3.0, -4.0]).double(), ("w",), (2,))
    key = NoiseLevel(kind, 1e-3 if magnitude else None, "error", 0.1, 20, 500, 0)
    return Fixed({key: Level(math.log(sigma), error, 1.0, 9), Weights(): weights, SampleCount(): 1000})


def test_the_complexity_from_given_numbers():
    found = noise_complexity(_given(0.5, 0.01))
    assert found.value == pytest.approx(25 / (4 * 0.25) + math.log(1000 / 0.5) + 10)
    assert found.stderr == pytest.approx(0.01 * (25 / (2 * 0.25) + 1), rel=1e-6)
    assert found.details["distance"] == 5.0
    moved = noise_complexity(_given(0.5, 0.01), initial=torch.tensor([3.0, -1.0]))
    assert moved.value == pytest.approx(9 / (4 * 0.25) + math.log(1000 / 0.5) + 10)


def test_the_complexity_in_proportion():
    w, s, e = np.array([3.0, -4.0]), 0.5, 1e-3
    terms = np.log((e**2 + (s**2 + 1) * 25 / 2) / (e**2 + s**2 * w**2))
    found = noise_complexity(_given(0.5, 0.01, magnitude=True), magnitude=True)
    assert found.value == pytest.approx(terms.sum() / 4 + math.log(1000 / 0.5) + 10)


def test_the_complexity_of_the_worst_case():
    found = noise_complexity(_given(0.5, None, kind="worst"), kind="worst")
    assert found.value == pytest.approx(25 * math.log(4) / (4 * 0.25) + math.log(1000 / 0.5) + 10)
    assert found.stderr is None
    given = _given(0.5, None, magnitude=True, kind="worst")
    found = noise_complexity(given, kind="worst", magnitude=True)
    w, s, e = np.array([3.0, -4.0]), 0.5, 1e-3
    terms = np.log((e**2 + (s**2 + 4 * math.log(2 * 2 * 1000)) * 25 / 2) / (e**2 + s**2 * w**2))
    assert found.value == pytest.approx(terms.sum() / 4 + math.log(1000 / 0.5) + 10)


def test_a_real_network_end_to_end():
    model = mlp(4, 6, 3)
    minimum = fitted(model, torch.randn(60, 4, generator=generator(2), dtype=torch.float64))
    level = noise_flatness(minimum, draws=10)
    found = noise_complexity(minimum, draws=10)
    squared = sum(float(p.detach().square().sum()) for p in model.parameters())
    sigma = math.exp(-level.value / 2)
    assert found.value == pytest.approx(squared / (4 * sigma**2) + math.log(len(minimum.samples) / sigma) + 10)


def test_rtol_raises_the_draws():
    found = noise_flatness(_bowl(), rise="loss", draws=10, rtol=0.05)
    low, high = found.interval()
    assert found.details["rtol_reached"]
    assert found.details["n"] > 10
    assert (high - low) / 2 <= 0.05 * found.value


def test_the_worst_case_on_parts_of_the_data_has_an_error_bar():
    """Each part searches for itself; of all the data there is one search, and nothing drawn."""
    net, data = mlp(4, 8, 3), blobs(300, 4, 3)
    parts = noise_flatness(Minimum(net, data), kind="worst", rise="loss", draws=10, samples=30)
    assert parts.stderr > 0 and parts.details["error_of"] == "data"
    m = Minimum(net, data)
    whole = noise_flatness(m, kind="worst", rise="loss", draws=10, samples=300)
    assert whole.stderr is None and whole.details["error_of"] == "exact"
    once = noise_flatness(Minimum(net, data), kind="worst", rise="loss", draws=1, samples=300)
    assert whole.value == once.value
    assert abs(parts.value - whole.value) < 4 * parts.stderr
