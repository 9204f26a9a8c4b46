"""Worst-case sharpness against its closed form on quadratics and brute force over corners; distance; VC order."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flatminima import Minimum, measures
from flatminima.core.perturbation import Relative
from flatminima.core.statistic import Fixed
from flatminima.errors import UsageError
from flatminima.statistics import Worst, WorstCaseLoss


class Quadratic(nn.Module):
    """Output w; the loss below makes offset + 1/2 sum a_i w_i^2 of it, whatever the input."""

    def __init__(self, w: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), -1) + 0 * x


def quadratic(a: list[float], offset: float) -> Any:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return offset + 0.5 * (torch.tensor(a, dtype=torch.float64) * output**2).sum(1)

    return loss


def minimum_of(w: list[float], a: list[float], offset: float = 0.0) -> Minimum:
    n = 4
    return Minimum(Quadratic(w), (torch.zeros(n, len(w)).double(), torch.zeros(n)), quadratic(a, offset))


@pytest.mark.parametrize("method", ["vertex", "ascent"])
def test_the_reference_vector(method: str) -> None:
    """neyshabur_sharpness_eq4: the corner away from 0, (0.018007125) / (1 + L); both searches reach it."""
    found = measures.sharpness(minimum_of([1.0, -2.0], [3.0, 5.0]), alpha=5e-4, method=method)
    assert found.value == pytest.approx(0.00144057, rel=1e-9)
    assert found.details["highest"] - found.details["loss"] == pytest.approx(0.018007125, rel=1e-9)
    assert found.details["keskar"] == pytest.approx(0.144057, rel=1e-9)


def test_at_a_maximum_nothing_rises() -> None:
    """nu = 0 is in the box: never negative."""
    assert measures.sharpness(minimum_of([0.0, 0.0], [-1.0, -1.0], 20.0), alpha=0.1).value == 0.0
    steep = minimum_of([1.0, -2.0], [-3.0, -5.0], 20.0)  # the highest loss is towards 0, inside or at an edge
    assert float(measures.sharpness(steep, alpha=0.1)) >= 0.0


def test_a_negative_loss_has_no_relative_rise() -> None:
    found = measures.sharpness(minimum_of([1.0, -2.0], [-3.0, -5.0]), alpha=0.1)
    assert "1 + loss" in str(found.undefined)


def _network(seed: int = 0) -> Minimum:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    return Minimum(model, (torch.randn(9, 2).double(), torch.randint(0, 2, (9,))), batch_size=4)


@pytest.mark.parametrize("seed", range(5))
def test_no_more_than_the_best_corner_and_nearly_it(seed: int) -> None:
    """All 2^12 corners of a small box, by brute force: a lower bound, within 5% of the maximum at small alpha."""
    minimum = _network(seed)
    found = measures.sharpness(minimum, alpha=1e-2)
    weights, n = minimum.parameters.flat(), len(minimum.parameters)
    box = Relative(1e-2).of(weights)
    x, y = minimum.samples.take(torch.arange(9))
    losses = []
    with torch.no_grad():
        for signs in itertools.product((-1.0, 1.0), repeat=n):
            minimum.parameters.assign(weights + box * torch.tensor(signs, dtype=torch.float64))
            losses.append(float(nn.functional.cross_entropy(minimum.model(x), y)))
        minimum.parameters.assign(weights)
        base = float(nn.functional.cross_entropy(minimum.model(x), y))
    best = (max(losses) - base) / (1 + base)
    assert found.value is not None
    assert found.value <= best * (1 + 1e-9)
    assert found.value >= 0.95 * best


def test_the_vertex_search_finds_no_less_than_the_papers_ascent() -> None:
    minimum = _network()
    vertex, ascent = measures.sharpness(minimum, alpha=0.05), measures.sharpness(minimum, alpha=0.05, method="ascent")
    assert vertex.details["gradients"] <= 10
    assert float(vertex) >= float(ascent) * (1 - 1e-9)


@pytest.mark.parametrize("method", ["vertex", "ascent"])
def test_the_weights_come_back_also_when_it_fails(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    minimum = _network()
    before = minimum.parameters.flat()
    minimum[WorstCaseLoss(Relative(0.5), method, 5)]
    assert torch.equal(minimum.parameters.flat(), before)
    real, calls = Minimum.forward, 0

    def failing(self: Minimum, inputs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise RuntimeError("boom")
        return real(self, inputs)

    monkeypatch.setattr(Minimum, "forward", failing)
    with pytest.raises(RuntimeError, match="boom"):
        minimum[WorstCaseLoss(Relative(0.25), method, 5)]
    assert torch.equal(minimum.parameters.flat(), before)


def test_an_overflow_is_undefined() -> None:
    found = measures.sharpness(minimum_of([1e100, 1e100], [1e90, 1e90]), alpha=1e60)
    assert "overflows" in str(found.undefined)


def test_numbers_handed_over() -> None:
    given = Fixed({WorstCaseLoss(Relative(5e-4), "vertex", 10, 300, 0): Worst(0.5, 0.8, 7)})
    assert measures.sharpness(given).value == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"samples": 0}, {"alpha": -1.0}, {"method": "hill"}], ids=str)
def test_bad_options(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        measures.sharpness(_network(), **bad)


def test_distance_from_the_start_in_every_form() -> None:
    minimum = _network()
    start = copy.deepcopy(minimum.model)
    with torch.no_grad():
        for p in start.parameters():
            p.sub_(0.5)
    n = len(minimum.parameters)
    flat = torch.cat([p.detach().reshape(-1) for p in start.parameters()])
    for initial in (start, start.state_dict(), flat):
        found = measures.distance_from_init(minimum, initial=initial)
        assert found.value == pytest.approx(0.5 * n**0.5, rel=1e-12)
    assert found.details["layers"]["0.weight"] == pytest.approx(1.0, rel=1e-12)
    assert found.details["relative"] == pytest.approx(found.value / float(flat.norm()), rel=1e-12)
    assert "initial weights" in str(measures.distance_from_init(minimum).undefined)


@pytest.mark.parametrize(
    ("initial", "says"),
    [
        (torch.zeros(3), "3 initial weights for 12"),
        ({"0.weight": torch.zeros(2, 2)}, "lack '0.bias'"),
        (nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)), r"initial '0.weight' has the shape \(2, 3\)"),
        (
            {name: p.reshape(-1) for name, p in _network().model.state_dict().items()},
            r"shape \(4,\), the network's \(2, 2",
        ),
        (torch.zeros(3, 4), r"got initial weights of shape \(3, 4\); a vector has the shape \(12,\)"),
        (torch.full((12,), float("nan")), "NaN or Inf"),
    ],
    ids=["length", "missing", "shape", "layout", "no vector", "nan"],
)
def test_initial_weights_that_do_not_fit(initial: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        measures.distance_from_init(_network(), initial=initial)


def test_the_vc_order_is_depth_times_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2))
    minimum = Minimum(model, (torch.randn(5, 4), torch.zeros(5, dtype=torch.long)))
    assert measures.vc_dimension(minimum).value == 3 * (4 * 8 + 8 + 8 * 3 + 3 + 3 * 2 + 2)
    assert "tanh" in str(measures.vc_dimension(_network()).undefined)


@pytest.mark.parametrize("method", ["vertex", "ascent"])
def test_within_another_measurement_the_weights_come_back_too(method: Any) -> None:
    """The outer guard restores at its own end only: a search inside it must clean up by itself."""
    minimum = _network()
    before = minimum.parameters.flat()
    with minimum.open():
        WorstCaseLoss(Relative(0.5), method, 3).compute(minimum)
        assert torch.equal(minimum.parameters.flat(), before)


def test_a_gradient_of_exactly_zero_is_no_flat_minimum():
    """A fitted squared loss: no direction to start in, but every corner of the box is higher."""
    net = nn.Linear(2, 1, bias=False).double()
    nn.init.ones_(net.weight)
    x = torch.eye(2, dtype=torch.float64)
    m = Minimum(net, (x, net(x).detach()), "mse")
    assert measures.sharpness(m, alpha=0.1).value == pytest.approx(0.04, rel=1e-9)
    assert measures.sharpness(m, alpha=0.1).value == measures.sharpness(m, alpha=0.1).value
