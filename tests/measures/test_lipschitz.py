"""Group norms and Lipschitz constants over margins, by explicit sums; options that all norms over margins share."""

import math

import numpy as np
import pytest
import torch
from measure_oracle import blobs, cnn, fitted, generator, mlp
from torch import nn

from flatminima import Minimum
from flatminima.errors import UsageError
from flatminima.measures import (
    distance_from_init,
    frobenius_norm,
    group_norm,
    lipschitz,
    margin,
    parameter_norm,
    path_norm,
    spectral_complexity,
    spectral_norm,
)


@pytest.fixture
def network():
    return fitted(mlp(4, 5, 3, 3), blobs(40, 4, 3)[0])


def _weights(minimum):
    return [m.weight.detach().numpy() for m in minimum.model if isinstance(m, nn.Linear)]


@pytest.mark.parametrize(("p", "q"), [(1, math.inf), (2, 2), (2, math.inf), (1.5, 3), (math.inf, 1)])
def test_group_norms_by_explicit_sums(network, p, q):
    """Catches rows and columns swapped, p and q swapped, and the width's exponent with the wrong sign."""
    gamma = float(margin(network))

    def power(values, order):
        return max(values) if order == math.inf else sum(v**order for v in values) ** (1 / order)

    product = math.prod(power([power(list(abs(row)), p) for row in w], q) ** 2 for w in _weights(network))
    found = group_norm(network, p=p, q=q)
    assert found.value == pytest.approx(math.log(product / gamma**2), rel=1e-10)
    exponent = 2 * max(1 - (0 if p == math.inf else 1 / p) - (0 if q == math.inf else 1 / q), 0)
    capacity = product * 4**3 * (5 * 3) ** exponent / gamma**2
    assert group_norm(network, p=p, q=q, normalise="capacity").value == pytest.approx(math.log(capacity), rel=1e-10)


def test_the_2_2_norm_is_frobenius(network):
    for normalise in ("figure", "capacity"):
        found = group_norm(network, p=2, q=2, normalise=normalise)
        assert found.value == pytest.approx(frobenius_norm(network, normalise=normalise).value, rel=1e-12)


@pytest.mark.parametrize("p", [0.5, math.nan])
def test_group_norms_below_1_are_refused(network, p):
    with pytest.raises(UsageError, match="at least 1"):
        group_norm(network, p=p)


def test_lipschitz_constants_of_an_mlp(network):
    gamma = float(margin(network))
    two = math.prod(np.linalg.norm(w, 2) for w in _weights(network))
    infinity = math.prod(np.linalg.norm(w, np.inf) for w in _weights(network))
    assert lipschitz(network).value == pytest.approx(math.log(two / gamma), rel=1e-10)
    found = lipschitz(network, norm="inf")
    assert found.value == pytest.approx(math.log(infinity / gamma), rel=1e-10)
    assert found.details["log_product"] == pytest.approx(found.details["log_constant"], rel=1e-12)
    assert not found.details["branches"]
    capacity = lipschitz(network, norm="inf", normalise="capacity").value
    assert capacity == pytest.approx(4 * math.log(infinity / gamma), rel=1e-10)  # 4 inputs


def test_half_the_spectral_norm_is_the_lipschitz_constant_of_a_chain(network):
    assert 2 * lipschitz(network).value == pytest.approx(spectral_norm(network, normalise="figure").value, rel=1e-12)


def test_a_convolution_counts_as_what_it_does_to_the_image():
    """Stride and padding, against the network's Jacobian; the kernel's own matrix is another option, and differs."""
    minimum = fitted(cnn(), torch.randn(30, 2, 7, 6, generator=generator(8), dtype=torch.float64))
    first, norm, _, second, *_, head = minimum.model
    zero = torch.zeros(1, 2, 7, 6, dtype=torch.float64)
    inner = torch.zeros_like(first(zero))
    matrices = [
        torch.func.jacrev(lambda t: norm(first(t)))(zero).reshape(-1, 84),
        torch.func.jacrev(second)(inner).reshape(-1, inner.numel()),
        head.weight,
    ]
    two = [float(torch.linalg.svdvals(m.detach())[0]) for m in matrices]
    found = spectral_norm(minimum, over_margin=False, normalise="figure")
    assert found.value == pytest.approx(2 * math.log(math.prod(two)), rel=1e-8)
    assert found.details["residual"] < 1e-4
    widths = [len(m) for m in matrices]
    found = spectral_norm(minimum, over_margin=False)
    assert found.value == pytest.approx(2 * math.log(math.prod(two)) + math.log(math.prod(widths)), rel=1e-8)
    scale = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
    kernels = [first.weight.detach().flatten(1) * scale.unsqueeze(1), second.weight.detach().flatten(1), head.weight]
    product = math.prod(float(torch.linalg.svdvals(k.detach())[0]) ** 2 for k in kernels)
    found = spectral_norm(minimum, over_margin=False, normalise="figure", convolutions="kernel")
    assert found.value == pytest.approx(math.log(product), rel=1e-10)


def test_a_batchnorm_without_a_layer_before_it_is_named():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 3)).double().eval()
    with torch.no_grad():
        net[2].running_var.fill_(4.0)
    minimum = fitted(net, blobs(20, 4, 3)[0])
    for function in (frobenius_norm, group_norm, spectral_norm, lipschitz):
        assert function(minimum).details["diagonal"] == ["2"]
    found = lipschitz(minimum).details["layers"]
    assert found["1: 2"] == pytest.approx(1 / math.sqrt(4.0 + 1e-5), rel=1e-12)


@pytest.mark.parametrize("function", [frobenius_norm, group_norm, lipschitz, path_norm, spectral_norm])
def test_without_the_margin_a_regression_has_norms(network, function):
    x, _ = blobs(10, 4, 3)
    regression = Minimum(network.model, (x, torch.zeros(10, 3).double()), "mse")
    assert "not classes" in function(regression).undefined
    log_gamma = math.log(float(margin(network)))
    times = 1 if function is lipschitz else 2
    expected = function(network).value + times * log_gamma
    assert function(regression, over_margin=False).value == pytest.approx(expected, rel=1e-12)


def test_a_dead_layer_has_no_lipschitz_constant():
    model = mlp(3, 4, 2)
    with torch.no_grad():
        model[0].weight.zero_()
    minimum = fitted(model, blobs(9, 3, 2)[0])
    assert "layer of zeros" in lipschitz(minimum).undefined


def test_unknown_options_are_refused(network):
    with pytest.raises(UsageError, match="'2' or 'inf'"):
        lipschitz(network, norm="1")
    with pytest.raises(UsageError, match="'operator' or 'kernel'"):
        spectral_norm(network, convolutions="fft")


@pytest.mark.parametrize("function", [frobenius_norm, spectral_norm])
def test_balanced_products_are_sums_of_equal_layers(network, function):
    """d (prod / gamma^2)^(1/d)."""
    product = math.exp(function(network, normalise="figure").value)
    found = function(network, normalise="balanced")
    assert found.value == pytest.approx(math.log(3 * product ** (1 / 3)), rel=1e-10)


def test_spectral_complexity_by_dense_algebra(network):
    gamma, weights = float(margin(network)), _weights(network)
    product = math.prod(np.linalg.norm(w, 2) ** 2 for w in weights) / gamma**2
    ranks = [np.linalg.norm(w) ** 2 / np.linalg.norm(w, 2) ** 2 for w in weights]
    found = spectral_complexity(network)
    assert found.value == pytest.approx(math.log(product * sum(ranks)), rel=1e-10)
    assert found.details["ratio_sum"] == pytest.approx(sum(ranks), rel=1e-10)
    other = mlp(4, 5, 3, 3, seed=9)
    moved = [
        np.linalg.norm(w - v.weight.detach().numpy()) ** 2 / np.linalg.norm(w, 2) ** 2
        for w, v in zip(weights, (m for m in other if isinstance(m, nn.Linear)), strict=True)
    ]
    for initial in (other, other.state_dict()):
        found = spectral_complexity(network, initial=initial)
        assert found.value == pytest.approx(math.log(product * sum(moved)), rel=1e-10)
    assert "every layer is at its initial weights" in spectral_complexity(network, initial=network.model).undefined


def test_initial_weights_are_seen_through_the_trained_batchnorm():
    """Both before and behind a convolution."""
    net = nn.Sequential(
        nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3)
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        net[0].running_var.fill_(4.0)
        net[3].running_var.fill_(9.0)
        net[3].weight.fill_(2.0)
    start = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
    start["0.weight"].fill_(3.0)
    minimum = fitted(net, torch.randn(30, 2, 4, 4, generator=generator(1), dtype=torch.float64))
    origin = spectral_complexity(minimum).details["ratios"]
    found = spectral_complexity(minimum, initial=start).details["ratios"]
    for name in list(origin)[1:]:
        assert found[name] == pytest.approx(origin[name], rel=1e-10)
    first = next(iter(origin))
    assert found[first] == pytest.approx(4 * origin[first], rel=1e-10)  # 1 - 3 for 1 - 0


def test_initial_weights_of_another_network_are_refused(network):
    with pytest.raises(UsageError, match=r"lack '0.weight'"):
        spectral_complexity(network, initial={})
    with pytest.raises(UsageError, match="same network"):
        spectral_complexity(network, initial=mlp(3, 5, 3, 3))
    net = nn.Sequential(nn.Conv2d(2, 3, (1, 2)), nn.Flatten(), nn.Linear(9, 3)).double().eval()
    turned = {name: p.transpose(2, 3) if p.dim() == 4 else p for name, p in net.state_dict().items()}
    with pytest.raises(UsageError, match=r"'0.weight' has the shape \(3, 2, 2, 1\), the network's \(3, 2, 1, 2\)"):
        images = torch.randn(30, 2, 1, 4, generator=generator(1), dtype=torch.float64)
        spectral_complexity(fitted(net, images), initial=turned, over_margin=False)


def test_the_norm_of_the_weights(network):
    found = parameter_norm(network)
    flat = np.concatenate([p.detach().numpy().ravel() for p in network.model.parameters()])
    assert found.value == pytest.approx(np.linalg.norm(flat), rel=1e-12)
    assert sum(v**2 for v in found.details["layers"].values()) == pytest.approx(found.value**2)


def test_the_spectral_distance_from_the_initial_weights():
    """Matrices alone, a kernel as one; catches biases and a Frobenius norm."""
    model, other = cnn(), cnn(seed=9)
    images = torch.randn(6, 2, 7, 6, generator=generator(8), dtype=torch.float64)
    minimum = Minimum(model, (images, torch.arange(6) % 3))
    start = other.state_dict()
    layers = {
        name: np.linalg.norm((p - start[name]).detach().flatten(1).numpy(), 2)
        for name, p in model.named_parameters()
        if p.dim() > 1
    }
    found = distance_from_init(minimum, initial=other, norm="spectral")
    assert found.value == pytest.approx(math.sqrt(sum(v**2 for v in layers.values())), rel=1e-10)
    assert found.details["layers"] == pytest.approx(layers, rel=1e-10)
    with pytest.raises(UsageError, match="'frobenius' or 'spectral'"):
        distance_from_init(minimum, initial=other, norm="max")
