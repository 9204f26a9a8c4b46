"""The Fisher family against explicit per-sample Jacobians, closed forms, and numbers handed over."""

import math

import pytest
import torch
from measure_oracle import blobs, cnn, generator, gradients, mlp
from torch import nn

from flatminima import Minimum
from flatminima.core.statistic import Fixed
from flatminima.errors import DataError
from flatminima.measures import fisher_frobenius, fisher_logdet, fisher_spectral_radius, fisher_trace
from flatminima.statistics import Gram, GramMatrices, InFloat64, Outputs, OutputSummary

SUBSET, TRIALS, SEED = 10, 3, 5
OPTIONS = {"subset": SUBSET, "trials": TRIALS, "seed": SEED}


def _networks():
    x, y = blobs(37, 6, 4)
    images = torch.randn(33, 2, 7, 6, generator=generator(3), dtype=torch.float64)
    return {"mlp": (mlp(6, 8, 4), x, y), "cnn": (cnn(), images, blobs(33, 1, 3)[1])}


NETWORKS = _networks()


@pytest.fixture(params=sorted(NETWORKS))
def case(request):
    """(Minimum, J J^T of each subset (T, N', N')): the subsets are the first of the seed's random order."""
    model, x, y = NETWORKS[request.param]
    minimum = Minimum(model, (x, y), batch_size=20)
    order = minimum.samples.order(SEED)
    assert sorted(order.tolist()) == list(range(len(x)))  # a permutation: subsets are disjoint
    jacobian = gradients(model, x, y)[order[: TRIALS * SUBSET]].view(TRIALS, SUBSET, -1)
    return minimum, jacobian @ jacobian.transpose(1, 2)


def _mean_and_error(values):
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def test_logdet_is_the_mean_log_determinant_of_explicit_jacobians(case):
    """Catches half of it (singular values), a wrong subset size, a mean of products instead of logs."""
    minimum, gram = case
    sign, logdet = torch.linalg.slogdet(gram)
    assert bool((sign > 0).all())
    found = fisher_logdet(minimum, **OPTIONS)
    value, stderr = _mean_and_error(logdet)
    assert found.value == pytest.approx(value, rel=1e-8)
    assert found.stderr == pytest.approx(stderr, rel=1e-6)
    w = sum(p.numel() for p in minimum.model.parameters())
    assert found.details["log_det_fisher"] == pytest.approx(w / SUBSET * value - w * math.log(w), rel=1e-8)
    assert found.details["parameters"] == w
    assert found.details["trials"] == TRIALS
    with torch.no_grad():
        loss = nn.functional.cross_entropy(minimum.model(minimum.samples.inputs), minimum.samples.targets)
    assert found.details["train_loss"] == pytest.approx(float(loss), rel=1e-12)


def test_logdet_reports_the_row_normalised_condition_number_and_the_spectrums_entropy(case):
    minimum, gram = case
    scale = gram.diagonal(dim1=1, dim2=2).rsqrt()
    spectrum = torch.linalg.eigvalsh(gram * scale.unsqueeze(1) * scale.unsqueeze(2))
    found = fisher_logdet(minimum, **OPTIONS)
    assert found.details["condition"] == pytest.approx(float((spectrum[:, -1] / spectrum[:, 0]).max()), rel=1e-6)
    share = spectrum / SUBSET  # a correlation matrix has trace N'
    rank = (-(share * share.log()).sum(1)).exp().mean()
    assert found.details["effective_rank"] == pytest.approx(float(rank), rel=1e-6)


def test_trace_is_the_mean_squared_gradient_norm(case):
    minimum, gram = case
    value, stderr = _mean_and_error(gram.diagonal(dim1=1, dim2=2).flatten())
    found = fisher_trace(minimum, **OPTIONS)
    assert found.value == pytest.approx(value, rel=1e-8)
    assert found.stderr == pytest.approx(stderr, rel=1e-8)
    assert found.details["n"] == SUBSET * TRIALS


def test_frobenius_is_that_of_the_explicit_fisher_matrix(case):
    """Erratum J-h: the paper averages ||g||^4, which is several times too large already at N' = 10."""
    minimum, gram = case
    model, x, y = minimum.model, minimum.samples.inputs, minimum.samples.targets
    chosen = minimum.samples.order(SEED)[: TRIALS * SUBSET]
    jacobian = gradients(model, x[chosen], y[chosen]).view(TRIALS, SUBSET, -1)
    fisher = jacobian.transpose(1, 2) @ jacobian / SUBSET  # (T, W, W)
    value, stderr = _mean_and_error(fisher.square().sum((1, 2)))
    found = fisher_frobenius(minimum, **OPTIONS)
    assert found.value == pytest.approx(value, rel=1e-8)
    assert found.stderr == pytest.approx(stderr, rel=1e-8)
    fourth = gram.diagonal(dim1=1, dim2=2).square().mean()
    assert found.details["paper"] == pytest.approx(float(fourth), rel=1e-8)
    assert found.details["paper"] > 1.5 * found.value


def test_spectral_radius_is_the_squared_norm_of_explicit_jacobians(case):
    minimum, gram = case
    top = torch.linalg.matrix_norm(gram, 2)
    found = fisher_spectral_radius(minimum, **OPTIONS)
    value, stderr = _mean_and_error(top / SUBSET)
    assert found.value == pytest.approx(value, rel=1e-8)
    assert found.stderr == pytest.approx(stderr, rel=1e-8)
    assert found.details["paper"] == pytest.approx(float(top.mean()), rel=1e-8)


@pytest.fixture
def gaussian():
    """Least squares on orthogonal inputs: g_i = 2 r_i x_i, so xi = diag(4 r_i^2 |x_i|^2) in closed form."""
    lengths = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    residuals = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)
    net = nn.Linear(4, 1, bias=False).double()
    x = torch.diag(lengths)
    with torch.no_grad():
        y = net(x) - residuals.unsqueeze(1)
    return Minimum(net, (x, y), "mse"), 4 * (residuals * lengths).square()


def test_linear_gaussian_closed_forms(gaussian):
    minimum, diagonal = gaussian
    n = len(diagonal)
    assert fisher_logdet(minimum, subset=n).value == pytest.approx(float(diagonal.log().sum()), rel=1e-10)
    assert fisher_trace(minimum, subset=n).value == pytest.approx(float(diagonal.mean()), rel=1e-10)
    assert fisher_frobenius(minimum, subset=n).value == pytest.approx(float(diagonal.square().sum() / n**2), rel=1e-10)
    assert fisher_spectral_radius(minimum, subset=n).value == pytest.approx(float(diagonal.max() / n), rel=1e-10)


def test_one_subset_has_no_standard_error(gaussian):
    minimum, diagonal = gaussian
    for measure in (fisher_logdet, fisher_frobenius, fisher_spectral_radius):
        assert measure(minimum, subset=len(diagonal)).stderr is None, measure.__name__


OUTPUTS = OutputSummary(torch.tensor([0.5, 1.5]), None)


def test_the_family_is_a_function_of_the_gram_matrix_alone():
    """Numbers in, numbers out: G^ = [[1, .5], [.5, 1]], norms e and e^2, so that ln det = ln 3/4 + 6."""
    gram = GramMatrices(torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]).double(), torch.tensor([[1.0, 2.0]]).double(), 9)
    given = Fixed({Gram(2, 1, 0): gram, Outputs(): OUTPUTS})
    e = math.e
    logdet = fisher_logdet(given, subset=2, trials=1)
    assert logdet.value == pytest.approx(math.log(0.75) + 6, rel=1e-12)
    assert logdet.details["train_loss"] == 1.0
    assert logdet.details["condition"] == pytest.approx(3.0)
    assert logdet.details["float64"] is False
    assert fisher_trace(given, subset=2, trials=1).value == pytest.approx((e**2 + e**4) / 2, rel=1e-12)
    squares = e**4 + 2 * 0.25 * e**6 + e**8
    assert fisher_frobenius(given, subset=2, trials=1).value == pytest.approx(squares / 4, rel=1e-12)
    mean, gap = (e**2 + e**4) / 2, (e**4 - e**2) / 2
    top = mean + math.sqrt(gap**2 + 0.25 * e**6)
    assert fisher_spectral_radius(given, subset=2, trials=1).value == pytest.approx(top / 2, rel=1e-12)


def test_an_ill_conditioned_gram_matrix_is_made_again_in_float64():
    """Catches a threshold that is not applied, and a value taken from the float32 matrix."""
    near, exact = 1 - 1e-6, 0.5
    poor = GramMatrices(torch.tensor([[[1.0, near], [near, 1.0]]]).double(), torch.zeros(1, 2).double(), 9)
    good = GramMatrices(torch.tensor([[[1.0, exact], [exact, 1.0]]]).double(), torch.zeros(1, 2).double(), 9)
    key = Gram(2, 1, 0)
    found = fisher_logdet(Fixed({key: poor, InFloat64(key): good, Outputs(): OUTPUTS}), subset=2, trials=1)
    assert found.value == pytest.approx(math.log(0.75), rel=1e-12)
    assert found.details["float64"] is True


def test_a_gram_matrix_singular_to_rounding_has_no_determinant():
    """A Cholesky factor exists for 1 - 1e-16, of rounding errors only; -36 would enter a ranking as a number."""
    for near in (1 - 2e-16, 1.0):
        gram = GramMatrices(torch.tensor([[[1.0, near], [near, 1.0]]]).double(), torch.zeros(1, 2).double(), 9)
        key = Gram(2, 1, 0)
        found = fisher_logdet(Fixed({key: gram, InFloat64(key): gram, Outputs(): OUTPUTS}), subset=2, trials=1)
        assert found.value is None
        assert "singular" in found.undefined


def test_duplicate_samples_make_the_log_determinant_undefined():
    x, y = blobs(12, 6, 4)
    x[7], y[7] = x[2], y[2]
    found = fisher_logdet(Minimum(mlp(6, 8, 4), (x, y)), subset=12)
    assert "duplicate samples" in found.undefined


def test_fewer_parameters_than_samples_is_undefined():
    x, y = blobs(20, 2, 2)
    found = fisher_logdet(Minimum(nn.Linear(2, 2).double(), (x, y)), subset=7)
    assert found.undefined == "6 parameters cannot give 7 independent gradients: the determinant is 0"


@pytest.mark.parametrize("measure", [fisher_logdet, fisher_trace, fisher_frobenius, fisher_spectral_radius])
def test_fewer_samples_than_a_subset_is_refused(measure):
    x, y = blobs(9, 6, 4)
    with pytest.raises(DataError, match=r"got 9 samples.*subset=10 needs as many: pass subset=9 or less"):
        measure(Minimum(mlp(6, 8, 4), (x, y)), subset=10)


@pytest.mark.parametrize("measure", [fisher_trace, fisher_frobenius, fisher_spectral_radius])
def test_gradients_beyond_float64_are_undefined_not_infinite(measure):
    gram = GramMatrices(torch.eye(2).double().expand(3, 2, 2), torch.full((3, 2), 400.0).double(), 9)
    found = measure(Fixed({Gram(2, 3, 0): gram}), subset=2, trials=3)
    assert "not finite" in found.undefined


def test_an_interpolating_network_underflows_nowhere_that_logarithms_reach():
    """Gradients of norm e^-800: squares are 0 in float64, the log-determinant is not."""
    gram = GramMatrices(torch.eye(3).double().expand(2, 3, 3), torch.full((2, 3), -800.0).double(), 9)
    given = Fixed({Gram(3, 2, 0): gram, Outputs(): OUTPUTS})
    assert fisher_logdet(given, subset=3, trials=2).value == pytest.approx(-4800.0)
    assert fisher_trace(given, subset=3, trials=2).value == 0.0
