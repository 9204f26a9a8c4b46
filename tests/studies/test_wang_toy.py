"""The toy surface: its Hessian, pacGen and bound against autograd and the measures at single points."""

import numpy as np
import pytest
import torch
from torch import nn

from flatminima import Minimum, measures
from flatminima.statistics import HessianDiagonal
from flatminima.studies import _toy_minima, wang_toy


class Shared(nn.Module):
    """The toy network as a module whose only parameters are the two free weights."""

    def __init__(self, free, fixed):
        super().__init__()
        self.free, self.fixed = nn.Parameter(torch.tensor(free, dtype=torch.float64)), fixed

    def forward(self, x):
        return _toy_minima.logits(self.free, self.fixed, x)


@pytest.fixture(scope="module")
def found():
    x, y = wang_toy.samples(0, _toy_minima.SAMPLES)
    return x, y, _toy_minima.surface(x, y, (2.0, 4.0), 9)


@pytest.mark.parametrize("at", [(1, 2), (4, 7), (8, 0)])
def test_the_surface_agrees_with_the_measures_of_a_module(found, at):
    x, y, surface = found
    minimum = Minimum(Shared([surface.axis[at[0]], surface.axis[at[1]]], (2.0, 4.0)), (x, y))
    assert surface.trace[at] == pytest.approx(float(minimum[HessianDiagonal()].sum()), rel=1e-6, abs=1e-9)
    floor = measures.pacgen(minimum, diagonal="exact", rho="zero", samples=None).value
    assert surface.pacgen[at] >= floor - 1e-9  # rho only adds


def test_minima_have_no_gradient_and_bend_up_and_are_ordered_by_curvature():
    x, y = wang_toy.samples(0, _toy_minima.SAMPLES)
    fixed = _toy_minima.search(x, y, _toy_minima.FIXED[-4:-2], 25)
    (places, at) = _toy_minima.extremes(x, y, fixed, 25)
    assert at.trace[0] > at.trace[1] > 0
    for place, loss, trace in zip(places, at.loss, at.trace, strict=True):
        network = Shared(place.tolist(), fixed)
        found = torch.nn.functional.cross_entropy(network(x), y)
        (slope,) = torch.autograd.grad(found, network.free)
        assert found.item() == pytest.approx(loss, rel=1e-12) and float(slope.norm()) < 1e-6
        hessian = torch.autograd.functional.hessian(
            lambda free: torch.nn.functional.cross_entropy(_toy_minima.logits(free, fixed, x), y),
            place,
        )
        assert float(torch.linalg.eigvalsh(hessian)[0]) > 0
        assert float(hessian.trace()) == pytest.approx(trace, rel=1e-9)


def test_the_bound_lies_above_the_loss_and_grows_as_eta_vanishes(found):
    surface = found[2]
    assert (surface.bounds[39.0] > surface.loss).all()
    assert np.mean(surface.bounds[1e-5]) > np.mean(surface.bounds[0.1]) > np.mean(surface.bounds[39.0])


def test_labels_split_the_samples_in_half():
    x, y = wang_toy.samples(3, 100)
    assert x.shape == (100, 2) and int(y.sum()) == 50


def test_test_samples_take_the_labels_of_the_training_samples():
    x, y = wang_toy.samples(0, 100)
    threshold = float(x.sum(1).median())
    one, labels = wang_toy.samples(0, 1_000, threshold=threshold)
    assert torch.equal(labels.bool(), one.sum(1) > threshold)
    assert not torch.equal(labels, wang_toy.samples(0, 1_000)[1])  # its own median is another
    assert torch.equal(wang_toy.samples(0, 100, threshold=threshold)[1], y)


@pytest.mark.parametrize(
    ("free", "fixed"), [((1.5, -3.0), (-4.0, 2.0)), ((8.0, 0.2), (2.0, 4.0)), ((-11.0, 12.0), (4.0, -2.0))]
)
def test_the_jet_is_what_automatic_differentiation_gives(free, fixed):
    x, y = wang_toy.samples(3, 40)
    loss, slope, hessian = _toy_minima.jet(free, fixed, x.numpy(), y.numpy())
    at, objective = torch.tensor(free, dtype=torch.float64), _toy_minima.objective(x, y, fixed)
    assert loss == pytest.approx(float(objective(at)), rel=1e-12)
    assert np.allclose(slope, torch.func.grad(objective)(at), rtol=1e-10, atol=1e-14)
    second = torch.func.jacrev(torch.func.jacrev(objective))(at)
    assert np.allclose(hessian, second, rtol=1e-10, atol=1e-14)
