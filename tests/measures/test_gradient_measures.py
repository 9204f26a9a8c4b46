"""Fisher-Rao norm, gradient noise and signal against one backward pass a sample; identities; coverage of error bars."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from measure_oracle import blobs, cnn, generator, gradients, mlp, randomise
from torch import nn

from flatminima import Minimum, measures
from flatminima.core.statistic import Fixed
from flatminima.errors import UsageError
from flatminima.measures import fisher_rao_norm, gradient_noise_scale, gradient_signal_to_noise, gradient_variance
from flatminima.statistics import FisherDiagonal, Gram, GramMatrices, MeanGradient, RadialGradients

REPETITIONS = 200


def _flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


class Tied(nn.Module):
    """Token ids, an embedding tied with the head, a LayerNorm and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.words, self.norm, self.twice = nn.Embedding(6, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 6)
        self.head.weight = self.words.weight

    def forward(self, x):
        h = self.words(x).mean(1)
        return self.head(self.norm(self.twice(self.twice(h).tanh())))


NETWORKS = {
    "mlp": lambda: (mlp(4, 6, 3), *blobs(11, 4, 3)),
    "convolutions and BatchNorm": lambda: (
        cnn(), torch.randn(11, 2, 7, 6, generator=generator(3), dtype=torch.float64), torch.arange(11) % 3,
    ),
    "tied": lambda: (randomise(Tied(), 5), torch.randint(0, 6, (11, 5), generator=generator(4)), torch.arange(11) % 6),
}  # fmt: skip


@pytest.fixture(params=sorted(NETWORKS))
def case(request):
    return NETWORKS[request.param]()


def test_the_fisher_rao_norm_from_explicit_gradients(case):
    """Catches a layer that is forgotten, a bias, a weight that is used twice, and columns that run together."""
    model, x, y = case
    w, g = _flat(model), gradients(model, x, y)
    minimum = Minimum(model, (x, y), batch_size=4)
    assert fisher_rao_norm(minimum).value == pytest.approx(float((g @ w).square().mean().sqrt()), rel=1e-9)
    p = model(x).softmax(1).detach()
    every = torch.stack([gradients(model, x, torch.full_like(y, c)) @ w for c in range(p.shape[1])], 1)
    expected = float((p * every.square()).sum(1).mean().sqrt())
    assert fisher_rao_norm(minimum, labels="model").value == pytest.approx(expected, rel=1e-9)


def test_the_identity_of_homogeneous_networks():
    """Theorem 3.1: without biases <w, g> = d <dl/df, f>, whatever the hidden layers."""
    model = mlp(4, 6, 5, 3, bias=False)
    x, y = blobs(20, 4, 3)
    f = model(x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(f, y, reduction="sum"), f)
    expected = 3 * float((slope * f.detach()).sum(1).square().mean().sqrt())
    assert fisher_rao_norm(Minimum(model, (x, y))).value == pytest.approx(expected, rel=1e-10)


def test_it_is_a_norm_for_regression_too():
    """f = w x, l = (f - y)^2: <w, g> = 2 (f - y) f."""
    net = nn.Linear(1, 1, bias=False).double()
    net.weight.data.fill_(3.0)
    x, y = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[1.0], [5.0]]).double()
    expected = math.sqrt(((2 * 2 * 3) ** 2 + (2 * 1 * 6) ** 2) / 2)
    assert fisher_rao_norm(Minimum(net, (x, y), "mse")).value == pytest.approx(expected, rel=1e-12)


def test_noise_and_signal_from_explicit_gradients(case):
    model, x, y = case
    g = gradients(model, x, y)
    mean, n = g.mean(0), len(g)
    minimum = Minimum(model, (x, y), batch_size=4)
    trace = float((g - mean).square().sum() / n)
    scale = gradient_noise_scale(minimum, subset=n)
    assert scale.value == pytest.approx(trace / float(mean.square().sum()), rel=1e-9)
    assert scale.details["variance"] == pytest.approx(trace, rel=1e-9)
    assert gradient_variance(minimum, subset=n).value == pytest.approx(trace, rel=1e-9)
    variance = g.var(0, unbiased=False)
    varies = variance > 1e-12 * g.square().mean(0)
    ratio = (mean.square()[varies] / variance[varies]).mean()
    found = gradient_signal_to_noise(minimum)
    assert found.value == pytest.approx(float(ratio), rel=1e-6)
    assert found.direction == "higher"
    expected = {"parameters": int(varies.sum()), "constant": int((~varies).sum()), "error_of": "exact"}
    assert found.details == expected


def test_by_hand():
    """Gradients 1 and 3: mean 2, variance 1, noise scale 1/4, signal to noise 4."""
    gram = GramMatrices(torch.tensor([[[1.0, 3.0], [3.0, 9.0]]]).double(), torch.zeros(1, 2).double(), 1)
    given = Fixed(
        {
            Gram(2, 100, 0): gram,
            MeanGradient(): torch.tensor([2.0]).double(),
            FisherDiagonal(): torch.tensor([5.0]).double(),
        }
    )
    assert gradient_noise_scale(given, subset=2).value == 0.25
    assert gradient_variance(given, subset=2).value == 1.0
    assert gradient_signal_to_noise(given).value == 4.0


def test_a_gradient_that_vanishes_or_never_varies_is_undefined():
    gram = GramMatrices(torch.eye(2).double().unsqueeze(0), torch.zeros(1, 2).double(), 1)
    zero = Fixed({Gram(2, 100, 0): gram, MeanGradient(): torch.zeros(1).double()})
    assert "mean gradient is 0" in gradient_noise_scale(zero, subset=2).undefined
    same = Fixed({FisherDiagonal(): torch.tensor([4.0]).double(), MeanGradient(): torch.tensor([2.0]).double()})
    assert "same gradient" in gradient_signal_to_noise(same).undefined


@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)], ids=str)
@pytest.mark.parametrize("batch_size", [7, 60])
def test_what_is_constant_to_the_precision_is_left_out(dtype, allowed, batch_size):
    """A fresh head of 97 classes that never occur: their biases' gradient is 1/100 always, and float32 gave 1e7."""
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 100))
    randomise(net[0], 1)
    for p in net[2].parameters():
        nn.init.zeros_(p)
    x, y = torch.randn(60, 5, generator=generator(2)).to(dtype), torch.arange(60) % 3
    net.to(dtype)
    exact = gradient_signal_to_noise(Minimum(copy.deepcopy(net).double(), (x.double(), y)))
    found = gradient_signal_to_noise(Minimum(net, (x, y), batch_size=batch_size))
    assert found.value == pytest.approx(exact.value, rel=allowed)
    if dtype == torch.float32:
        assert found.details == exact.details


@pytest.mark.parametrize("batch_size", [7, 500])
def test_the_variance_of_equal_samples_is_within_its_rounding(batch_size):
    """In float32 1.4e-5 +- 8e-9 of a true 0: the samples' spread says nothing of it."""
    torch.manual_seed(3)
    net, x = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 3)), torch.randn(1, 4)
    minimum = Minimum(net, (x.expand(500, 4).contiguous(), torch.zeros(500, dtype=torch.long)), batch_size=batch_size)
    found = gradient_variance(minimum, subset=50)
    assert found.value <= 2 * found.stderr and found.stderr < 1e-4 * found.details["squared_gradient"]
    scale = gradient_noise_scale(minimum, subset=50)
    assert scale.value <= 2 * scale.stderr and scale.stderr < 1e-4


def test_squares_that_overflow_are_never_left_out():
    """Of inputs of 1e21 in float32, one number in three was finite, and their mean twice the measure."""
    x, y = blobs(30, 5, 3)
    minimum = Minimum(mlp(5, 8, 3).float(), (x.float() * 1e21, y))
    assert "squared gradients are not finite" in gradient_signal_to_noise(minimum).undefined
    assert "Gram matrices are not finite" in measures.fisher_logdet(minimum, subset=30).undefined
    assert "curvatures are not finite" in measures.sharpness_divergence(minimum).undefined


def test_options_outside_their_range_are_refused():
    minimum = Minimum(mlp(4, 3), blobs(9, 4, 3))
    with pytest.raises(UsageError, match="'data' or 'model'"):
        fisher_rao_norm(minimum, labels="true")


# -- error bars ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large():
    net = mlp(3, 5, 3)
    source = generator(7)
    x = torch.randn(20000, 3, generator=source, dtype=torch.float64)
    return Minimum(net, (x, torch.randint(0, 3, (20000,), generator=source)), batch_size=20000)


def covered(intervals, exact):
    return sum(low <= exact <= high for low, high in intervals) / len(intervals)


@pytest.mark.parametrize("labels", ["data", "model"])
def test_intervals_of_the_fisher_rao_norm(large, labels):
    exact = fisher_rao_norm(large, labels=labels, samples=None).value
    found = [fisher_rao_norm(large, labels=labels, samples=300, seed=s).interval() for s in range(1, REPETITIONS + 1)]
    assert 0.90 <= covered(found, exact) <= 0.99


@pytest.mark.parametrize("name", ["gradient_noise_scale", "gradient_variance"])
def test_intervals_of_the_noise(large, name):
    """The mean gradient is that of all the data; only the trace is sampled."""
    function = getattr(measures, name)
    exact = function(large, subset=100, trials=200).value
    found = [function(large, subset=20, trials=15, seed=s).interval() for s in range(1, REPETITIONS + 1)]
    assert 0.90 <= covered(found, exact) <= 0.99


def test_a_sample_of_all_is_all(large):
    assert torch.equal(large[RadialGradients(20000, 5)].sort().values, large[RadialGradients()].sort().values)


def test_rtol_delivers_or_says_that_it_did_not(large):
    found = fisher_rao_norm(large, samples=50, rtol=0.05)
    low, high = found.interval()
    assert found.details["rtol_reached"]
    assert (high - low) / 2 <= 0.05 * found.value
    assert found.details["n"] > 50
    assert not fisher_rao_norm(large, samples=50, rtol=1e-4).details["rtol_reached"]
