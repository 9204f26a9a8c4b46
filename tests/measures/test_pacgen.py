"""pacGen against the reference vectors, real minima with known curvature, and its option-level invariance."""

import math

import pytest
import torch
from measure_oracle import Point, blobs, fitted, gradients, hessian, landscape, mlp, vector

from flatminima import Minimum
from flatminima.core.perturbation import Relative, TruncatedGaussian, Uniform
from flatminima.core.statistic import Fixed
from flatminima.errors import UsageError
from flatminima.measures import pacgen
from flatminima.measures.pacgen import _slope
from flatminima.statistics import (
    BatchGradientSquares,
    Change,
    DiagonalChange,
    FisherDiagonal,
    FlatWeights,
    GaussNewtonDiagonal,
    HessianDiagonal,
    HessianProbes,
    PiecewiseLinearDiagonal,
    ProbedHessian,
    Redrawn,
    SampleCount,
    SketchedDiagonal,
    Weights,
)


def psi(w, h, gamma, epsilon, rho, eta=None):
    """Psi in plain Python, term by term."""
    total, root_m = 0.0, math.sqrt(len(w))
    for wi, hi in zip(w, h, strict=True):
        kappa = gamma * abs(wi) + epsilon
        curvature = hi + rho * root_m * kappa if eta is None else eta * (hi / 3 + rho * root_m * kappa / 9)
        total += math.log((abs(wi) + kappa) * max(math.sqrt(max(curvature, 0.0)), 1 / kappa))
    return total


def _weights(w):
    return FlatWeights(torch.tensor(w, dtype=torch.float64), ("w",), (len(w),))


def _given(w, h, key=None):
    fold, diagonal = key or GaussNewtonDiagonal(300, 0), torch.tensor(h, dtype=torch.float64)
    # 64 samples: there is nothing to draw, and the second draw is the first
    return Fixed({Weights(): _weights(w), SampleCount(): 64, fold: diagonal, Redrawn(fold, 1): diagonal})


@pytest.mark.parametrize("name", ["pacgen_quadratic", "pacgen_negative"])
def test_reference_vectors(name):
    inputs, expected = vector(name)
    found = pacgen(
        _given(inputs["w"], inputs["hess_diag"]), gamma=inputs["gamma"], epsilon=inputs["epsilon"], rho=inputs["rho"]
    )
    assert found.value == pytest.approx(expected["value"], rel=1e-9)
    assert found.stderr is None
    assert found.details["per_parameter"] == pytest.approx(expected["value"] / 4, rel=1e-9)
    assert found.details["negative_curvature"] == (0.25 if name == "pacgen_negative" else 0.0)


@pytest.mark.parametrize("name", ["pacgen_quadratic", "pacgen_negative"])
def test_reference_vectors_at_a_real_minimum(name):
    """L(w) = 1/2 sum h_i w_i^2 has this Hessian everywhere; the estimated rho is then 0 too."""
    inputs, expected = vector(name)
    h = torch.tensor(inputs["hess_diag"], dtype=torch.float64)
    minimum = landscape(lambda w: 0.5 * w.square() @ h, inputs["w"])
    options = {"gamma": inputs["gamma"], "epsilon": inputs["epsilon"], "diagonal": "exact"}
    for rho in (inputs["rho"], "zero", "norm", "paper"):
        assert pacgen(minimum, rho=rho, **options).value == pytest.approx(expected["value"], rel=1e-9)


def test_rescaling_reference_vector():
    inputs, expected = vector("pacgen_rescale_invariance")
    a = inputs["alpha"]
    options = {"gamma": inputs["gamma"], "epsilon": 0.0, "rho": "zero"}
    plain = pacgen(_given(inputs["w"], inputs["hess_diag"]), **options)
    other = pacgen(_given([a * w for w in inputs["w"]], [h / a**2 for h in inputs["hess_diag"]]), **options)
    assert plain.value == pytest.approx(expected["value"], rel=1e-9)
    assert other.value == pytest.approx(expected["rescaled"], rel=1e-9)


@pytest.mark.parametrize("rho", ["norm", "paper"])
def test_cubic_reference_vector(rho):
    """h_i = a_i + c w_i: |dh_i| / |u_i| = c for every draw of u (the paper's ratio); by the norm it is less."""
    inputs, expected = vector("rho_estimator_cubic")
    a, c = torch.tensor(inputs["a"], dtype=torch.float64), inputs["c"]
    minimum = landscape(lambda w: w.square() @ a / 2 + c / 6 * w.pow(3).sum(1), inputs["w"])
    found = pacgen(minimum, diagonal="exact", rho=rho, draws=3, seed=2, epsilon=1.0)
    us = [Uniform(Relative(1.0, 0.1, 1.0)).draw(torch.tensor(inputs["w"]).double(), 2, k) for k in range(3)]
    rhos = [expected["rho"] if rho == "paper" else c * float(u.abs().max() / u.norm()) for u in us]
    assert found.details["rho_draws"] == pytest.approx(rhos, rel=1e-8)
    assert found.details["rho"] == max(found.details["rho_draws"])
    h = (a + c * torch.tensor(inputs["w"]).double()).tolist()
    values = torch.tensor([psi(inputs["w"], h, 0.1, 1.0, r) for r in rhos], dtype=torch.float64)
    assert found.value == pytest.approx(float(values.mean()), rel=1e-8)
    assert found.stderr == pytest.approx(float(values.std() / math.sqrt(3)), rel=1e-4, abs=1e-9)


def test_erratum_w_m_the_papers_ratio_exceeds_every_lipschitz_constant():
    """f = w1^2 w2: h = (2 w2, 0), rho = 4/sqrt 3, and u = (1e-3, 1) makes the printed estimator 2000."""
    inputs, expected = vector("rho_estimator_mixed")
    u = torch.tensor(inputs["u"], dtype=torch.float64)
    change = torch.tensor([2 * inputs["u"][1], 0.0], dtype=torch.float64)
    moved = DiagonalChange.of(torch.zeros_like(change), change, u)
    assert _slope(moved, "paper") == pytest.approx(expected["paper_ratio"], rel=1e-9)
    assert _slope(moved, "norm") == pytest.approx(expected["lower_bound_with_norm"], rel=1e-9)
    assert _slope(moved, "norm") <= expected["true_rho"]


def test_the_norm_estimator_stays_below_the_lipschitz_constant_of_a_real_landscape():
    inputs, expected = vector("rho_estimator_mixed")
    minimum = landscape(lambda w: w[:, 0].square() * w[:, 1], inputs["w"])
    for seed in range(5):
        found = pacgen(minimum, diagonal="exact", rho="norm", draws=4, seed=seed)
        assert 0 < found.details["rho"] <= expected["true_rho"]
        u = Uniform(Relative(1.0, 0.1, 0.1)).draw(torch.tensor(inputs["w"]).double(), seed, 0)
        assert found.details["rho_draws"][0] == pytest.approx(2 * float(u[1].abs() / u.norm()), rel=1e-8)


def test_lemma3_variant_weights_rho_by_a_third_and_carries_eta():
    """Erratum W-j; a value of rho given as a number."""
    w, h = [1.0, -2.0, 0.5, 0.0], [400.0, 1.0, 0.25, 3.0]
    found = pacgen(_given(w, h), rho=0.7, variant="lemma3", eta=50.0, gamma=0.2, epsilon=0.3)
    assert found.value == pytest.approx(psi(w, h, 0.2, 0.3, 0.7, eta=50.0), rel=1e-12)
    paper = pacgen(_given(w, h), rho=0.7, gamma=0.2, epsilon=0.3)
    assert paper.value == pytest.approx(psi(w, h, 0.2, 0.3, 0.7), rel=1e-12)
    assert abs(paper.value - found.value) > 0.5


DRAWN = {
    "gauss_newton": GaussNewtonDiagonal(64, 3),
    "fisher": FisherDiagonal(64, 3),
    "exact": HessianDiagonal(),
    "hutchinson": HessianProbes(5, 64, 3),
    "piecewise_linear": PiecewiseLinearDiagonal(64, 3),
    "xdiag": SketchedDiagonal(10, 64, 3),
    "batch_gradient": BatchGradientSquares(16, 3),
}


@pytest.mark.parametrize("kind", sorted(DRAWN))
@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_every_diagonal_and_noise_asks_for_its_own_statistics(kind, noise):
    """Handed numbers: each option reaches its statistic, and rho is drawn at rho_scale kappa inside the box."""
    w, h, moved = [1.0, -2.0], [4.0, 9.0], [4.5, 9.25]
    scale = 0.5 if noise == "uniform" else 0.25
    around = Uniform if noise == "uniform" else TruncatedGaussian
    noisy = around(Relative(scale, slope=0.1, offset=0.2))
    values = [torch.tensor(v, dtype=torch.float64) for v in (h, moved)]
    if kind == "hutchinson":
        values = [ProbedHessian(v, torch.zeros(1, 5), torch.tensor([64]), 64) for v in values]
    key = DRAWN[kind]
    u = noisy.draw(torch.tensor(w).double(), 3, 0)
    change = DiagonalChange.of(*(torch.tensor(v).double() for v in (h, moved)), u)
    assert (change.highest, change.lowest) == (0.5, 0.25)
    given = Fixed({Weights(): _weights(w), SampleCount(): 64, key: values[0], Change(key, noisy, 3, 0): change})
    found = pacgen(
        given, diagonal=kind, noise=noise, rho_scale=0.5, epsilon=0.2, draws=1, samples=64, probes=5, batch=16, seed=3
    )
    assert bool((u.abs() <= 0.5 * torch.tensor([0.3, 0.4]).double()).all())
    rho = 0.5 / float(u.norm())
    assert found.details["rho"] == pytest.approx(rho, rel=1e-12)
    assert found.value == pytest.approx(psi(w, h, 0.1, 0.2, rho), rel=1e-12)


def test_diagonals_at_a_real_network_against_dense_matrices():
    """A ReLU network's Gauss-Newton diagonal is its Hessian's; the Fisher's is the mean squared gradient."""
    model = mlp(4, 5, 3)
    x, y = blobs(23, 4, 3)
    minimum = Minimum(model, (x, y), batch_size=7)
    w = torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
    dense = hessian(model, x, y).diagonal().tolist()
    fisher = gradients(model, x, y).square().mean(0).tolist()
    for kind, h in (("gauss_newton", dense), ("exact", dense), ("piecewise_linear", dense), ("fisher", fisher)):
        found = pacgen(minimum, diagonal=kind, rho="zero", gamma=0.3, epsilon=1.0)
        assert found.value == pytest.approx(psi(w, h, 0.3, 1.0, 0.0), rel=1e-8), kind
    assert found.details["curvature_bound"] >= 0


def test_the_layers_add_up_and_each_term_is_at_least_the_box():
    minimum = fitted(mlp(4, 5, 3), blobs(30, 4, 3)[0])
    found = pacgen(minimum, epsilon=1.0)
    assert list(found.details["layers"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert sum(found.details["layers"].values()) == pytest.approx(found.value, rel=1e-12)
    w = minimum[Weights()].values.abs()
    floor = (1 + w / (0.1 * w + 1.0)).log().sum()
    assert found.value >= float(floor) - 1e-12
    assert 0 < found.details["curvature_bound"] <= 1


@pytest.mark.parametrize("diagonal", ["gauss_newton", "exact", "fisher"])
@pytest.mark.parametrize("a", [1e-2, 0.3, 10.0, 1e2])
def test_without_rho_and_epsilon_it_is_invariant_to_layer_rescaling(diagonal, a):
    """W1 sec. 5; also where a weight is exactly 0, whose neighbourhood is a point."""
    x = blobs(30, 4, 3)[0]
    base, scaled = mlp(4, 5, 3), mlp(4, 5, 3)
    with torch.no_grad():
        for model in (base, scaled):
            model[0].weight[0, 0] = 0.0
        scaled[0].weight *= a
        scaled[0].bias *= a
        scaled[2].weight /= a
    options = {"diagonal": diagonal, "rho": "zero", "epsilon": 0.0, "gamma": 20.0}
    one, two = (pacgen(fitted(m, x), **options) for m in (base, scaled))
    assert one.value == pytest.approx(two.value, rel=1e-9)
    assert one.details["curvature_bound"] > 0  # so that curvature, not only the box, is compared


def test_the_default_epsilon_breaks_the_invariance():
    x = blobs(30, 4, 3)[0]
    base, scaled = mlp(4, 5, 3), mlp(4, 5, 3)
    with torch.no_grad():
        scaled[0].weight *= 100
        scaled[0].bias *= 100
        scaled[2].weight /= 100
    one, two = (pacgen(fitted(m, x), rho="zero") for m in (base, scaled))
    assert abs(one.value - two.value) > 1


def test_a_weight_of_zero_without_epsilon_takes_the_limit_of_its_term():
    found = pacgen(_given([0.0, 2.0], [5.0, 0.0]), gamma=0.5, epsilon=0.0, rho="zero")
    assert found.value == pytest.approx(2 * math.log(1 + 1 / 0.5), rel=1e-12)


def test_weights_that_cannot_move_have_no_rho():
    minimum = landscape(lambda w: w.square().sum(1), [0.0, 0.0])
    for rho in ("norm", "paper"):
        found = pacgen(minimum, epsilon=0.0, diagonal="exact", rho=rho)
        assert "no weight can move" in found.undefined


def test_curvature_beyond_float64_is_undefined_not_infinite():
    found = pacgen(_given([1.0, 2.0], [math.inf, 1.0]), rho="zero")
    assert "not finite" in found.undefined


def test_the_exact_diagonal_is_for_small_networks():
    found = pacgen(
        Minimum(Point([0.1] * 3001), (torch.zeros(2, 3001).double(), torch.zeros(2)), _sum), diagonal="exact"
    )
    assert "use 'gauss_newton' or 'hutchinson'" in found.undefined


def _sum(output, target):
    return output.square().sum(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -0.1}, "not both 0"),
        ({"gamma": 0.0, "epsilon": 0.0}, "not both 0"),
        ({"epsilon": math.nan}, "not both 0"),
        ({"epsilon": math.inf}, "not both 0"),
        ({"rho": "largest"}, "expected 'norm', 'paper', 'coordinate', 'zero' or a number"),
        ({"rho": -1.0}, "expected 'norm', 'paper', 'coordinate', 'zero' or a number"),
        ({"rho": math.nan}, "expected 'norm', 'paper', 'coordinate', 'zero' or a number"),
        ({"noise": "cauchy"}, "expected 'uniform' or 'gaussian'"),
        ({"diagonal": "diag"}, "expected one of batch_gradient, exact, fisher"),
        ({"rho_scale": 0.0}, r"rho_scale in \(0, 1\]"),
        ({"rho_scale": 1.5}, r"rho_scale in \(0, 1\]"),
        ({"draws": 0}, "draws at least 1"),
        ({"variant": "lemma4"}, "'lemma3' takes an eta"),
        ({"variant": "lemma3"}, "'lemma3' takes an eta"),
        ({"eta": 3.0}, "'lemma3' takes an eta"),
        ({"variant": "lemma3", "eta": -1.0}, "positive and finite"),
        ({"samples": 0}, "samples=0; it must be at least 1"),
        ({"probes": 0}, "probes=0; it must be at least 1"),
        ({"batch": 0}, "batch=0; it must be at least 1"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        pacgen(_given([1.0], [1.0]), **options)
