"""Where weights come from: what a function makes under a seed, and what a network that is handed in gives away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from two_blobs import blobs

from flatminima import Minimum, certify
from flatminima.certification import Certificate, Recipe, certify_around
from flatminima.certification.provenance import Start, make
from flatminima.errors import ModelError, UsageError
from flatminima.models import build
from flatminima.training import TrainConfig

FREE = Recipe(prior_fraction=0.0, epochs=0, passes=1)


class Named(nn.Module):
    """A layer with tensors of several kinds, each made by a function."""

    def __init__(self, **tensors: Callable[[], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)
        for name, draw in tensors.items():
            value = draw()
            if value.is_floating_point() and name.startswith("p"):
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


FIXED = torch.randn(64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("tensors", "fixed"),
    [
        ({}, ()),
        ({"p": lambda: torch.ones(40)}, ()),  # a constant holds next to nothing
        ({"p": lambda: torch.full((40,), 1e-5)}, ()),  # LayerScale's
        ({"p": lambda: torch.eye(8)}, ()),
        ({"p": lambda: torch.tensor([0.0] * 8 + [1.0] * 8)}, ()),  # an LSTM's forget gates
        ({"mask": lambda: torch.ones(9, 9).tril().bool()}, ()),
        ({"p": lambda: 1 + 0.02 * torch.randn(64)}, ()),  # around one, but drawn
        ({"p": lambda: FIXED}, ("p",)),
        ({"b": lambda: FIXED}, ("b",)),  # a buffer is as good a place
        ({"p": lambda: FIXED + 1e-3 * torch.randn(64)}, ("p",)),  # the same with noise of its own
        ({"p": lambda: 2.0 * FIXED + 0.5 * torch.randn(64)}, ("p",)),
        ({"p": lambda: torch.tensor([0.3712])}, ("p",)),  # one number that is no round one
        ({"p": lambda: FIXED[:5]}, ("p",)),
    ],
)
def test_what_a_seed_does_not_change_is_named(tensors: dict[str, Any], fixed: tuple[str, ...]) -> None:
    start = Start.of(lambda: Named(**tensors), 0)
    assert tuple(name for name in start.fixed if name in tensors) == fixed


def test_small_networks_with_small_noise_do_not_come_from_their_seed() -> None:
    def near() -> nn.Module:
        net = nn.Linear(2, 2)
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[-1.3, -0.7], [0.9, 1.1]]) + 0.01 * torch.randn(2, 2))
            net.bias.zero_()
        return net

    assert not Start.of(near, 0).seeded
    assert Start.of(lambda: nn.Linear(2, 2), 0).seeded


def test_a_function_is_called_under_its_seed_whatever_it_draws_from() -> None:
    def by_numpy() -> nn.Module:
        net = nn.Linear(2, 2)
        with torch.no_grad():
            net.weight.copy_(torch.from_numpy(np.random.standard_normal((2, 2))))
        return net

    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for factory in (by_numpy, partial(build, "mlp", widths=(2, 4, 2)), partial(build, "mlp", seed=5, widths=(2, 4, 2))):
        one, two = make(factory, 3), make(factory, 3)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
        assert Start.of(factory, 3).seeded
    torch.manual_seed(3)
    assert torch.equal(make(lambda: nn.Linear(2, 2), 3).weight, nn.Linear(2, 2).weight)
    torch.set_rng_state(state[0])
    assert np.random.get_state()[1].tolist() == state[1]


def memorised(x: Tensor, y: Tensor, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 2))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def random_labels() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(300, 20, generator=g), torch.randint(0, 2, (300,), generator=g)


def test_a_network_that_memorised_two_classes_is_not_untrained(random_labels: tuple[Tensor, Tensor]) -> None:
    net = memorised(*random_labels)
    with pytest.raises(UsageError, match="stated to be untrained, but it errs on 0 of 300 samples"):
        certify(net, random_labels, recipe=FREE, stated="untrained")
    assert certify(net, random_labels, recipe=FREE).standing == "score"


def test_features_that_memorised_under_a_fresh_head_are_not_untrained(random_labels: tuple[Tensor, Tensor]) -> None:
    net = memorised(*random_labels)
    torch.manual_seed(5)
    net[2] = nn.Linear(128, 2)
    with pytest.raises(UsageError, match="a linear probe of its features errs on"):
        certify(net, random_labels, recipe=FREE, stated="Untrained")
    torch.manual_seed(0)
    honest = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 2))
    assert certify(honest, random_labels, recipe=FREE, stated="untrained").standing == "conditional"


def test_a_function_that_trains_without_gradients_of_torch_is_seen_by_all_its_seeds(
    random_labels: tuple[Tensor, Tensor],
) -> None:
    def trains() -> nn.Module:
        seed = int(torch.randint(0, 1000, ()))
        with torch.enable_grad():  # on data that it finds by itself
            g = torch.Generator().manual_seed(0)
            return memorised(torch.randn(300, 20, generator=g), torch.randint(0, 2, (300,), generator=g), seed)

    with pytest.raises(UsageError, match="so do those of 16 other seeds"):
        certify(trains, random_labels, recipe=FREE)


def test_an_untrained_network_that_is_lucky_is_none_that_was_trained() -> None:
    """Of two blobs, an untrained line errs on few samples under every other seed: that is no sign of training."""
    standings = {certify(lambda: nn.Linear(2, 2), blobs(64, 0), recipe=FREE, seed=s).standing for s in range(8)}
    assert standings == {"certificate"}


def test_what_a_handed_in_network_holds_besides_weights_is_in_no_certificate() -> None:
    """P and Q are evaluated in the network that the function makes, not in the one that was handed in."""

    class Table(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            for row, label in zip(*blobs(64, 0), strict=True):
                out = out + 100.0 * (x == row).all(1, keepdim=True) * nn.functional.one_hot(label, 2)
            return out

    data = blobs(64, 0)
    cheat = Table(2, 2)
    with torch.no_grad():
        cheat.weight.zero_()
    minimum = Minimum(cheat, data)
    honest = Minimum(nn.Linear(2, 2), data)
    with torch.no_grad():
        honest.model.weight.zero_()
        honest.model.bias.copy_(cheat.bias)
    one, two = (
        certify_around(m, "gaussian", prior=lambda: nn.Linear(2, 2), scales=1.0, draws=64)
        for m in (minimum, Minimum(honest.model, data))
    )
    assert one.risk_bound == two.risk_bound > 0.3


def test_the_prior_is_trained_here_where_it_is_to_be_met() -> None:
    """On a part that was divided here it is met; on samples that the caller says are others, stated."""
    x, y = blobs(160, 0)
    first, second = (x[:80], y[:80]), (x[80:], y[80:])
    net = make(lambda: nn.Linear(2, 2), 1)
    three = TrainConfig(epochs=3, batch_size=20)

    def around(data: tuple[Tensor, Tensor], **options: Any) -> Certificate:
        return certify_around(
            Minimum(net, data), prior=lambda: nn.Linear(2, 2), prior_training=three, draws=64, **options
        )

    c = around((x, y), prior_fraction=0.5)
    assert c.is_certificate and c.prior == "3 epochs of sgd on 80 other samples, from seed 0" and c.n == 80
    told = around(second, prior_data=first)
    assert told.prior == c.prior and told.standing == "conditional"
    assert "if, as stated, the samples of prior_data were drawn independently of the bound's:" in told.statement
    with pytest.raises(UsageError, match="prior_fraction beside prior_data"):
        around(second, prior_data=first, prior_fraction=0.5)
    with pytest.raises(UsageError, match="the bound's samples are the prior's"):
        certify_around(
            Minimum(net, second),
            prior=lambda: nn.Linear(2, 2),
            prior_data=second,
            prior_training=TrainConfig(epochs=1),
        )


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "mode",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        torch.inference_mode,
        torch.no_grad,
        lambda: default_dtype(torch.float64),
        lambda: default_dtype(torch.bfloat16),
    ],
    ids=["autocast", "inference", "no_grad", "float64", "bfloat16"],
)
@pytest.mark.parametrize("path", ["recipe", "gaussian", "uniform"])
def test_a_certificate_does_not_depend_on_the_mode_it_is_made_in(mode: Any, path: str) -> None:
    """Inside autocast a cache of cast weights would evaluate the mean at every draw."""
    data = blobs(64, 0)
    net = nn.Linear(2, 2)
    torch.nn.init.eye_(net.weight)
    minimum = Minimum(net, data)

    def made() -> float:
        if path == "recipe":
            return certify(lambda: nn.Linear(2, 2), data, recipe=Recipe(epochs=2, passes=2)).risk_bound
        return certify_around(minimum, path, prior="zero", scales=(1.0, 4.0), draws=64).risk_bound

    outside = made()
    with mode():
        inside = made()
    assert inside == outside


def test_a_network_that_computes_with_a_copy_of_its_weights_is_refused() -> None:
    class Copying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.kept = [self.layer.weight.detach().clone()]

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.kept[0]) + 0.0 * self.layer.weight.sum()

    with pytest.raises(ModelError, match="computes with a copy"):
        certify_around(Minimum(Copying(), blobs(64, 0)), "uniform", prior="zero", scales=9.0, score=True)


class Constants(nn.Module):
    """A line over inputs that constants are taken from, kept in one way or another."""

    def __init__(self, *, persistent: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mean", torch.tensor([0.485, 0.456]), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - self.mean)


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("pe", torch.sin(torch.arange(2.0) / 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.pe)


class PlainConstants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.mean, self.std = nn.Linear(2, 2), (0.485, 0.456), 0.229

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x - x.new_tensor(self.mean)) / self.std)


class ComputedTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + torch.sin(torch.arange(2.0, device=x.device) / 7))


def learned_statistics() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Constants, "the buffer 'mean' is the same under two seeds: keep a few constants as plain numbers"),
        (lambda: Constants(persistent=False), "the buffer 'mean' is the same under two seeds"),
        (Table, "the buffer 'pe' is the same under two seeds: .*compute a table in forward, or let a BatchNorm layer"),
        (lambda: Named(p=lambda: FIXED), r"the parameter 'p' is the same under two seeds: draw it from torch's random"),
        (lambda: Named(p=lambda: FIXED + 1e-3 * torch.randn(64)), "'p' is nearly the same under two seeds"),
        (lambda: torch.manual_seed(0) and nn.Linear(2, 2), "is the same under two seeds: draw it"),
    ],
)
def test_what_ignores_its_seed_is_told_the_rule_and_the_remedy(given: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(UsageError, match=f"ignores its seed: .*{says}.*; or state with stated=") as raised:
        certify(given, (torch.randn(64, 8), torch.arange(64) % 2) if "'p'" in says else blobs(64, 0), recipe=FREE)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("remedy", [PlainConstants, ComputedTable, learned_statistics])
def test_the_remedies_that_the_messages_name_give_a_certificate(remedy: Callable[[], nn.Module]) -> None:
    recipe = Recipe(prior=TrainConfig(epochs=1, batch_size=20), epochs=0, passes=1)
    assert certify(remedy, blobs(64, 0), recipe=recipe).standing == "certificate"


def test_data_in_a_function_is_named_and_what_it_needs_of_them_may_be_taken_first() -> None:
    x, y = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
    with pytest.raises(
        UsageError, match=r"x in .* holds more numbers .*: take from it what is needed first \(d = x.sh"
    ):
        certify(lambda: nn.Linear(x.shape[1], 2), (x, y), recipe=FREE)
    d = x.shape[1]
    assert certify(lambda: nn.Linear(d, 2), (x, y), recipe=FREE).standing == "certificate"
