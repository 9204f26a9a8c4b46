"""The Hessian's trace against dense Hessians."""

import pytest
import torch
from measure_oracle import blobs, hessian, landscape, mlp, vector
from torch import nn

from flatminima import Minimum
from flatminima.core.statistic import Fixed
from flatminima.errors import UsageError
from flatminima.measures import hessian_trace
from flatminima.statistics import HessianProbes, ProbedHessian
from flatminima.statistics.hessian import rademacher


def test_each_probe_is_a_quadratic_form_of_the_dense_hessian():
    """Catches a sum for a mean over the ragged batches (7, 7, 7, 2), and a Gauss-Newton matrix in its place."""
    model = mlp(5, 6, 3)
    x, y = blobs(23, 5, 3)
    minimum = Minimum(model, (x, y), batch_size=7)
    dense = hessian(model, x, y)
    probes = [rademacher(dense[0], 4, k) for k in range(6)]
    forms = torch.stack([v @ dense @ v for v in probes])
    found = hessian_trace(minimum, probes=6, groups=1, samples=None, seed=4)
    assert found.value == pytest.approx(float(forms.mean()), rel=1e-8)
    assert found.stderr == pytest.approx(float(forms.std() / 6**0.5), rel=1e-6)


def test_the_mean_over_many_probes_is_the_trace():
    """400 probes, 4 standard errors: a factor 1/2 or a trace of the absolute values fails."""
    model = mlp(4, 5, 3)
    x, y = blobs(15, 4, 3)
    found = hessian_trace(Minimum(model, (x, y)), probes=400, groups=1)
    trace = float(hessian(model, x, y).trace())
    assert abs(found.value - trace) < 4 * found.stderr
    assert abs(trace) > 20 * found.stderr  # so that half of it, or its absolute value, is far outside


def test_a_diagonal_hessian_needs_one_probe():
    curvature = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)
    found = hessian_trace(landscape(lambda w: 0.5 * w.square() @ curvature, [1.0, 2.0, 3.0]), probes=1, groups=1)
    assert found.value == pytest.approx(2.5, rel=1e-12)
    assert found.stderr is None


def test_logistic_regression_reference_vector():
    """Its Hessian does not depend on the labels; two probes v, -v aside, v^T H v = tr H +- 2 H_12."""
    inputs, expected = vector("jia_gamma_exact")
    net = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([inputs["w"]]))
    x = torch.tensor(inputs["X"], dtype=torch.float64)
    minimum = Minimum(net, (x, torch.zeros(4, 1, dtype=torch.float64)), "binary_cross_entropy", batch_size=3)
    forms = minimum[HessianProbes(20, None, 0)].traces
    off = 2 * expected["I"][0][1]
    assert sorted({round(float(t), 9) for t in forms[0]}) == pytest.approx(
        sorted([expected["trace"] + off, expected["trace"] - off]), abs=2e-9
    )


def test_it_is_the_mean_of_the_given_probes():
    """Groups of 10 and 30 of 80 samples: weights 1/4 and 3/4, half of each variance (Cochran 1977)."""
    traces, sizes = torch.tensor([[1.0, 3.0], [5.0, 9.0]]).double(), torch.tensor([10, 30])
    given = Fixed({HessianProbes(2, 40, 7, "hessian", 2): ProbedHessian(torch.zeros(3), traces, sizes, 80)})
    found = hessian_trace(given, probes=2, groups=2, samples=40, seed=7)
    value = 0.25 * 2 + 0.75 * 7
    between = 2 * ((0.25 * (2 - value)) ** 2 + (0.75 * (7 - value)) ** 2)
    within = 0.25**2 * 1.0 + 0.75**2 * 4.0  # variances 2 and 8 of single probes, two each
    assert (found.value, found.stderr) == (value, pytest.approx((0.5 * between + 0.5 * within) ** 0.5))


@pytest.mark.parametrize("samples", [30, None, 1000])
def test_rtol_looks_at_more_samples_then_at_more_probes(samples):
    """Part of the data, all of it, and more than there is: the interval is as tight as asked, and holds the truth."""
    model = mlp(4, 5, 3)
    x, y = blobs(200, 4, 3)
    trace = float(hessian(model, x, y).trace())
    found = hessian_trace(Minimum(model, (x, y)), rtol=0.1, samples=samples, groups=10)
    low, high = found.interval()
    assert found.details["rtol_reached"] and high - low <= 0.2 * found.value
    assert abs(found.value - trace) < high - low  # twice as far as 95% of seeds


@pytest.mark.parametrize("options", [{"probes": 0}, {"samples": 0}, {"samples": -5}])
def test_counts_below_one_are_refused(options):
    x, y = blobs(10, 4, 3)
    with pytest.raises(UsageError, match="must be at least 1"):
        hessian_trace(Minimum(mlp(4, 5, 3), (x, y)), **options)
