"""What two passes of one pair of samples cannot show: memory, capacity, equal samples, other generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flatminima import Minimum, measures
from flatminima.errors import ModelError, StaleMinimum

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50) % 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("range", torch.tensor(0.0))
        self.seen = 0.0
        self.calls = 0


class Observer(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        self.range = torch.maximum(self.range, h.detach().abs().max())
        return self.b(torch.round(h / self.range * 7) * self.range / 7)


class RemembersInAnAttribute(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = max(self.seen, float(x.abs().max()))
        return self.b(torch.tanh(self.a(x)) * (1 + 0.01 * self.seen))


class Capacity(Net):
    """Drops what is over half of the batch, as experts with a capacity do."""

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.zeros(len(x), 1)
        kept[torch.argsort(x[:, 0])[: (len(x) + 1) // 2]] = 1.0
        return self.b(torch.tanh(self.a(x)) * kept)


class Neighbour(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)) - 0.1 * self.a(x).mean(0))


class Drops(Net):
    """Stochastic depth in eval mode, by a generator of choice."""

    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)) * (1.0 if self.draw() > 0.05 else 0.0))


class DrawsForNothing(Net):
    """As BART does: the number is drawn, and used in training only."""

    def forward(self, x: Tensor) -> Tensor:
        if random.random() < 0.5 and self.training:
            return self.b(torch.zeros(len(x), 8))
        return self.b(torch.tanh(self.a(x)))


class Counts(Net):
    """A counter that changes nothing, in a buffer and in an attribute."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.range = self.range + 1.0
        return self.b(torch.tanh(self.a(x)))


REFUSED = {
    "observer": (Observer, "keeps state in buffer 'range'"),
    "attribute": (RemembersInAnAttribute, "keeps state"),
    "capacity": (Capacity, "changes with the others in its batch"),
    "neighbour": (Neighbour, "changes with the others in its batch"),
    "random": (lambda: Drops(random.random), "draws random numbers"),
    "numpy": (lambda: Drops(np.random.rand), "draws random numbers"),
    "torch": (lambda: Drops(lambda: float(torch.rand(()))), "draws random numbers"),
    "numpy, second": (lambda: Drops(lambda: np.random.rand(2)[1]), "draws random numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_networks_with_memory_or_chance_are_refused_in_every_state(name: str) -> None:
    """By `random` with p = 0.1 eighteen of twenty states let such a network pass."""
    make, words = REFUSED[name]
    for seed in range(5):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        with pytest.raises(ModelError, match=words):
            Minimum(make().eval(), (X, Y))


@pytest.mark.parametrize("make", [DrawsForNothing, Counts])
def test_chance_and_counters_that_change_nothing_pass(make: Any) -> None:
    net = make().eval()
    before = random.getstate()
    Minimum(net, (X, Y))
    assert random.getstate() == before
    assert net.calls == 0 and float(net.range) == 0.0


def test_equal_first_samples_hide_nothing() -> None:
    x = torch.randn(50, 3, 4, 4)
    x[1] = x[0]
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(16, 3)).eval()
    with pytest.raises(ModelError, match="changes with the others"):
        Minimum(net, (x, Y))


# -- identity --------------------------------------------------------------------------------------------------------


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def test_the_moves_of_one_minimum_do_not_make_another_stale() -> None:
    net = plain()
    one, two = Minimum(net, (X, Y)), Minimum(net, (X[:30], Y[:30]))
    measures.expected_sharpness(one, draws=3)
    measures.sharpness(one)
    assert measures.hessian_trace(two).value is not None
    with torch.no_grad():
        net[0].weight[0, 0] += 1.0
    for minimum in (one, two):
        with pytest.raises(StaleMinimum):
            measures.margin(minimum)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net[0].weight.data.copy_(net[0].weight.data.flip(0)),
        lambda net: net.__setitem__(1, nn.ReLU()),
        lambda net: setattr(net[1], "forward", torch.relu),
        lambda net: setattr(net[0], "_active_adapter", "other"),
        lambda net: delattr(net[0], "in_features"),
        lambda net: X.data.add_(1.0),
    ],
    ids=[
        "rows change places",
        "a layer replaced",
        "forward replaced",
        "an adapter switched",
        "a setting gone",
        "data in place",
    ],
)
def test_a_network_that_is_another_is_noticed(change: Any) -> None:
    net = plain()
    minimum = Minimum(net, (X, Y))
    kept = X.clone()
    try:
        change(net)
        with pytest.raises(StaleMinimum):
            measures.fisher_trace(minimum, subset=20)
    finally:
        X.copy_(kept)


def test_a_buffer_that_holds_nan_is_equal_to_itself() -> None:
    net = plain()
    net.register_buffer("unused", torch.tensor([float("nan"), 1.0]))
    minimum = Minimum(net, (X, Y))
    assert measures.fisher_trace(minimum, subset=20).value is not None


def test_parameters_in_one_storage_are_one_parameter() -> None:
    """Tied by sharing `.data`: the two have one gradient, the sum, as the same network with one object has."""

    class Tied(nn.Module):
        def __init__(self, one_object: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.b.weight = self.a.weight if one_object else nn.Parameter(self.a.weight.data)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))

    shared, one = (Minimum(Tied(flag).eval(), (X, Y)) for flag in (False, True))
    assert len(shared.parameters) == len(one.parameters)
    for name in ("hessian_trace", "expected_sharpness", "gradient_variance"):
        assert getattr(measures, name)(shared).value == pytest.approx(getattr(measures, name)(one).value, rel=1e-6)
    assert float(measures.fisher_trace(shared, subset=20)) == pytest.approx(
        float(measures.fisher_trace(one, subset=20)), rel=1e-6
    )
    assert shared.model.a.weight is not shared.model.b.weight  # put back


def test_parameters_that_overlap_in_part_are_refused() -> None:
    net = plain()
    whole = torch.randn(60)
    net[0].weight = nn.Parameter(whole[:48].view(8, 6))
    net[2].weight = nn.Parameter(whole[30:54].view(3, 8))
    with pytest.raises(ModelError, match="overlap in memory"):
        Minimum(net, (X, Y))


class Logs(Net):
    """A counter, a log, a cache and a record of shapes that the forward pass keeps and never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[float] = []
        self.cache: dict[str, Any] = {"shapes": [], "last": None}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(float(x.detach().sum()))
        self.cache["shapes"].append(tuple(x.shape))
        self.cache["last"] = x.detach()
        return self.b(torch.tanh(self.a(x)))


def test_what_a_forward_pass_writes_is_state_that_comes_back_and_no_setting() -> None:
    net = Logs().eval()
    net(X[:3])
    log, shapes, last = list(net.log), list(net.cache["shapes"]), net.cache["last"]
    minimum = Minimum(net, (X, Y))
    measures.margin(minimum)
    assert (net.calls, net.log, net.cache["shapes"]) == (1, log, shapes) and net.cache["last"] is last
    net(X[:5])  # the caller uses the network in between
    assert net.calls == 2 and measures.expected_sharpness(minimum, draws=3).value is not None
    assert net.calls == 2 and len(net.log) == 2 and len(net.cache["shapes"]) == 2
    net.width = 8
    with pytest.raises(StaleMinimum, match="settings"):
        measures.margin(minimum)


def test_a_look_within_a_look_that_raised_makes_nothing_stale() -> None:
    """The inner one begins at weights that the outer one has written; what it notes must not be taken for the truth."""
    net = plain()
    net.register_buffer("seen", torch.zeros(2))
    minimum = Minimum(net, (X, Y))
    with minimum.open():
        net.seen += 1.0
    with pytest.raises(KeyError), minimum.open():
        net.seen += 1.0
        with minimum.replace(model=net).open():
            net.seen += 1.0
            raise KeyError("in the middle")
    minimum.refuse_stale()
