"""A trace a layer: against dense float64 blocks, adding up to the value, for no pass more."""

import itertools
import json

import pytest
import torch
from measure_oracle import blobs, cnn, gradients, hessian, mlp
from torch import nn

from flatminima import Minimum, measure, measures
from flatminima.statistics import Gram, HessianProbes, MeanGradient, Moments, hutch_pp, xtrace
from flatminima.statistics.sketch import hutch_pp_blocks, xtrace_blocks


class Tied(nn.Module):
    """One weight in two places, and one that no layer owns."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3, bias=False)
        self.scale = nn.Parameter(torch.tensor([1.5, -0.5, 1.0]))

    def forward(self, x):
        return self.head(self.inner(self.inner(x).tanh())) * self.scale


def images(n):
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 2, 7, 6, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g)


N = 30
NETWORKS = {
    "mlp": lambda: (mlp(4, 5, 3), blobs(N, 4, 3)),
    "cnn": lambda: (cnn(), images(N)),
    "tied": lambda: (Tied().double().eval(), blobs(N, 4, 3)),
}
each = pytest.mark.parametrize("key", NETWORKS)


def made(key):
    torch.manual_seed(0)
    model, data = NETWORKS[key]()
    return model, data, Minimum(model, data, batch_size=7)


def blocks(model, vector):
    """Sums of a vector (W,) over each parameter."""
    names, parts = zip(*((name, p.numel()) for name, p in model.named_parameters()), strict=True)
    return dict(zip(names, [float(part.sum()) for part in vector.split(parts)], strict=True))


def agree(found, expected, rel=1e-9):
    layers = found.details["layers"]
    scale = max(map(abs, expected.values()))
    assert layers == {name: pytest.approx(value, rel=rel, abs=rel * scale) for name, value in expected.items()}
    assert sum(layers.values()) == pytest.approx(found.value, rel=1e-12)


@each
def test_fisher_and_gradient_variance_against_single_gradients(key):
    model, (x, y), minimum = made(key)
    g = gradients(model, x, y)
    fisher = measures.fisher_trace(minimum)
    agree(fisher, blocks(model, g.square().mean(0)))
    variance = measures.gradient_variance(minimum)
    agree(variance, blocks(model, g.square().mean(0) - g.mean(0).square()))
    sizes = [p.numel() for p in model.parameters()]
    spread = [float(part.square().sum(1).std() / N**0.5) for part in g.split(sizes, 1)]
    for found in (fisher, variance):
        assert list(found.details["layer_stderrs"].values()) == pytest.approx(spread, rel=1e-9)


@each
def test_sketches_that_span_the_curvature_against_its_dense_blocks(key):
    model, (x, y), minimum = made(key)
    diagonal = hessian(model, x, y).diagonal()
    for estimator in ("hutch++", "xtrace"):
        found = measures.hessian_trace(
            minimum, estimator=estimator, probes=3 * len(diagonal), groups=1, samples=None, seed=1
        )
        agree(found, blocks(model, diagonal), rel=1e-6)


@each
@pytest.mark.parametrize("options", [{}, {"probes": 5, "groups": 3}, {"estimator": "hutch++", "probes": 6}], ids=str)
def test_hutchinson_and_small_sketches_within_their_error_bars(key, options):
    model, (x, y), minimum = made(key)
    expected = blocks(model, hessian(model, x, y).diagonal())
    found = measures.hessian_trace(minimum, **options)
    layers, errors = found.details["layers"], found.details["layer_stderrs"]
    assert sum(layers.values()) == pytest.approx(found.value, rel=1e-11)
    for name, value in expected.items():
        assert abs(layers[name] - value) < 4.5 * errors[name] + 1e-9, name


@pytest.mark.parametrize("key", ["mlp", "cnn"])
def test_the_exact_gauss_newton_trace(key):
    """Of ReLU networks it is the Hessian's; of part of the data it has error bars, of all none."""
    model, (x, y), minimum = made(key)
    whole = measures.hessian_trace(minimum, curvature="gauss_newton", estimator="exact")
    agree(whole, blocks(model, hessian(model, x, y).diagonal()), rel=1e-8)
    assert whole.stderr is None and "layer_stderrs" not in whole.details and whole.details["error_of"] == "exact"
    part = measures.hessian_trace(minimum, curvature="gauss_newton", estimator="exact", samples=20)
    assert sum(part.details["layers"].values()) == pytest.approx(part.value, rel=1e-12)
    assert part.details["error_of"] == "data"
    for name, value in whole.details["layers"].items():
        assert abs(part.details["layers"][name] - value) < 4.5 * part.details["layer_stderrs"][name]


def test_gauss_newton_by_probes_has_layers_too():
    _, _, minimum = made("mlp")
    exact = measures.hessian_trace(minimum, curvature="gauss_newton", estimator="exact").details["layers"]
    found = measures.hessian_trace(minimum, curvature="gauss_newton", probes=4).details
    for name, value in exact.items():
        assert abs(found["layers"][name] - value) < 4.5 * found["layer_stderrs"][name]


def test_the_layers_cost_no_pass():
    """Gradients: one pass forward and one back; the Hessian's: those of its products."""
    _, _, minimum = made("cnn")
    assert minimum.follows_layers
    minimum.passes.forward = minimum.passes.backward = 0
    measures.fisher_trace(minimum)
    assert (minimum.passes.forward, minimum.passes.backward) == (N, N)
    measures.gradient_variance(minimum)
    assert (minimum.passes.forward, minimum.passes.backward) == (2 * N, 2 * N)
    measures.hessian_trace(minimum, probes=3)
    assert (minimum.passes.forward, minimum.passes.backward) == (3 * N, (3 + 2 * 3) * N)
    before = minimum.passes.backward
    measures.hessian_trace(minimum, curvature="gauss_newton", estimator="exact")
    assert minimum.passes.backward - before == 3 * N  # one a class


@pytest.mark.parametrize("options", [{"logit_norm": 5.0}, {"batchnorm": "batch"}], ids=str)
def test_variants_of_the_fisher_trace_have_the_networks_own_names(options):
    model, _, minimum = made("cnn")
    found = measures.fisher_trace(minimum, subset=10, **options)
    assert list(found.details["layers"]) == [name for name, _ in model.named_parameters()]
    assert sum(found.details["layers"].values()) == pytest.approx(found.value, rel=1e-9)


def test_frozen_parameters_have_no_part():
    model = mlp(4, 5, 3)
    model[0].requires_grad_(False)
    found = measures.fisher_trace(Minimum(model, blobs(N, 4, 3)))
    assert list(found.details["layers"]) == ["2.weight", "2.bias"]


def test_a_network_that_no_tape_can_follow():
    """One backward pass a sample; weights used behind their layer's back."""

    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x))) + x[:, :3] @ self.a.weight[:3, :3]

    torch.manual_seed(0)
    model, (x, y) = Behind().double().eval(), blobs(N, 4, 3)
    minimum = Minimum(model, (x, y))
    agree(measures.fisher_trace(minimum), blocks(model, gradients(model, x, y).square().mean(0)))
    assert not minimum.follows_layers


def test_merged_moments_are_those_of_all_the_values():
    values = {"a": torch.randn(40, dtype=torch.float64), "b": 1e8 + torch.randn(40, dtype=torch.float64)}
    names, cuts = ("a", "b", "silent"), (0, 7, 8, 40)
    total = Moments.of(names, {}, 0)
    for start, stop in itertools.pairwise(cuts):
        total += Moments.of(names, {k: v[start:stop] for k, v in values.items()}, stop - start)
    whole = Moments.of(names, values, 40)
    assert total.count == 40
    torch.testing.assert_close(total.mean, whole.mean, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(total.squares, whole.squares, rtol=1e-6, atol=1e-15)


def test_blocks_of_a_sketch_add_up_and_are_unbiased():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(12, 12, generator=g, dtype=torch.float64)
    matrix, sizes = a @ a.T, [5, 1, 6]
    truth = torch.stack([part.sum() for part in matrix.diagonal().split(sizes)])
    for blocked, whole in ((hutch_pp_blocks, hutch_pp), (xtrace_blocks, xtrace)):
        found = torch.stack([blocked(matrix, sizes, 8, seed)[0] for seed in range(400)])
        assert float(found[0, 0]) == pytest.approx(whole(matrix, 12, 8, 0)[0], rel=1e-12)
        torch.testing.assert_close(found[:, 1:].sum(1), found[:, 0], rtol=1e-12, atol=1e-12)
        error = found[:, 1:].std(0) / 20
        assert bool(((found[:, 1:].mean(0) - truth).abs() < 4 * error).all()), blocked


def test_they_are_in_json_and_in_one_sweep_with_the_rest():
    _, _, minimum = made("mlp")
    table = measure(minimum, ["fisher_trace", "gradient_variance", "hessian_trace"])
    document = json.loads(table.to_json())
    for name in table:
        details = document["measures"][name]["details"]
        assert details["layers"].keys() == details["layer_stderrs"].keys() == {k for k, _ in minimum.parameters}
    assert {Gram(100, 100, 0), MeanGradient(), HessianProbes(2, 1000, 0, "hessian", 50)} <= set(minimum)
