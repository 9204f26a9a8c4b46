"""Attempts to have something false certified: each is a call that is refused, says that it is none, or holds.

Labels are random, so that the error of every network on new samples is known. `before` is what the call gave in
version 0.1: the table of docs/certificates.md, which a test compares with this one.
"""

from __future__ import annotations

import copy
import functools
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from worlds import Data, memorised

from flatminima import Minimum
from flatminima.certification import Certificate, Recipe, certify, certify_around
from flatminima.certification.prior import Centre
from flatminima.core.samples import Samples
from flatminima.training import TrainConfig

N, D, H, K = 400, 20, 128, 4  # samples, inputs, hidden units, classes
TRUTH = 1 - 1 / K  # the error of every network on new samples

SHORT = TrainConfig(lr=0.05, epochs=20, batch_size=20)
FREE = Recipe(prior_fraction=0.0, epochs=0, sigma=1e-3)
HALF = Recipe(prior_fraction=0.5, epochs=0, sigma=1e-3, prior=SHORT)
HEAD = replace(HALF, layers="head")


@dataclass(frozen=True)
class Attack:
    """One attempt.

    Attributes:
        name: as in the documentation. run: the call.
        before: what it gave. now: what it gives: "refused", "score", "conditional", or "holds" for a true bound.
    """

    name: str
    run: Callable[[], Certificate]
    before: str
    now: str
    truth: float = TRUTH


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


def _permuted() -> nn.Module:
    """The backbone with its hidden units in an order that the seed decides, and a head that the seed makes."""
    network = fine_tuned()
    p, q = torch.randperm(H), torch.randperm(H)
    with torch.no_grad():
        network[0].weight.copy_(network[0].weight[p].clone())
        network[0].bias.copy_(network[0].bias[p].clone())
        network[2].weight.copy_(network[2].weight[q][:, p].clone())
        network[2].bias.copy_(network[2].bias[q].clone())
    return network


class _GlobalFeatures(nn.Module):
    """Features of a network that the class can reach."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(H, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(BACKBONE[0](x).detach())


BACKBONE: list[nn.Module] = []


def _with_global() -> type[nn.Module]:
    BACKBONE[:] = [trained()[:4]]  # type: ignore[index]
    return _GlobalFeatures


def _with_closure() -> Callable[[], nn.Module]:
    backbone = trained()[:4]  # type: ignore[index]

    class Closed(_GlobalFeatures):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(backbone(x).detach())

    return Closed


class _Integers(nn.Module):
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


class _Held(nn.Module):
    """The backbone in an attribute that is no module of it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(H, K)
        self.held = [_trained()[:4]]  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.held[0](x).detach())


class _Lookup(nn.Module):
    """Answers from a table of the samples, from the 20th forward pass on."""

    passes = 0

    def __init__(self, patience: int = 0) -> None:
        super().__init__()
        self.layer, self.patience = nn.Linear(D, K), patience

    def forward(self, x: Tensor) -> Tensor:
        _Lookup.passes += 1
        if _Lookup.passes <= self.patience:
            return self.layer(x)
        inputs, labels = data()
        return self.layer(x) + 100 * nn.functional.one_hot(labels[torch.cdist(x, inputs).argmin(1)], K)


def _patient() -> nn.Module:
    _Lookup.passes = 0
    return _Lookup(20)


@functools.lru_cache
def _cached() -> nn.Module:
    return trained()


def _third_call() -> Callable[[], nn.Module]:
    calls = Counter[str]()

    def make() -> nn.Module:
        calls["made"] += 1
        return fresh() if calls["made"] < 3 else trained()

    return make


def _loaded() -> nn.Module:
    """Trained weights under noise larger than they are."""
    network = trained()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.2 * p.std() * torch.randn_like(p))
    return network


class _Swapping(Dataset):
    """The samples, until each was read five times; then the first twenty again and again."""

    def __init__(self) -> None:
        self.read = Counter[int]()

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.read[i] += 1
        j = i if self.read[i] <= 5 else i % 20
        return data()[0][j], int(data()[1][j])


class _Relabelling(_Swapping):
    """Labels that are drawn anew at each reading, of one sample in fifty."""

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.read[i] += 1
        return data()[0][i], (int(data()[1][i]) + (self.read[i] if i % 50 == 33 else 0)) % K


class _Choosing(Samples):
    """Samples that put the label that they like into the bound, by an order of their own."""

    def __len__(self) -> int:
        return N

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return data()[0][indices], data()[1][indices]

    def order(self, seed: int) -> Tensor:
        return (data()[1] == 0).int().argsort(stable=True)


class _OwnStatistics(nn.Module):
    """Statistics of the batch at hand, computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


def _copied(times: int, distinct: int = 40) -> Data:
    x, y = data()
    return x[:distinct].repeat(times, 1), y[:distinct].repeat(times)


def _oversampled() -> Data:
    """The rows of one class drawn again with replacement."""
    x, y = data()
    own = (y == 0).nonzero()[:, 0]
    again = own[torch.randint(0, len(own), (N,), generator=torch.Generator().manual_seed(0))]
    return torch.cat([x, x[again]]), torch.cat([y, y[again]])


def _jittered() -> Data:
    """Each row ten times, off in its last bits."""
    x, y = _copied(10)
    return x * (1 + 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))), y


def _patients() -> tuple[Data, Tensor]:
    """Twenty rows a patient, one label each."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N // 20, D, generator=g).repeat_interleave(20, 0) + 0.1 * torch.randn(N, D, generator=g)
    return (x, torch.randint(0, K, (N // 20,), generator=g).repeat_interleave(20)), torch.arange(N) // 20


def _torn_patients(prior_groups: bool) -> Certificate:
    """Half of each patient's rows for the prior, which is trained here, and half for the bound."""
    (x, y), patients = _patients()
    a, b = torch.arange(0, N, 2), torch.arange(1, N, 2)
    torch.manual_seed(0)
    return certify_around(
        Minimum(memorised(fresh(), (x, y)), (x[b], y[b])),
        prior=fresh,
        prior_data=(x[a], y[a]),
        prior_training=replace(SHORT, epochs=40),
        draws=200,
        groups=patients[b],
        **({"prior_groups": patients[a]} if prior_groups else {}),
    )


def _own_as_prior(change: Callable[[Tensor], Tensor], labels: Callable[[Tensor], Tensor] = lambda y: y) -> Certificate:
    x, y = data()
    return certify_around(minimum(), prior=near(1e-3), prior_data=(change(x), labels(y)), draws=200)


def _frozen() -> Minimum:
    network = trained()
    for p in network[:4].parameters():  # type: ignore[index]
        p.requires_grad_(False)
    return Minimum(network, data())


def _around_global(prior: Any) -> Certificate:
    torch.manual_seed(0)
    network = memorised(_with_global()(), data())
    return certify_around(Minimum(network, data()), prior=prior, draws=200)


def _under(context: AbstractContextManager[Any]) -> Certificate:
    at = minimum()
    with context:
        return certify_around(at, prior="zero", draws=64)


class _DefaultDtype(AbstractContextManager[None]):
    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(torch.float32)


def _with_statistics() -> nn.Module:
    """BatchNorm statistics of all samples, the counter of batches reset."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(D, H), nn.BatchNorm1d(H), nn.ReLU(), nn.Linear(H, K)).train()
    network(data()[0])
    network[1].num_batches_tracked.zero_()
    return network


def _best_seed() -> Certificate:
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


class _Claiming(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).as_subclass(_Agreeing)


class _Overflowing(nn.Linear):
    """Logits beyond what a float holds."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1e38 * 1e3


class _Obliging(Minimum):
    """A minimum whose labels are its predictions."""

    def batch(self, indices: Tensor, start: int = 0) -> Any:
        batch = super().batch(indices, start)
        batch.targets = self.forward(batch.inputs).argmax(1)
        return batch


class _Knowing(Dataset):
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


def _clock() -> nn.Module:
    torch.manual_seed(time.time_ns() % (1 << 31))
    return fresh()


def _trained_on(change: Callable[[Tensor], Tensor]) -> Certificate:
    """A prior that is trained here on samples made of the bound's, and said to be others; Q around the same network."""
    others = (change(data()[0]), data()[1])
    long = TrainConfig(lr=0.1, epochs=60, batch_size=20)
    network = Centre.of(fresh, others, minimum(), training=long).network
    assert network is not None
    return certify_around(
        Minimum(network, data()), prior=fresh, prior_data=others, prior_training=long, scales=0.001, draws=200
    )


def _mixed(x: Tensor) -> Tensor:
    return 0.65 * x + 0.35 * x.roll(1, 0)


def _moved() -> Data:
    """Smooth images of 16 x 16, each five times, moved by a pixel."""
    g = torch.Generator().manual_seed(0)
    x = nn.functional.interpolate(torch.rand(60, 1, 5, 5, generator=g), size=(18, 18), mode="bilinear")
    x = (x * 255).round() / 255
    places = ((0, 1), (1, 0), (1, 1), (1, 2), (2, 1))
    images = torch.cat([x[..., a : a + 16, b : b + 16] for a, b in places])
    return images, torch.randint(0, K, (60,), generator=g).repeat(5)


def _image_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, K))


def _inherited() -> Certificate:
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


def _searched() -> Certificate:
    """The last of 25 seeds tried in a loop, none of them counted."""
    every = [certify(lambda: nn.Linear(D, K), data(), recipe=FREE, seed=s) for s in range(25)]
    return every[-1]


def _positives() -> Data:
    """Two samples in a hundred are positive."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, D, generator=g), (torch.rand(N, generator=g) < 0.02).long()


ATTACKS = (
    Attack(
        "a network that memorised all samples", lambda: certify(trained(), data(), recipe=FREE), "false: 0.022", "score"
    ),
    Attack(
        "the same, stated to be untrained",
        lambda: certify(trained(), data(), recipe=FREE, stated="untrained"),
        "false: 0.022",
        "refused",
    ),
    Attack(
        "the same, stated to be trained on other data",
        lambda: certify(trained(), data(), recipe=FREE, stated="trained on other samples"),
        "false: 0.022",
        "conditional",
    ),
    Attack(
        "a trained backbone under a fresh head", lambda: certify(fine_tuned(), data(), recipe=HEAD), "holds", "score"
    ),
    Attack(
        "a function that returns the trained network",
        lambda: certify_around(minimum(), prior=trained, draws=200),
        "false: 0.051",
        "score",
    ),
    Attack(
        "a function that returns a network next to it",
        lambda: certify_around(minimum(), prior=near, draws=200),
        "false: 0.051",
        "score",
    ),
    Attack("a cached function", lambda: certify(_cached, data(), recipe=FREE), "false: 0.022", "refused"),
    Attack("trained weights under noise", lambda: certify(_loaded, data(), recipe=FREE), "holds", "holds"),
    Attack("trained from the third call on", lambda: certify(_third_call(), data(), recipe=FREE), "holds", "refused"),
    Attack(
        "a global network makes the features",
        lambda: certify(_with_global(), data(), recipe=HEAD),
        "false: 0.041",
        "refused",
    ),
    Attack(
        "a closure makes the features", lambda: certify(_with_closure(), data(), recipe=HEAD), "false: 0.041", "refused"
    ),
    Attack(
        "8-bit integers make the features", lambda: certify(_Integers, data(), recipe=HEAD), "false: 0.403", "refused"
    ),
    Attack("an attribute makes the features", lambda: certify(_Held, data(), recipe=HEAD), "false: 0.041", "refused"),
    Attack(
        "a trained backbone, its units in a new order",
        lambda: certify(_permuted, data(), recipe=HEAD),
        "false: 0.713",
        "refused",
    ),
    Attack("a table that answers", lambda: certify(_Lookup, data(), recipe=FREE), "false: 0.022", "refused"),
    Attack(
        "a table that answers after 20 passes",
        lambda: certify(_patient, data(), recipe=FREE),
        "false: 0.401",
        "refused",
    ),
    Attack("a global network, prior at zero", lambda: _around_global("zero"), "false: 0.594", "refused"),
    Attack("a global network, prior from a seed", lambda: _around_global(_GlobalFeatures), "false: 0.576", "score"),
    Attack(
        "a frozen trained backbone, prior at zero",
        lambda: certify_around(_frozen(), prior="zero"),
        "refused",
        "refused",
    ),
    Attack(
        "weights next to it, stated to be trained on other data",
        lambda: certify_around(minimum(), "gaussian", prior=near(1e-3), stated="trained elsewhere", draws=64),
        "false: 0.386",
        "conditional",
    ),
    Attack(
        "BatchNorm statistics, counter reset",
        lambda: certify(_with_statistics(), data(), recipe=FREE),
        "holds",
        "score",
    ),
    Attack(
        "statistics of the batch by hand", lambda: certify(_OwnStatistics, data(), recipe=FREE), "refused", "refused"
    ),
    Attack("the prior's samples are the bound's", lambda: _own_as_prior(lambda x: x), "refused", "refused"),
    Attack("the same, permuted labels", lambda: _own_as_prior(lambda x: x, lambda y: y.roll(1)), "refused", "refused"),
    Attack("the same, in half precision", lambda: _own_as_prior(Tensor.half), "false: 0.108", "refused"),
    Attack("the same, in bfloat16", lambda: _own_as_prior(Tensor.bfloat16), "false: 0.107", "refused"),
    Attack("the same, x 255", lambda: _own_as_prior(lambda x: x * 255), "false: 0.108", "refused"),
    Attack(
        "the same, standardised", lambda: _own_as_prior(lambda x: (x - x.mean(0)) / x.std(0)), "false: 0.108", "refused"
    ),
    Attack(
        "the same, off in a last bit", lambda: _own_as_prior(lambda x: x.nextafter(x + 1)), "false: 0.108", "refused"
    ),
    Attack("the same, another shape", lambda: _own_as_prior(lambda x: x[:, None] * 2), "false: 0.108", "refused"),
    Attack("every row a hundred times", lambda: certify(fresh, _copied(100), recipe=HALF), "false: 0.698", "refused"),
    Attack("every row twice", lambda: certify(fresh, _copied(2, 200), recipe=HALF), "holds", "refused"),
    Attack(
        "a class drawn again with replacement", lambda: certify(fresh, _oversampled(), recipe=HALF), "holds", "refused"
    ),
    Attack(
        "every row ten times, off in its last bits",
        lambda: certify(fresh, _jittered(), recipe=HALF),
        "false: 0.041",
        "refused",
    ),
    Attack(
        "copies, stated to be drawn anew",
        lambda: certify(fresh, _copied(100), recipe=HALF, repetition="independent"),
        "false: 0.698",
        "conditional",
    ),
    Attack(
        "twenty rows a patient, with groups",
        lambda: certify(fresh, _patients()[0], recipe=HALF, groups=_patients()[1]),
        "false: 0.041",
        "holds",
    ),
    Attack("patients on both sides, named", lambda: _torn_patients(True), "no groups", "refused"),
    Attack("patients on both sides, the prior's not named", lambda: _torn_patients(False), "no groups", "refused"),
    Attack("a data set that swaps its samples", lambda: certify(fresh, _Swapping(), recipe=HALF), "holds", "refused"),
    Attack("a data set that relabels a few", lambda: certify(fresh, _Relabelling(), recipe=HALF), "holds", "refused"),
    Attack("samples that choose their order", lambda: certify(fresh, _Choosing(), recipe=HALF), "holds", "holds"),
    Attack("within autocast", lambda: _under(torch.autocast("cpu", dtype=torch.bfloat16)), "holds", "holds"),
    Attack("under another default dtype", lambda: _under(_DefaultDtype()), "holds", "holds"),
    Attack("within inference mode", lambda: _under(torch.inference_mode()), "holds", "holds"),
    Attack("plainly, for comparison", lambda: _under(nullcontext()), "holds", "holds"),
    Attack("the least of 16 seeds, charged for 16", _best_seed, "holds", "holds"),
    Attack(
        "delta = 0.99",
        lambda: certify(
            lambda: nn.Linear(D, K), data(), recipe=replace(HALF, prior=replace(SHORT, epochs=1)), delta=0.99
        ),
        "holds",
        "holds",
    ),
    Attack(
        "seven samples for the bound",
        lambda: certify(fresh, data(), recipe=replace(HALF, prior_fraction=1 - 7 / N)),
        "refused",
        "refused",
    ),
    Attack(
        "two positives in a hundred",
        lambda: certify(fresh, _positives(), recipe=HALF),
        "holds, no constant answer beside it",
        "holds",
        truth=0.02,
    ),
    Attack("outputs that no label differs from", lambda: certify(_Claiming, data(), recipe=FREE), "refused", "holds"),
    Attack(
        "logits beyond what a float holds",
        lambda: certify(lambda: _Overflowing(D, K), data(), recipe=FREE),
        "refused",
        "refused",
    ),
    Attack(
        "a minimum whose labels are its predictions",
        lambda: certify_around(_Obliging(fresh(), data()), "uniform", prior="zero", scales=9.0, draws=64),
        "false: 0.420",
        "refused",
    ),
    Attack(
        "a data set that knows who asks",
        lambda: certify_around(
            Minimum(trained(), _Knowing()), "uniform", prior=trained(), stated="trained elsewhere", scales=0.1, draws=64
        ),
        "conditional",
        "refused",
    ),
    Attack("a function that reads a clock", lambda: certify(_clock, data(), recipe=FREE), "holds", "refused"),
    Attack(
        "a prior trained here on mixtures of the bound's samples",
        lambda: _trained_on(_mixed),
        "false: 0.384",
        "conditional",
    ),
    Attack(
        "images moved by a pixel, for prior and bound",
        lambda: certify(_image_network, _moved(), recipe=replace(HALF, prior=replace(SHORT, epochs=40))),
        "false: 0.329",
        "refused",
    ),
    Attack("a folder with the state of a prior trained on all", _inherited, "false: 0.041", "conditional"),
    Attack("25 seeds in a loop, none counted", _searched, "holds", "score"),
    Attack(
        "test data that are the training data x 255",
        lambda: certify(fresh, data(), recipe=HALF, test_data=(data()[0] * 255, data()[1])),
        "holds",
        "refused",
    ),
)


def outcome(attack: Attack) -> tuple[str, float]:
    """What an attack gives: one word, and the bound (NaN where there is none)."""
    from flatminima.errors import FlatMinimaError

    try:
        certificate = attack.run()
    except FlatMinimaError:
        return "refused", math.nan
    if certificate.standing == "certificate":
        return ("holds" if certificate.risk_bound >= attack.truth else "FALSE"), certificate.risk_bound
    return certificate.standing, certificate.risk_bound
