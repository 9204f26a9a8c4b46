"""Conditions C1 to C3 by explicit products of matrices, and Theorem 1's right-hand side from them."""

import math

import numpy as np
import pytest
import torch
from measure_oracle import blobs, generator, mlp
from torch import nn

from flatminima import Minimum
from flatminima.bounds import neyshabur_score
from flatminima.errors import UsageError
from flatminima.measures import conditions, perturbation_score
from flatminima.statistics.conditions import sample_conditions as constants


def _minimum(*widths, n=9, seed=1):
    x, y = blobs(n, widths[0], widths[-1])
    return Minimum(mlp(*widths, bias=False, seed=seed), (x, y))


def _explicit(weights, x, strict=False):
    """1/mu, C2, C3 of one input of length 1, by definition and with every product formed anew."""
    x = x / np.linalg.norm(x)
    maps, signal, c2, c3, active = [x[:, None]], x, 0.0, 0.0, []
    for i, w in enumerate(weights):
        z = w @ signal
        # C2: the smallest constant with share(|z| <= t) <= C2 t at every t that matters
        c2 = max(c2, *(np.mean(np.abs(z) <= t) / t for t in np.abs(z)))
        d = np.diag((z > 0).astype(float)) if i + 1 < len(weights) else np.eye(len(z))
        c3 = max(c3, math.sqrt(len(w)) * np.linalg.norm(w, axis=1).max() / np.linalg.norm(d @ w))
        active.append(np.linalg.norm(d @ w))
        maps.append(d @ w)
        signal = maps[-1] @ signal

    def size(a, b):
        return np.linalg.norm(np.linalg.multi_dot([*maps[a : b + 1][::-1], np.eye(maps[a].shape[1])]))

    inverse = max(
        size(c + 1, b) * size(a, c) / (math.sqrt(len(maps[c])) * size(a, b))
        for a in range(len(maps))
        for b in range(a + 1, len(maps))
        for c in range(a + strict, b)
    ) if len(maps) > 1 + strict else 0.0  # fmt: skip
    return inverse, c2, c3, active, np.linalg.norm(signal)


def _each(minimum, **options):
    weights = [p.detach().numpy() for p in minimum.model.parameters()]
    return [_explicit(weights, x.numpy(), **options) for x in minimum.samples.inputs]


def test_the_constants_by_definition():
    """Catches the printed range a < c, |.| missing in C2, and a mask on the output layer."""
    minimum = _minimum(4, 6, 5, 3)
    rows = _each(minimum)
    found = conditions(minimum, samples=None)
    inverse = np.array([r[0] for r in rows])
    assert found.value == pytest.approx(np.log(inverse).mean(), rel=1e-9)
    assert found.stderr == pytest.approx(np.log(inverse).std(ddof=1) / 3, rel=1e-9)
    assert found.details["inverse_mu"] == pytest.approx(inverse.max(), rel=1e-9)
    assert found.details["c2"] == pytest.approx(max(r[1] for r in rows), rel=1e-9)
    assert found.details["c2_mean"] == pytest.approx(np.mean([r[1] for r in rows]), rel=1e-9)
    assert found.details["c3"] == pytest.approx(max(r[2] for r in rows), rel=1e-9)
    assert found.details["widths"] == [4, 6, 5, 3]
    assert np.mean([r[0] for r in _each(minimum, strict=True)]) < inverse.mean() * (1 - 1e-3)  # the erratum matters


def test_orthogonal_layers_meet_the_first_condition_with_one():
    """Of identities: ||I||_F = sqrt(h), so that products and their parts agree and 1/mu is 1."""
    found = constants([torch.eye(4).double(), torch.eye(4).double()], torch.full((1, 4), 0.5).double())
    assert float(found.inverse_mu) == pytest.approx(1.0, rel=1e-12)
    assert float(found.c2) == pytest.approx(2.0)  # all inputs of units are 1/2
    assert float(found.c3) == pytest.approx(1.0)


def test_theorem_1_from_the_same_constants():
    minimum = _minimum(4, 6, 5, 3)
    rows = _each(minimum)
    weights = [p.detach().numpy() for p in minimum.model.parameters()]
    mu, c2, c3 = 1 / max(r[0] for r in rows), max(r[1] for r in rows), max(r[2] for r in rows)
    active = np.min([r[3] for r in rows], axis=0)
    sigma = 0.01 * mu**2 * active / np.sqrt([4 * 6, 6 * 5, 5 * 3])
    expected = neyshabur_score(
        np.mean([r[4] for r in rows]), [np.linalg.norm(w) for w in weights], [4, 6, 5, 3], sigma, mu, c2, c3, 9, 0.1,
        lipschitz=2.0, active_frobenius=active,
    )  # fmt: skip
    found = perturbation_score(minimum, gamma=0.01, delta=0.1, lipschitz=2.0, samples=None)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.kind == "score"


def test_no_other_noise_is_better_than_the_one_found():
    minimum = _minimum(4, 6, 5, 3)
    best = perturbation_score(minimum, samples=None)
    for factor in (0.1, 0.5, 0.98, 1.02, 2.0, 10.0):
        other = perturbation_score(minimum, gamma=factor * best.details["gamma"], samples=None)
        assert other.undefined or other.value > best.value * (1 - 1e-9)


def test_scaling_weights_changes_no_condition_but_the_second():
    """C1 and C3 compare products of the same layers."""
    one, two = _minimum(4, 6, 3), _minimum(4, 6, 3)
    with torch.no_grad():
        two.model[0].weight *= 3.0
        two.model[2].weight /= 3.0
    first, second = conditions(one, samples=None), conditions(Minimum(two.model, blobs(9, 4, 3)), samples=None)
    assert second.value == pytest.approx(first.value, rel=1e-9)
    assert second.details["c3"] == pytest.approx(first.details["c3"], rel=1e-9)


def test_images_are_flattened():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)).double()
    x = torch.randn(6, 3, 2, 2, generator=generator(0), dtype=torch.float64)
    flat = conditions(Minimum(net[1:], (x.flatten(1), torch.arange(6) % 3)), samples=None)
    assert conditions(Minimum(net, (x, torch.arange(6) % 3)), samples=None).value == pytest.approx(flat.value)


def _linear(*shape):
    return nn.Linear(*shape, bias=False)


OTHERS = {
    "biases": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), (4,), "no biases"),
    "leaky": (lambda: nn.Sequential(_linear(4, 5), nn.LeakyReLU(), _linear(5, 3)), (4,), "relu"),
    "linear": (lambda: nn.Sequential(_linear(4, 5), _linear(5, 3)), (4,), "relu"),
    "convolution": (
        lambda: nn.Sequential(nn.Conv1d(1, 2, 3, bias=False), nn.ReLU(), nn.Flatten(), _linear(4, 3)), (1, 4),
        "is a convolution",
    ),
    "sigmoid": (lambda: nn.Sequential(_linear(4, 5), nn.Sigmoid(), _linear(5, 3)), (4,), "sigmoid"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("function", [conditions, perturbation_score])
def test_other_networks_are_undefined(function, name):
    make, shape, reason = OTHERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
    x = torch.randn(5, *shape, generator=generator(1), dtype=torch.float64)
    assert reason in function(Minimum(model, (x, torch.arange(5) % 3))).undefined


def test_degenerate_samples_are_undefined_not_infinite():
    net = mlp(3, 4, 2, bias=False)
    zero = Minimum(net, (torch.zeros(2, 3).double(), torch.tensor([0, 1])))
    assert "all zeros" in conditions(zero).undefined
    with torch.no_grad():
        net[0].weight[0] = 0.0
    dead = Minimum(net, blobs(4, 3, 2))
    assert "exactly 0" in conditions(dead).undefined


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"delta": 1.0}, {"lipschitz": -1.0}, {"samples": 0}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(UsageError):
        perturbation_score(_minimum(4, 3), **options)


def test_intervals_cover_the_mean_of_all():
    net = mlp(3, 5, 3, bias=False)
    source = generator(7)
    x = torch.randn(1500, 3, generator=source, dtype=torch.float64)
    minimum = Minimum(net, (x, torch.randint(0, 3, (1500,), generator=source)))
    exact = conditions(minimum, samples=None).value
    found = [conditions(minimum, samples=30, seed=s).interval() for s in range(200)]
    assert 0.90 <= sum(low <= exact <= high for low, high in found) / 200 <= 0.99


def test_rtol_looks_at_more_samples():
    found = conditions(_minimum(4, 20, 3, n=400), samples=5, rtol=0.2)
    low, high = found.interval()
    assert found.details["rtol_reached"]
    assert found.details["n"] > 5
    assert (high - low) / 2 <= 0.2 * found.value
