"""Whatever a network writes while it is measured comes back, also where nobody registered it."""

from __future__ import annotations

import collections
import random
import types
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from flatminima import Minimum, measures
from flatminima.core.samples import as_samples
from flatminima.errors import DataError, ModelError
from flatminima.testing.state import bits

X, Y = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


@dataclass(slots=True)
class Slotted:
    n: int
    seen: list[int]


class Meter:
    def __init__(self) -> None:
        self.total, self.inner = torch.zeros(2), types.SimpleNamespace(n=0)

    def add(self) -> None:
        self.total += 1
        self.inner.n += 1


class Fussy(collections.OrderedDict):  # type: ignore[type-arg]
    """A dictionary that refuses to be updated or cleared, as the outputs of transformers do."""

    def update(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("no")

    clear = pop = update


def _fussy(held: Any) -> None:
    held[len(held)] = 1
    held.move_to_end(0)


def _resize(holder: Any) -> None:
    holder["t"].data = torch.ones(3)


HELD: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "a tensor": (lambda: torch.zeros(2), lambda t: t.add_(1)),
    "a tensor through .data": (lambda: torch.zeros(2), lambda t: t.data.add_(1)),
    "a tensor of another length": (lambda: {"t": torch.zeros(2)}, _resize),
    "a tensor with a graph": (lambda: torch.zeros(2, requires_grad=True) * 2, lambda t: t.data.add_(1)),
    "a tensor in a list": (lambda: [(torch.zeros(1), 2)], lambda held: held[0][0].add_(1)),
    "a tensor that holds NaN": (lambda: torch.tensor([float("nan"), 0.0]), lambda t: t[1].add_(1)),
    "a Counter": (collections.Counter, lambda c: c.update("n")),
    "a Counter with counts": (lambda: collections.Counter(n=3), lambda c: c.update("nm")),
    "a defaultdict of lists": (lambda: collections.defaultdict(list), lambda d: d["n"].append(1)),
    "a UserDict": (collections.UserDict, lambda d: d.__setitem__("k", d.get("k", 0) + 1)),
    "a deque": (lambda: collections.deque([1, 2], maxlen=2), lambda d: d.append(3)),
    "a dictionary that refuses": (lambda: Fussy({0: 1, 1: 2}), _fussy),
    "a namespace": (lambda: types.SimpleNamespace(n=0), lambda o: setattr(o, "n", o.n + 1)),
    "a new attribute": (types.SimpleNamespace, lambda o: setattr(o, "n", 1)),
    "slots": (lambda: Slotted(0, []), lambda o: (setattr(o, "n", o.n + 1), o.seen.append(1))),
    "an object in an object": (Meter, Meter.add),
    "objects in a list": (lambda: [Meter(), Meter()], lambda held: held[1].add()),
    "an array": (lambda: np.zeros(2), lambda a: a.__iadd__(1)),
    "an array of objects": (lambda: np.array([None, "a"], dtype=object), lambda a: a.__setitem__(0, 1)),
    "a view of an array": (lambda: np.zeros((3, 3))[:, 1], lambda a: a.__iadd__(1)),
    "bytes": (lambda: bytearray(b"ab"), lambda b: b.extend(b"c")),
    "machine numbers": (lambda: array("d", [1.0]), lambda a: a.append(2.0)),
    "a generator of torch": (lambda: torch.Generator().manual_seed(3), lambda g: torch.rand(1, generator=g)),
    "a generator of numpy": (lambda: np.random.default_rng(0), lambda g: g.random()),
    "an old generator of numpy": (lambda: np.random.RandomState(0), lambda g: g.rand()),
    "a generator of Python": (lambda: random.Random(0), lambda g: g.random()),
    "a layer that is not registered": (lambda: [nn.BatchNorm1d(5).train()], lambda held: held[0](X)),
    "layers within it": (lambda: {"n": nn.Sequential(nn.BatchNorm1d(5))}, lambda held: held["n"].train()(X)),
}


def state(value: Any) -> Any:
    """A value that is equal exactly where the state of the holder is."""
    if isinstance(value, torch.Generator):
        return bits(value.get_state())
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return bits(value.get_state())
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, nn.Module):
        return [bits(t) for t in value.state_dict().values()], [m.training for m in value.modules()]
    if isinstance(value, Slotted):
        return value.n, state(value.seen)
    if isinstance(value, types.SimpleNamespace | Meter | collections.UserDict):
        return state(vars(value))
    if isinstance(value, dict):
        return [(k, state(v)) for k, v in value.items()]
    if isinstance(value, list | tuple | collections.deque):
        return [state(v) for v in value]
    return bits(
        value.tolist()
        if isinstance(value, np.ndarray | array)
        else bytes(value)
        if isinstance(value, bytearray)
        else value
    )


class Net(nn.Module):
    def __init__(self, held: Any, write: Callable[[Any], object]) -> None:
        super().__init__()
        self.layer, self.held, self.write = nn.Linear(5, 3), held, write

    def forward(self, x: Tensor) -> Tensor:
        self.write(self.held)
        return self.layer(x)


def network(name: str) -> Net:
    make, write = HELD[name]
    return Net(make(), write).eval()


@pytest.mark.parametrize("name", HELD)
def test_what_a_forward_pass_writes_comes_back(name: str) -> None:
    net = network(name)
    held, before = net.held, state(net.held)
    minimum = Minimum(net, (X, Y))
    assert measures.fisher_trace(minimum, subset=12).value is not None
    with pytest.raises(KeyError), minimum.open():
        net(X)
        raise KeyError("in the middle")
    assert net.held is held and state(held) == before
    net(X)
    assert state(held) != before  # or the test proves nothing


class MixesBehindItsBack(nn.Module):
    """Normalises by a layer in a list, which `eval()` does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norms = nn.Linear(5, 3), [nn.BatchNorm1d(5)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norms[0](x))


def test_statistics_of_a_layer_that_is_not_registered_come_back_after_a_refusal() -> None:
    net = MixesBehindItsBack().eval()
    before = state(net.norms[0])
    with pytest.raises(ModelError):
        Minimum(net, (X, Y))
    assert state(net.norms[0]) == before


class KeptInATensor(nn.Module):
    """Keeps values of its weights in a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.kept, self.filled = nn.Linear(5, 3), torch.zeros(3, 5), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.filled:
            self.filled = True
            self.kept.copy_(self.layer.weight.detach().tanh())
        return x @ self.kept.T + self.layer.bias


def test_values_of_the_weights_in_such_a_tensor_are_refused() -> None:
    net = KeptInATensor().eval()
    with pytest.raises(ModelError, match="keeps values that it computed from its weights"):
        Minimum(net, (X, Y))
    assert not net.filled and not net.kept.any()


class SeesItsWeight(nn.Module):
    """Holds its weight's memory in an attribute, which moves with the weight and is no state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.seen = [self.layer.weight.data, self.layer.weight, self.layer.weight.data[1:]]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_memory_of_a_weight_is_not_put_back_in_the_middle() -> None:
    net, same = SeesItsWeight().eval(), nn.Sequential(nn.Linear(5, 3)).eval()
    same[0].load_state_dict(net.layer.state_dict())
    found = [measures.sharpness(Minimum(n, (X, Y)), samples=None).value for n in (net, same)]
    assert found[0] == found[1]


# -- generators of data ----------------------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(list(zip(X, Y, strict=True)))


class Transformed(Dataset[Any]):
    """Draws in a transform, and does nothing with it."""

    def __init__(self) -> None:
        self.transforms = [types.SimpleNamespace(generator=np.random.default_rng(0))]

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        self.transforms[0].generator.random()
        return X[i], Y[i]


class Batches(IterableDataset[Any]):
    def __init__(self, data: Transformed) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return (
            tuple(torch.stack(part) for part in zip(*(self.data[i] for i in rows), strict=True))
            for rows in ((0, 1), (2, 3))
        )


LOADERS: dict[str, Callable[[torch.Generator], Any]] = {
    "in order": lambda g: DataLoader(TensorDataset(X, Y), batch_size=4, generator=g),
    "a stream": lambda g: DataLoader(Stream(), batch_size=4, generator=g),
    "without batches": lambda g: DataLoader(
        list(zip(X.split(4), Y.split(4), strict=True)), batch_size=None, generator=g
    ),
    "shuffling": lambda g: DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, generator=g),
    "a sampler of its own": lambda g: DataLoader(TensorDataset(X, Y), sampler=RandomSampler(X, generator=g)),
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_generator_of_a_loader_comes_back(name: str) -> None:
    net, generator = nn.Linear(5, 3), torch.Generator().manual_seed(0)
    before, ambient = generator.get_state(), torch.get_rng_state()
    loader = LOADERS[name](generator)
    if name in ("shuffling", "a sampler of its own"):
        with pytest.raises(DataError, match="shuffles"):
            Minimum(net, loader)
    else:
        Minimum(net, loader)
    assert torch.equal(generator.get_state(), before) and torch.equal(torch.get_rng_state(), ambient)
    list(loader)
    assert not torch.equal(generator.get_state(), before)


def test_generators_within_a_data_set_come_back() -> None:
    data = Transformed()
    generator = data.transforms[0].generator
    before = str(generator.bit_generator.state)
    as_samples(DataLoader(Batches(data), batch_size=None))
    assert str(generator.bit_generator.state) == before
