"""Thresholds against the optimizers themselves, on quadratics: just below a run converges, just above it explodes."""

import pytest
import torch
from torch import nn

from flatminima.errors import Undefined
from flatminima.optim import SAM, PertOPT
from flatminima.track.stability import base_of, sam_threshold, stability


def _explodes(make, curvature, steps=400):
    """Whether torch's optimizer leaves 0 on curvature w^2 / 2, in float64."""
    w = nn.Parameter(torch.tensor([1e-3], dtype=torch.float64))
    optimizer = make([w])
    for _ in range(steps):
        optimizer.zero_grad()
        (curvature * w * w / 2).sum().backward()
        optimizer.step()
        if not abs(float(w.detach())) < 1e3:
            return True
    return abs(float(w.detach())) > 1e-3


GRADIENT_METHODS = [
    lambda p: torch.optim.SGD(p, lr=0.1),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, dampening=0.5),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=3.0),
    lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1), momentum=0.3, weight_decay=3.0),
]


@pytest.mark.parametrize("make", GRADIENT_METHODS)
def test_a_quadratic_just_above_the_threshold_explodes_and_just_below_does_not(make):
    w = nn.Parameter(torch.zeros(1))
    found = stability(make([w]), [w])
    decay = 0.0 if found.decay is None else float(found.decay)
    edge = found.threshold - decay
    assert not _explodes(make, 0.97 * edge)
    assert _explodes(make, 1.03 * edge)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.999), eps=0.0), "exp_avg_sq"),
        (lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.999), eps=0.2), "exp_avg_sq"),
        (lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0, eps=0.0), "exp_avg_sq"),
        (lambda p: torch.optim.RMSprop(p, lr=0.1, eps=0.0), "square_avg"),
        (lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, eps=0.1), "square_avg"),
        (lambda p: torch.optim.Adagrad(p, lr=0.1, eps=0.0), "sum"),
        (lambda p: torch.optim.Adagrad(p, lr=0.1, eps=0.3), "sum"),
    ],
)
def test_the_preconditioned_threshold_is_that_of_the_frozen_preconditioner(make, key):
    """The second moment is held at 4 throughout, t is large: what is left is a linear recursion that must agree."""

    def begun():
        w = nn.Parameter(torch.tensor([1e-6], dtype=torch.float64))
        optimizer = make([w])
        w.grad = torch.full_like(w, 1e-9)
        optimizer.step()  # makes the state
        for name in ("exp_avg", "momentum_buffer"):
            optimizer.state[w].get(name, torch.zeros(1)).zero_()
        with torch.no_grad():
            w.fill_(1e-6)
        return w, optimizer

    def hold(w, optimizer):
        optimizer.state[w][key].fill_(4.0)
        optimizer.state[w]["step"].fill_(100_000.0)

    def explodes(curvature):
        w, optimizer = begun()
        for _ in range(400):
            hold(w, optimizer)
            optimizer.zero_grad()
            (curvature * w * w / 2).sum().backward()
            optimizer.step()
            if abs(float(w.detach())) > 1e-4:  # its gradient is still nothing beside the second moment
                return True
        return abs(float(w.detach())) > 1e-6

    w, optimizer = begun()
    hold(w, optimizer)
    found = stability(optimizer, [w])
    scale = float(found.scale) ** 2
    assert scale == pytest.approx(1 / (2 + optimizer.param_groups[0]["eps"]), rel=1e-3)
    edge = found.threshold / scale
    assert not explodes(0.96 * edge)
    assert explodes(1.04 * edge)


def test_adams_defaults_bear_38_over_the_rate():
    w = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([w], lr=1e-3)
    with pytest.raises(Undefined, match="no state"):
        stability(optimizer, [w])
    w.grad = torch.tensor([1.0, 2.0, 4.0])
    optimizer.step()
    found = stability(optimizer, [w])
    assert found.threshold == pytest.approx(38e3)
    expected = 1 / (torch.tensor([1.0, 2.0, 4.0]) * 0.1)  # (1 - beta1^1) (sqrt(v / (1 - beta2^1)) + eps)
    assert torch.allclose(found.scale.square(), expected, rtol=1e-4)


def test_groups_have_thresholds_of_their_own_and_one_matrix():
    """Two coordinates with rates 0.1 and 0.02, momentum 0 and 0.9: each alone decides its own stability."""
    a, b, frozen = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.02, "momentum": 0.9}])
    found = stability(optimizer, [a, b, frozen])
    assert found.thresholds == pytest.approx((20.0, 190.0))
    assert found.threshold == pytest.approx(20.0)
    product = found.product(lambda v: torch.tensor([20.0, 190.0, 1e9]) * v)
    assert product(torch.ones(3)).tolist() == pytest.approx([20.0, 20.0, 0.0])  # both exactly at their own edge


def test_wrappers_are_looked_into():
    w = nn.Parameter(torch.ones(2))
    base = torch.optim.SGD([w], lr=0.25)

    class Prepared:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    assert base_of(Prepared(PertOPT(base))) is base
    assert stability(SAM(base), [w]).threshold == pytest.approx(8.0)


@pytest.mark.slow
def test_sams_threshold_is_the_fixed_length_cycle_of_sam_itself():
    """On c w^2 / 2 SAM settles into a cycle w -> -w, whose gradient has the length at which c is the threshold."""
    curvature, rate, rho = 8.0, 0.2, 0.1
    w = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
    optimizer = SAM(torch.optim.SGD([w], lr=rate), rho=rho)

    def closure():
        optimizer.zero_grad()
        loss = (curvature * w * w / 2).sum()
        loss.backward()
        return loss

    for _ in range(2000):
        optimizer.step(closure)
    assert sam_threshold(optimizer, curvature * abs(float(w.detach()))) == pytest.approx(curvature, rel=1e-3)
    assert sam_threshold(PertOPT(torch.optim.SGD([w], lr=1.0)), 1.0) is None


def test_what_is_not_known_is_undefined():
    w = nn.Parameter(torch.ones(1))
    with pytest.raises(Undefined, match="no threshold of stability is known for Adamax"):
        stability(torch.optim.Adamax([w]), [w])
    with pytest.raises(Undefined, match="rate is 0"):
        stability(torch.optim.SGD([w], lr=0.0), [w])
    with pytest.raises(Undefined, match="maximizes"):
        stability(torch.optim.SGD([w], lr=0.1, maximize=True), [w])
    with pytest.raises(Undefined, match="none of the model's parameters"):
        stability(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), [w])
