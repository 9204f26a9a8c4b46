"""Worlds whose labels are coin flips: whatever the network, its error on new samples is known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class World:
    """How n samples are drawn, and the error of every predictor on a new one.

    Attributes:
        draw: (n, seed) to inputs and labels. groups: (n,) identifiers, None where samples are independent.
    """

    name: str
    draw: Callable[[int, int], Data]
    inputs: int
    error: float = 0.5
    groups: Callable[[int], Tensor] | None = None


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(10_000 + seed)


def _coins(n: int, g: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (n,), generator=g)


def _categories(values: int) -> Callable[[int, int], Data]:
    def draw(n: int, seed: int) -> Data:
        g = _generator(seed)
        return torch.eye(values)[torch.randint(0, values, (n,), generator=g)], _coins(n, g)

    return draw


def _skewed(n: int, seed: int) -> Data:
    """Some categories are hundreds of times as likely as others: many singletons beside many copies."""
    g = _generator(seed)
    shares = 1 / torch.arange(1, 31).float() ** 1.5
    return torch.eye(30)[torch.multinomial(shares, n, replacement=True, generator=g)], _coins(n, g)


def _table(n: int, seed: int) -> Data:
    g = _generator(seed)
    return torch.stack([torch.randint(0, k, (n,), generator=g) for k in (2, 3, 4)], 1).float(), _coins(n, g)


def _continuous(n: int, seed: int) -> Data:
    g = _generator(seed)
    return torch.randn(n, 5, generator=g), _coins(n, g)


def _mixed(n: int, seed: int) -> Data:
    """A category and a column of few decimals."""
    g = _generator(seed)
    x = torch.eye(3)[torch.randint(0, 3, (n,), generator=g)]
    return torch.cat([x, (torch.rand(n, 1, generator=g) * 10).round() / 10], 1), _coins(n, g)


GROUP = 5  # samples of a patient


def _patients(n: int, seed: int) -> Data:
    """Each patient has a place of its own and one label; a new patient's is a coin."""
    g = _generator(seed)
    places, labels = torch.randn(n // GROUP, 8, generator=g), _coins(n // GROUP, g)
    x = places.repeat_interleave(GROUP, 0) + 0.05 * torch.randn(n // GROUP * GROUP, 8, generator=g)
    return x, labels.repeat_interleave(GROUP)


WORLDS = (
    World("four categories", _categories(4), 4),
    World("sixteen categories", _categories(16), 16),
    World("skewed categories", _skewed, 30),
    World("a table", _table, 3),
    World("continuous", _continuous, 5),
    World("categories and decimals", _mixed, 4),
    World("patients", _patients, 8, groups=lambda n: torch.arange(n) // GROUP),
)


class Reread(Dataset):
    """Labels that are flipped in one of ten samples, anew at each reading."""

    def __init__(self, data: Data) -> None:
        self.x, self.y = data
        self.g = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], int(self.y[i]) ^ int(torch.rand((), generator=self.g) < 0.1)


def memorised(network: nn.Module, data: Data, steps: int = 200, lr: float = 5e-3) -> nn.Module:
    """The network after it was fitted to the data, whatever they are."""
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(data[0]), data[1]).backward()
        optimizer.step()
    return network.eval()


def predicted(certificate: Any) -> str:
    """How a certificate is counted in a failure message."""
    return f"{certificate.standing}, bound {certificate.risk_bound:.4f}, hold-out {certificate.holdout_bound}"
