"""Data and calls that try to have something false certified, of which `attacks.py` makes its list."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from intruders import (
    FREE,
    HALF,
    SHORT,
    D,
    H,
    K,
    N,
    data,
    fresh,
    minimum,
    near,
    trained,
    with_global,
)
from torch import Tensor, nn
from torch.utils.data import Dataset
from worlds import Data, memorised

from flatminima import Minimum
from flatminima.certification import Certificate, certify, certify_around
from flatminima.certification.prior import Centre
from flatminima.core.samples import Samples
from flatminima.training import TrainConfig


class Swapping(Dataset):
    """The samples, until each was read five times; then the first twenty again and again."""

    def __init__(self) -> None:
        self.read = Counter[int]()

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.read[i] += 1
        j = i if self.read[i] <= 5 else i % 20
        return data()[0][j], int(data()[1][j])


class Relabelling(Swapping):
    """Labels that are drawn anew at each reading, of one sample in fifty."""

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.read[i] += 1
        return data()[0][i], (int(data()[1][i]) + (self.read[i] if i % 50 == 33 else 0)) % K


class Choosing(Samples):
    """Samples that put the label that they like into the bound, by an order of their own."""

    def __len__(self) -> int:
        return N

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return data()[0][indices], data()[1][indices]

    def order(self, seed: int) -> Tensor:
        return (data()[1] == 0).int().argsort(stable=True)


class OwnStatistics(nn.Module):
    """Statistics of the batch at hand, computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


def copied(times: int, distinct: int = 40) -> Data:
    x, y = data()
    return x[:distinct].repeat(times, 1), y[:distinct].repeat(times)


def oversampled() -> Data:
    """The rows of one class drawn again with replacement."""
    x, y = data()
    own = (y == 0).nonzero()[:, 0]
    again = own[torch.randint(0, len(own), (N,), generator=torch.Generator().manual_seed(0))]
    return torch.cat([x, x[again]]), torch.cat([y, y[again]])


def jittered() -> Data:
    """Each row ten times, off in its last bits."""
    x, y = copied(10)
    return x * (1 + 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))), y


def patients() -> tuple[Data, Tensor]:
    """Twenty rows a patient, one label each."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N // 20, D, generator=g).repeat_interleave(20, 0) + 0.1 * torch.randn(N, D, generator=g)
    return (x, torch.randint(0, K, (N // 20,), generator=g).repeat_interleave(20)), torch.arange(N) // 20


def torn_patients(prior_groups: bool) -> Certificate:
    """Half of each patient's rows for the prior, which is trained here, and half for the bound."""
    (x, y), groups = patients()
    a, b = torch.arange(0, N, 2), torch.arange(1, N, 2)
    torch.manual_seed(0)
    return certify_around(
        Minimum(memorised(fresh(), (x, y)), (x[b], y[b])),
        prior=fresh,
        prior_data=(x[a], y[a]),
        prior_training=replace(SHORT, epochs=40),
        draws=200,
        groups=groups[b],
        **({"prior_groups": groups[a]} if prior_groups else {}),
    )


def own_as_prior(change: Callable[[Tensor], Tensor], labels: Callable[[Tensor], Tensor] = lambda y: y) -> Certificate:
    x, y = data()
    return certify_around(minimum(), prior=near(1e-3), prior_data=(change(x), labels(y)), draws=200)


def frozen() -> Minimum:
    network = trained()
    for p in network[:4].parameters():  # type: ignore[index]
        p.requires_grad_(False)
    return Minimum(network, data())


def around_global(prior: Any) -> Certificate:
    torch.manual_seed(0)
    network = memorised(with_global()(), data())
    return certify_around(Minimum(network, data()), prior=prior, draws=200)


def under(context: AbstractContextManager[Any]) -> Certificate:
    at = minimum()
    with context:
        return certify_around(at, prior="zero", draws=64)


class DefaultDtype(AbstractContextManager[None]):
    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(torch.float32)


def with_statistics() -> nn.Module:
    """BatchNorm statistics of all samples, the counter of batches reset."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(D, H), nn.BatchNorm1d(H), nn.ReLU(), nn.Linear(H, K)).train()
    network(data()[0])
    network[1].num_batches_tracked.zero_()
    return network


def best_seed() -> Certificate:
    """The least of 16 certificates, which differ in the seed alone, each charged for all of them."""
    recipe = replace(HALF, prior=replace(SHORT, epochs=2))
    every = (
        certify(lambda: nn.Linear(D, K), data(), recipe=recipe, seed=s, delta=0.5, evaluations=16) for s in range(16)
    )
    return min(every, key=lambda c: c.risk_bound)


class _Agreeing(Tensor):
    """A tensor that no label differs from."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})
        return torch.zeros_like(out) if func in (Tensor.__ne__, Tensor.ne, torch.ne) else out


class Claiming(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).as_subclass(_Agreeing)


class Overflowing(nn.Linear):
    """Logits beyond what a float holds."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1e38 * 1e3


class Obliging(Minimum):
    """A minimum whose labels are its predictions."""

    def batch(self, indices: Tensor, start: int = 0) -> Any:
        batch = super().batch(indices, start)
        batch.targets = self.forward(batch.inputs).argmax(1)
        return batch


class Knowing(Dataset):
    """The samples, but the first twenty for whoever counts errors."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        frame: Any = sys._getframe()
        callers = set()
        while frame is not None:
            callers.add(frame.f_code.co_name)
            frame = frame.f_back
        j = i % 20 if "by_batch" in callers else i
        return data()[0][j], int(data()[1][j])


def clock() -> nn.Module:
    torch.manual_seed(time.time_ns() % (1 << 31))
    return fresh()


def trained_on(change: Callable[[Tensor], Tensor]) -> Certificate:
    """A prior that is trained here on samples made of the bound's, and said to be others; Q around the same network."""
    others = (change(data()[0]), data()[1])
    long = TrainConfig(lr=0.1, epochs=60, batch_size=20)
    network = Centre.of(fresh, others, minimum(), training=long).network
    assert network is not None
    return certify_around(
        Minimum(network, data()), prior=fresh, prior_data=others, prior_training=long, scales=0.001, draws=200
    )


def mixed(x: Tensor) -> Tensor:
    return 0.65 * x + 0.35 * x.roll(1, 0)


def moved() -> Data:
    """Smooth images of 16 x 16, each five times, moved by a pixel."""
    g = torch.Generator().manual_seed(0)
    x = nn.functional.interpolate(torch.rand(60, 1, 5, 5, generator=g), size=(18, 18), mode="bilinear")
    x = (x * 255).round() / 255
    places = ((0, 1), (1, 0), (1, 1), (1, 2), (2, 1))
    images = torch.cat([x[..., a : a + 16, b : b + 16] for a, b in places])
    return images, torch.randint(0, K, (60,), generator=g).repeat(5)


def image_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, K))


def inherited() -> Certificate:
    """A folder that holds the state of a prior trained on all samples, as if a killed run had left it."""
    recipe = replace(HALF, prior=replace(SHORT, epochs=1))
    with tempfile.TemporaryDirectory() as folder:
        certify(fresh, data(), recipe=recipe, output=folder, evaluations=1)
        state = torch.load(Path(folder) / "prior.pt", weights_only=True)
        for own, (_, theirs) in zip(
            [v for v in state["training"]["model"].values()], trained().state_dict().items(), strict=True
        ):
            own.copy_(theirs)
        torch.save(state, Path(folder) / "prior.pt")
        for name in ("posterior.pt", "certificate.json"):
            (Path(folder) / name).unlink(missing_ok=True)
        return certify(fresh, data(), recipe=recipe, output=folder, evaluations=1, ledger=False)


def searched() -> Certificate:
    """The last of 25 seeds tried in a loop, none of them counted."""
    every = [certify(lambda: nn.Linear(D, K), data(), recipe=FREE, seed=s) for s in range(25)]
    return every[-1]


def positives() -> Data:
    """Two samples in a hundred are positive."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, D, generator=g), (torch.rand(N, generator=g) < 0.02).long()
