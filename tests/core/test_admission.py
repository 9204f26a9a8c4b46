"""What two passes of one pair of samples cannot show: memory, capacity, equal samples, other generators."""

from __future__ import annotations

import random
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flatminima import Minimum, measures
from flatminima.errors import DataError, ModelError, NumericalError, StaleMinimum

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


class Experts(Net):
    """Takes so many samples of one kind, and no more."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.ones(len(x), 1)
        kept[(x[:, 0] > 0).nonzero()[self.room :, 0]] = 0.0
        return self.b(torch.tanh(self.a(x)) * kept)


class CentredWhereThereAreMany(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(torch.tanh(h - h.mean(0) if len(x) > 20 else h))


def hardest(output: Tensor, target: Tensor) -> Tensor:
    """The twenty largest losses of a batch."""
    losses = nn.functional.cross_entropy(output, target, reduction="none")
    return torch.where(losses >= losses.topk(min(20, len(losses))).values[-1], losses, 0.0)


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


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("make", [lambda: Experts(15), CentredWhereThereAreMany], ids=["experts", "centred"])
def test_what_mixes_samples_in_whole_batches_alone_is_refused(make: Any, ordered: bool) -> None:
    """Eight samples leave room; of ordered data the last batch alone is crowded."""
    x = X[X[:, 0].argsort()] if ordered else X
    with pytest.raises(ModelError, match="changes with the others in its batch"):
        Minimum(make().eval(), (x, Y), batch_size=40)


def test_room_that_no_batch_fills_is_room_enough() -> None:
    assert measures.margin(Minimum(Experts(15).eval(), (X, Y), batch_size=15)).value is not None


def test_a_loss_that_mixes_samples_in_whole_batches_alone_is_refused() -> None:
    with pytest.raises(DataError, match="loss 'hardest' of a sample changes"):
        Minimum(plain().eval(), (X, Y), hardest)


def test_what_is_not_finite_far_from_the_first_samples_is_said_where_it_is_read() -> None:
    class Divides(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x))) / (x[:, :1] != 9.0)

    x = X.clone()
    x[30, 0] = 9.0
    minimum = Minimum(Divides().eval(), (x, Y))
    with pytest.raises(NumericalError, match="sample 30"):
        measures.margin(minimum)


class DrawsForFew(Net):
    """Random numbers for the samples beyond 5 alone."""

    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        few = x[:, 0] > 5.0
        if bool(few.any()):
            h = h.clone()
            h[few] = self.draw(h[few])
        return self.b(h)


FEW = torch.cat([X] * 10)
FEW[250, 0] = 6.0  # neither in the first batch nor in the last
MANY = torch.arange(len(FEW)) % 3
DRAWN = {
    "dropout": lambda h: nn.functional.dropout(h, 0.9, training=True),
    "numpy": lambda h: h * np.random.rand(),
    "random": lambda h: h * float(random.random() > 0.05),
}
USES = {
    "outputs": measures.margin,
    "gradients": lambda m: measures.fisher_trace(m, subset=500),
    "ascent": lambda m: measures.sharpness(m, samples=None),
    "products": lambda m: measures.hessian_top_eigenvalue(m, samples=None),
    "losses": lambda m: measures.expected_sharpness(m, draws=4),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("draw", DRAWN)
def test_chance_that_few_samples_meet_is_refused_where_they_are_read(draw: str, use: str) -> None:
    minimum = Minimum(DrawsForFew(DRAWN[draw]).eval(), (FEW, MANY), batch_size=100)
    with pytest.raises(ModelError, match="draws random numbers"):
        USES[use](minimum)


@pytest.mark.parametrize("use", USES)
def test_chance_that_few_samples_meet_for_nothing_is_measured(use: str) -> None:
    def draw(h: Tensor) -> Tensor:
        return h + 0.0 * random.random()

    minimum = Minimum(DrawsForFew(draw).eval(), (FEW, MANY), batch_size=100)
    before = random.getstate()
    assert USES[use](minimum).value is not None
    assert random.getstate() == before and minimum.passes.checks > 0


def test_data_that_draws_random_numbers_is_no_chance_of_the_network() -> None:
    class Data(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(FEW)

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            random.random(), np.random.rand(), torch.rand(1)
            return FEW[i], MANY[i]

    one, two = (Minimum(plain(), data) for data in (Data(), (FEW, MANY)))
    assert float(measures.margin(one)) == pytest.approx(float(measures.margin(two)))


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


class Slotted:
    __slots__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 1.0


def enclosing(held: dict[str, float]) -> Any:
    return lambda h: h * held["factor"]


class Furnished(Net):
    """Everything that a forward pass may read besides weights, buffers and layers; it counts and keeps some of it."""

    shift = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.act: Any = torch.tanh
        self.scale, self.large = torch.tensor(1.0), torch.zeros(10_000)
        self.array = np.ones(3)
        self.config = SimpleNamespace(factor=1.0, deep=[{"a": [1.0]}])
        self.slotted, self.enclosing = Slotted(), enclosing({"factor": 1.0})
        self.partial = partial(nn.functional.softplus, beta=1.0)
        self.unregistered = [nn.Linear(3, 3)]
        self.mixed: list[Any] = [torch.tanh, {"a": torch.ones(2)}]
        self.counts, self.last, self.nothing = SimpleNamespace(calls=0), None, float("nan")

    def forward(self, x: Tensor) -> Tensor:
        self.counts.calls += 1
        self.last = x.detach()
        return self.b(self.act(self.a(x))) * self.scale * self.config.factor


CHANGES: dict[str, Any] = {
    "function": lambda net: setattr(net, "act", torch.relu),
    "tensor": lambda net: setattr(net, "scale", torch.tensor(3.0)),
    "tensor in place": lambda net: net.scale.mul_(3.0),
    "tensor behind its count": lambda net: net.scale.data.fill_(3.0),
    "one entry of many": lambda net: net.large.__setitem__(7, 1.0),
    "array": lambda net: net.array.__setitem__(1, 2.0),
    "object": lambda net: setattr(net.config, "factor", 3.0),
    "deep in an object": lambda net: net.config.deep[0]["a"].__setitem__(0, 2.0),
    "slots": lambda net: setattr(net.slotted, "factor", 3.0),
    "enclosed": lambda net: net.enclosing.__closure__[0].cell_contents.update(factor=3.0),
    "partial": lambda net: setattr(net, "partial", partial(nn.functional.softplus, beta=2.0)),
    "unregistered": lambda net: net.unregistered[0].weight.data.mul_(2.0),
    "function in a list": lambda net: net.mixed.__setitem__(0, torch.relu),
    "tensor in a list": lambda net: net.mixed[1]["a"].mul_(2.0),
    "the class": lambda net: setattr(type(net), "shift", 1.0),
    "hook": lambda net: net.a.register_forward_hook(lambda module, args, output: 2 * output),
}
USED: dict[str, Any] = {
    "forward": lambda net: net(X[:5]),
    "gradients": lambda net: net(X[:3]).sum().backward(),
    "modes": lambda net: net.train(),
    "a hook that went": lambda net: net.a.register_forward_hook(lambda *_: None).remove(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_forward_pass_may_read_is_part_of_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Furnished, "shift", 0.0)
    net = Furnished().eval()
    minimum = Minimum(net, (X, Y))
    measures.expected_sharpness(minimum, draws=2)
    measures.margin(minimum)
    CHANGES[name](net)
    with pytest.raises(StaleMinimum, match="settings"):
        measures.margin(minimum)


@pytest.mark.parametrize("name", USED)
def test_use_of_a_network_makes_it_no_other(name: str) -> None:
    net = Furnished().eval()
    minimum = Minimum(net, (X, Y))
    measures.fisher_trace(minimum, subset=20)
    USED[name](net)
    assert measures.expected_sharpness(minimum, draws=2).value is not None
    assert measures.hessian_trace(minimum).value is not None


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


def test_a_sharded_network_is_for_another_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.distributed.fsdp", SimpleNamespace(FSDPModule=nn.Tanh))
    with pytest.raises(ModelError, match=r"flatminima\.ShardedMinimum"):
        Minimum(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), (torch.randn(8, 3), torch.arange(8) % 4))
    Minimum(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (torch.randn(8, 3), torch.arange(8) % 4))


def test_an_embedding_of_scaled_gradients_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Embedding(9, 3, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(ModelError, match="layer '0' has scale_grad_by_freq=True"):
        Minimum(model, (torch.randint(0, 9, (8, 4)), torch.arange(8) % 3))
