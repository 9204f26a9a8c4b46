"""Networks that try to have something false certified, of which `attacks.py` makes its calls; and their data.

Labels are random, so that the error of every network on new samples is known.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from worlds import Data, memorised

from flatminima import Minimum
from flatminima.certification import Recipe
from flatminima.training import TrainConfig

N, D, H, K = 400, 20, 128, 4  # samples, inputs, hidden units, classes
TRUTH = 1 - 1 / K  # the error of every network on new samples

SHORT = TrainConfig(lr=0.05, epochs=20, batch_size=20)
FREE = Recipe(prior_fraction=0.0, epochs=0, sigma=1e-3)
HALF = Recipe(prior_fraction=0.5, epochs=0, sigma=1e-3, prior=SHORT)
HEAD = replace(HALF, layers="head")


@functools.cache
def data() -> Data:
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, D, generator=g), torch.randint(0, K, (N,), generator=g)


def fresh() -> nn.Module:
    return nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, K))


@functools.cache
def _trained() -> nn.Module:
    torch.manual_seed(0)
    return memorised(fresh(), data())


def trained() -> nn.Module:
    """A network that errs on none of the samples."""
    return copy.deepcopy(_trained())


def near(size: float = 1e-4) -> nn.Module:
    """The same, each weight a little elsewhere."""
    network = trained()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(size * torch.randn_like(p))
    return network


def minimum() -> Minimum:
    return Minimum(trained(), data())


def fine_tuned() -> nn.Module:
    """A backbone that has seen the samples, with a head that has not."""
    network = trained()
    network[4].reset_parameters()
    return network


def permuted() -> nn.Module:
    """The backbone with its hidden units in an order that the seed decides, and a head that the seed makes."""
    network = fine_tuned()
    p, q = torch.randperm(H), torch.randperm(H)
    with torch.no_grad():
        network[0].weight.copy_(network[0].weight[p].clone())
        network[0].bias.copy_(network[0].bias[p].clone())
        network[2].weight.copy_(network[2].weight[q][:, p].clone())
        network[2].bias.copy_(network[2].bias[q].clone())
    return network


class GlobalFeatures(nn.Module):
    """Features of a network that the class can reach."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(H, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(BACKBONE[0](x).detach())


BACKBONE: list[nn.Module] = []


def with_global() -> type[nn.Module]:
    BACKBONE[:] = [trained()[:4]]  # type: ignore[index]
    return GlobalFeatures


def with_closure() -> Callable[[], nn.Module]:
    backbone = trained()[:4]  # type: ignore[index]

    class Closed(GlobalFeatures):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(backbone(x).detach())

    return Closed


class Integers(nn.Module):
    """The backbone as 8-bit integers, which no optimizer sees and no seed changes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(H, K)
        for i, layer in enumerate((_trained()[0], _trained()[2])):  # type: ignore[index]
            self.register_buffer(f"w{i}", (layer.weight.detach() * 300).round().to(torch.int8))
            self.register_buffer(f"b{i}", (layer.bias.detach() * 300).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            w, b = getattr(self, f"w{i}").float() / 300, getattr(self, f"b{i}").float() / 300
            x = torch.relu(x @ w.T + b)
        return self.head(x)


class Held(nn.Module):
    """The backbone in an attribute that is no module of it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(H, K)
        self.held = [_trained()[:4]]  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.held[0](x).detach())


class Lookup(nn.Module):
    """Answers from a table of the samples, from the 20th forward pass on."""

    passes = 0

    def __init__(self, patience: int = 0) -> None:
        super().__init__()
        self.layer, self.patience = nn.Linear(D, K), patience

    def forward(self, x: Tensor) -> Tensor:
        Lookup.passes += 1
        if Lookup.passes <= self.patience:
            return self.layer(x)
        inputs, labels = data()
        return self.layer(x) + 100 * nn.functional.one_hot(labels[torch.cdist(x, inputs).argmin(1)], K)


def patient() -> nn.Module:
    Lookup.passes = 0
    return Lookup(20)


@functools.lru_cache
def cached() -> nn.Module:
    return trained()


def third_call() -> Callable[[], nn.Module]:
    calls = Counter[str]()

    def make() -> nn.Module:
        calls["made"] += 1
        return fresh() if calls["made"] < 3 else trained()

    return make


def loaded() -> nn.Module:
    """Trained weights under noise larger than they are."""
    network = trained()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.2 * p.std() * torch.randn_like(p))
    return network
