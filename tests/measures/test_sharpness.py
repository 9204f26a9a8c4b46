"""Expected sharpness against closed forms within its standard error, and draw by draw."""

import math

import pytest
import torch
from measure_oracle import blobs, landscape, mlp, vector

from flatminima import Minimum
from flatminima.core.perturbation import Explicit, Gaussian, Relative, Uniform
from flatminima.core.statistic import Fixed
from flatminima.errors import UsageError
from flatminima.measures import expected_sharpness
from flatminima.statistics import LossRises, PerturbedLoss

DRAWS = 3000


def _quadratic():
    inputs, expected = vector("expected_sharpness_quadratic")
    h = torch.tensor(inputs["H"], dtype=torch.float64)
    return landscape(lambda w: 0.5 * ((w @ h) * w).sum(1), inputs["w"]), inputs["sigma"], expected


def _quartic():
    inputs, expected = vector("expected_sharpness_quartic")
    return landscape(lambda w: w.pow(4).sum(1), [inputs["w"]]), [inputs["sigma"]], expected


@pytest.mark.parametrize("make", [_quadratic, _quartic])
@pytest.mark.parametrize("kind", [Gaussian, Uniform])
@pytest.mark.parametrize("antithetic", [False, True])
def test_reference_vectors_within_four_standard_errors(make, kind, antithetic):
    """A fixed budget; a uniform draw of the wrong width is off by a factor 3, a missing 1/2 by 2."""
    minimum, sigma, expected = make()
    noise = kind(Explicit(torch.tensor(sigma, dtype=torch.float64)))
    found = expected_sharpness(minimum, perturbation=noise, draws=DRAWS, antithetic=antithetic)
    truth = expected[kind.__name__.lower()]
    assert abs(found.value - truth) < 4 * found.stderr
    assert found.stderr < 0.22 * truth  # so that twice or half the truth is outside


def test_the_standard_error_covers_the_truth_as_often_as_it_says():
    """40 seeds, 2 standard errors: about 95% are inside; an error too small by half would cover 68%."""
    minimum, sigma, expected = _quadratic()
    noise = Gaussian(Explicit(torch.tensor(sigma, dtype=torch.float64)))
    found = [expected_sharpness(minimum, perturbation=noise, draws=60, seed=seed) for seed in range(40)]
    inside = sum(abs(e.value - expected["gaussian"]) < 2 * e.stderr for e in found)
    assert 33 <= inside <= 40


@pytest.mark.parametrize("samples", [1000, 5])
@pytest.mark.parametrize("uniform", [False, True])
def test_each_draw_is_the_rise_on_its_own_block(samples, uniform):
    """sigma = alpha (10 |w| + 1); the same samples before and after. Recomputed by hand from the documented draws."""
    model = mlp(4, 5, 3)
    x, y = blobs(23, 4, 3)
    minimum = Minimum(model, (x, y), batch_size=4)
    order = minimum.samples.order(6)
    w = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    noise = (Uniform if uniform else Gaussian)(Relative(0.01, slope=10.0, offset=1.0))
    rises = []
    for k in range(4):
        block = order[(torch.arange(min(samples, 23)) + k * min(samples, 23)) % 23]
        losses = []
        for u in (0.0, noise.draw(w, 6, k)):
            torch.nn.utils.vector_to_parameters(w + u, model.parameters())
            with torch.no_grad():
                losses.append(float(torch.nn.functional.cross_entropy(model(x[block]), y[block])))
        rises.append(losses[1] - losses[0])
    torch.nn.utils.vector_to_parameters(w, model.parameters())
    found = expected_sharpness(
        Minimum(model, (x, y), batch_size=4), alpha=0.01, draws=4, samples=samples, seed=6, uniform=uniform
    )
    assert found.value == pytest.approx(sum(rises) / 4, rel=1e-8)
    assert found.details["distribution"] == ("Uniform" if uniform else "Gaussian")
    assert found.details["scale"] == {"alpha": 0.01, "slope": 10.0, "offset": 1.0}


def test_no_noise_no_rise():
    """What is left is the rounding of a loss of 5."""
    found = expected_sharpness(landscape(lambda w: w.square().sum(1), [1.0, 2.0]), alpha=0.0, draws=3)
    assert found.value == 0.0 and found.stderr == pytest.approx(5 * torch.finfo(torch.float64).eps)


NOISE = Gaussian(Relative(0.002, slope=10.0, offset=1.0))


def _given(rises, resolution=0.0, whole=False):
    found = LossRises(torch.tensor(rises, dtype=torch.float64), resolution, whole)
    return Fixed({PerturbedLoss(NOISE, 3, 64, False, 1): found})


def test_it_is_the_mean_of_the_given_draws():
    found = expected_sharpness(_given([1.0, 2.0, 6.0]), alpha=0.002, draws=3, samples=64, seed=1)
    assert found.value == 3.0
    assert found.stderr == pytest.approx(math.sqrt(7 / 3))
    assert found.details["error_of"] == "both"


def test_no_standard_error_is_below_the_resolution_of_the_loss():
    options = {"alpha": 0.002, "draws": 3, "samples": 64, "seed": 1}
    found = expected_sharpness(_given([1e-9, 2e-9, 3e-9], resolution=1e-7, whole=True), **options)
    assert found.stderr == pytest.approx(1e-7, rel=1e-3) and found.details["error_of"] == "draws"


def test_overflow_is_undefined_and_counted():
    found = expected_sharpness(_given([1.0, math.inf, math.nan]), alpha=0.002, draws=3, samples=64, seed=1)
    assert found.undefined == "the loss overflowed in 2 of 3 draws: use less noise"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "finite and not negative"),
        ({"draws": 0}, "at least 1"),
        ({"samples": 0}, "at least 1"),
        ({"perturbation": NOISE, "uniform": True}, "give one of them"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        expected_sharpness(_given([1.0]), **options)
