"""Numbers are seen in values of any kind, and none in what settings, tools and states are made of."""

from __future__ import annotations

import abc
import argparse
import array
import collections
import contextvars
import ctypes
import dataclasses
import datetime
import decimal
import enum
import functools
import io
import itertools
import logging
import operator
import random
import re
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from holders import NUMBERS, TABLE, TRAINED, Helper, reaching
from torch import nn

from flatminima.certification.hidden_numbers import numbers_held


class Slots:
    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = NUMBERS


@functools.cache
def remembered(k: int) -> float:
    return NUMBERS[k]


def deep(depth: int) -> Any:
    value: Any = NUMBERS
    for _ in range(depth):
        value = [value]
    return value


def yielding() -> Iterator[float]:
    yield from NUMBERS


def tree() -> Any:
    from sklearn.tree import DecisionTreeClassifier

    g = np.random.default_rng(0)
    return DecisionTreeClassifier().fit(g.normal(size=(300, 10)), g.integers(0, 2, 300))


def filled() -> Any:
    for k in range(100):
        remembered(k)
    return remembered


def on_the_thread() -> threading.local:
    local = threading.local()
    local.held = NUMBERS
    return local


def logger() -> logging.Logger:
    log = logging.getLogger("of a network")
    log.held = NUMBERS  # type: ignore[attr-defined]
    return log


def module_by_hand() -> types.ModuleType:
    module = types.ModuleType("by_hand")
    module.inner = types.ModuleType("inner")  # type: ignore[attr-defined]
    module.inner.held = NUMBERS
    return module


VALUES: dict[str, Callable[[], Any]] = {
    "array": lambda: array.array("f", NUMBERS),
    "deque": lambda: collections.deque(NUMBERS),
    "memoryview": lambda: memoryview(array.array("f", NUMBERS).tobytes()),
    "bytearray": lambda: bytearray(array.array("f", NUMBERS).tobytes()),
    "bytes in a buffer": lambda: io.BytesIO(array.array("f", NUMBERS).tobytes()),
    "ctypes": lambda: (ctypes.c_float * 300)(*NUMBERS),
    "pointer": lambda: ctypes.c_void_p(1),
    "capsule": lambda: torch.tensor(NUMBERS).__dlpack__(),
    "storage": lambda: torch.tensor(NUMBERS).untyped_storage(),
    "user dictionary": lambda: collections.UserDict(enumerate(NUMBERS)),
    "mapping proxy": lambda: types.MappingProxyType(dict(enumerate(NUMBERS))),
    "generator": lambda: (v for v in list(NUMBERS)),
    "generator function": yielding,
    "iterator": lambda: iter(list(NUMBERS)),
    "slots": Slots,
    "helper": Helper,
    "in a dictionary": lambda: {"f": Helper().__call__},
    "deep": lambda: deep(9),
    "tree": tree,
    "cache": filled,
    "bound": lambda: list(NUMBERS).__getitem__,
    "weak reference": lambda: weakref.ref(TRAINED),
    "proxy": lambda: weakref.proxy(TRAINED),
    "objects": lambda: np.array(NUMBERS, dtype=object),
    "integer": lambda: int.from_bytes(array.array("f", NUMBERS).tobytes(), "little"),
    "ranges": lambda: [range(int(1e6 * v)) for v in NUMBERS],
    "decimals": lambda: [decimal.Decimal(v) for v in NUMBERS],
    "signs": lambda: (torch.tensor(NUMBERS).repeat(8).roll(1) * torch.randn(2_400) > 0).tolist(),
    "complex": lambda: torch.tensor(NUMBERS).to(torch.complex64),
    "sparse": lambda: torch.tensor(NUMBERS).to_sparse(),
    "scripted": lambda: torch.jit.trace(lambda x: x @ TABLE, torch.zeros(2, 20)),
    "subclass": lambda: type("Mine", (list,), {})(NUMBERS),
    "thread": on_the_thread,
    "logger": logger,
    "a module": module_by_hand,
    "in a module": lambda: {"m": module_by_hand()},
}


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("kind", VALUES)
def test_numbers_are_seen_in_values_of_any_kind(kind: str) -> None:
    assert numbers_held(reaching(VALUES[kind](), "return TABLE.inner.held" if "module" in kind else "return TABLE"))


class Act(enum.Enum):
    RELU = "relu"
    GELU = "gelu"


class Mode(enum.StrEnum):
    TRAIN = "train"


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 16
    rates: tuple[float, ...] = tuple(k / 23 for k in range(24))
    sizes: list[int] = dataclasses.field(default_factory=lambda: [16, 24, 40, 80, 112, 192, 320] * 5)
    act: Act = Act.GELU
    mode: Mode = Mode.TRAIN


class Maker(abc.ABC):
    """Makes what it is told."""

    @abc.abstractmethod
    def made(self) -> Any: ...

    @functools.cached_property
    def act(self) -> nn.Module:
        return nn.ReLU()


@functools.cache
def causal(n: int) -> Any:
    return torch.ones(n, n).tril().bool()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="Trains a network, of which every option has a line of help.")
    for k in range(20):
        made.add_argument(f"--option{k}", type=float, default=k / 10, help=f"an option of the training, number {k}")
    return made


SETTINGS: dict[str, Callable[[], Any]] = {
    "configuration": Config,
    "settings": lambda: argparse.Namespace(lr=0.1, out=Path("/tmp"), at=datetime.date(2026, 11, 29)),
    "parser": parser,
    "enumerations": lambda: [Act, Act.RELU, Mode.TRAIN, torch.nn.attention.SDPBackend.MATH],
    "functions": lambda: {
        "relu": nn.functional.relu,
        "gelu": nn.GELU,
        "init": functools.partial(nn.init.normal_, std=0.02),
    },
    "classes": lambda: {"maker": Maker, "list": list},
    "logger": lambda: logging.getLogger(__name__),
    "lock": lambda: [threading.Lock(), threading.RLock(), threading.Condition()],
    "states": lambda: [torch.Generator(), np.random.default_rng(0), random.Random(0), np.random.RandomState(0)],
    "kinds": lambda: [torch.float32, torch.device("cpu"), torch.finfo(torch.float32), np.dtype("f4"), np.float32, ...],
    "tools": lambda: [re.compile(r"\\w+"), operator.itemgetter(1), itertools.count(), contextvars.ContextVar("v")],
    "blocks": lambda: [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2]] * 4,
    "widths": lambda: {k: [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"] for k in "ABDE"},
    "names": lambda: [f"a long name of the class of number {k}" for k in range(1_000)],
    "labels": lambda: {k: f"LABEL_{k}" for k in range(1_000)},
    "addresses": lambda: {
        k: f"https://download.pytorch.org/models/resnet{k}-{k * 987_654_321:08x}.pth" for k in range(9)
    },
    "cached masks": lambda: (causal(8), causal(64), causal)[2],
    "distribution": lambda: torch.distributions.Normal(0.0, 1.0),
    "loss": nn.CrossEntropyLoss,
    "of scipy": lambda: pytest.importorskip("scipy.stats").norm,
    "not fitted": lambda: pytest.importorskip("sklearn.tree").DecisionTreeClassifier(),
    "compiled": lambda: torch.compile(nn.functional.relu),
    "constant": lambda: torch.ones(50, 50).tril(),
}


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_and_tools_hold_no_numbers(kind: str) -> None:
    assert numbers_held(reaching(SETTINGS[kind]())) == []
