"""Numbers that networks carry beside their parameters are seen; ordinary networks carry none."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flatminima.certification.hidden_numbers import is_data, numbers_held
from flatminima.models import build

TABLE = torch.randn(20, 10)
TRAINED = nn.Linear(10, 20)
LIST = [float(v) for v in torch.randn(100)]
NAMES = [f"class {k}" for k in range(1_000)]  # words are no numbers
SMALL = (0.485, 0.456, 0.406)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class WithGlobal(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + TABLE.sum()


class WithGlobalNetwork(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(TRAINED(x)[:, :10])


def helper(x: Tensor) -> Tensor:
    return x * LIST[0]


class ThroughAHelper(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(helper(x))


class WithDefault(Plain):
    def forward(self, x: Tensor, table: Tensor = TABLE) -> Tensor:
        return self.head(x) + table.sum()


class WithClassAttribute(Plain):
    table = np.random.default_rng(0).normal(size=100)


class WithAttribute(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.held = [TRAINED]


class WithIntegers(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("q", (TABLE * 40).round().to(torch.int8))


class Inherits(WithGlobal):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def written_out() -> nn.Module:
    """A table as a constant of the code."""
    space: dict[str, Any] = {"Plain": Plain}
    numbers = tuple(round(v, 3) for v in TABLE.flatten().tolist())
    exec(f"class Written(Plain):\n    def forward(self, x): return self.head(x) + sum({numbers})", space)
    network: nn.Module = space["Written"]()
    return network


def closed() -> nn.Module:
    table = TABLE.clone()

    class Closed(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) + table.sum()

    return Closed()


def hooked() -> nn.Module:
    net = Plain()
    net.head.register_forward_hook(functools.partial(lambda table, module, inputs, out: out + table.sum(), TABLE))
    return net


def patched() -> nn.Module:
    net = Plain()
    net.forward = lambda x: net.head(x) + TABLE.sum()  # type: ignore[method-assign]
    return net


class Words(Plain):
    def forward(self, x: Tensor) -> Tensor:
        assert NAMES and SMALL
        return self.head(x)


head, reading = TABLE, TABLE  # variables of the caller's with the names of attributes


class NamesOfItsOwn(Plain):
    """Has attributes and methods that the caller has variables of the same name as."""

    def reading(self, x: Tensor) -> Tensor:
        return self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.reading(x)


def test_an_attribute_is_not_the_variable_of_the_same_name() -> None:
    assert numbers_held(NamesOfItsOwn()) == []


HOLD = [WithGlobal, WithGlobalNetwork, ThroughAHelper, WithDefault, WithClassAttribute, WithAttribute, WithIntegers,
        Inherits, closed, hooked, patched, written_out]  # fmt: skip


@pytest.mark.parametrize("make", HOLD, ids=lambda f: f.__name__)
def test_what_a_network_holds_is_named(make: Any) -> None:
    assert numbers_held(make())


def test_what_the_function_that_makes_it_holds_is_named() -> None:
    def make(table: Tensor = TABLE) -> nn.Module:
        return Plain()

    assert numbers_held(Plain(), make) == ["its defaults in " + make.__qualname__]
    assert numbers_held(Plain(), functools.partial(Plain, TABLE)) == ["partial"]


def transformers_networks() -> list[Any]:
    pytest.importorskip("transformers")
    from transformers import BertConfig, BertForSequenceClassification, SwinConfig, SwinForImageClassification

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    swin = SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2])
    return [BertForSequenceClassification(BertConfig(**small)), SwinForImageClassification(swin)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: [Plain(), Words()],
        lambda: [build(m, seed=0) for m in ("mlp", "small_cnn", "mnist_fcn", "random_features")],
        lambda: [
            nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, batch_first=True), 1),
            nn.LSTM(4, 4),
            nn.BatchNorm2d(200),
        ],
        lambda: [nn.utils.parametrizations.weight_norm(nn.Linear(30, 30)), nn.utils.spectral_norm(nn.Linear(30, 30))],
        transformers_networks,
    ],
    ids=["own", "ours", "torch", "reparametrised", "transformers"],
)
def test_ordinary_networks_hold_none(make: Any) -> None:
    for network in make():
        assert numbers_held(network) == []


def test_indices_and_masks_are_structure() -> None:
    assert not is_data(torch.arange(512)[None])
    assert not is_data(torch.ones(50, 50).tril().bool())
    assert not is_data(torch.stack(torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")).reshape(2, -1))
    assert is_data(torch.randint(0, 10, (600,), generator=torch.Generator().manual_seed(0)))
