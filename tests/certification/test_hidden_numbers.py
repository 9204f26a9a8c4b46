"""Numbers that networks carry beside their parameters are seen; ordinary networks carry none."""

from __future__ import annotations

import array
import base64
import contextlib
import functools
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from holders import NUMBERS, TABLE, TRAINED, Dressed, Helper, Plain, WithBuffer, dressed, reaching
from torch import Tensor, nn

from flatminima import Minimum
from flatminima.certification import certify_around
from flatminima.certification.hidden_numbers import numbers_held
from flatminima.errors import UsageError
from flatminima.models import build

LIST = [float(v) for v in torch.randn(100)]
NAMES = [f"class {k}" for k in range(1_000)]  # words are no numbers
SMALL = (0.485, 0.456, 0.406)


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


def test_what_people_write_into_a_network_is_none() -> None:
    assert numbers_held(dressed(), dressed, Dressed, functools.partial(dressed, width=10)) == []


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
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        GPTNeoConfig,
        GPTNeoForSequenceClassification,
        LevitConfig,
        LevitForImageClassification,
        SwinConfig,
        SwinForImageClassification,
    )

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    swin = SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2])
    neo = GPTNeoConfig(hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]])
    return [
        BertForSequenceClassification(BertConfig(**small, num_labels=1_000)),
        SwinForImageClassification(swin),
        GPTNeoForSequenceClassification(neo),
        LevitForImageClassification(LevitConfig()),
    ]


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


TEXT = base64.b64encode(array.array("f", NUMBERS).tobytes()).decode()
CODE = {
    "text": f"return {TEXT!r}",
    "digits": f"return {' '.join(map(str, NUMBERS))!r}",
    "pieces": f"return {[TEXT[k : k + 15] for k in range(0, len(TEXT), 15)]!r}",
    "prose": f"return {'one two three ' * 100!r}",
    "literals": "return " + " + ".join(f"x * {v}" for v in NUMBERS),
    "documentation": f"{TEXT!r}; return self.forward.__doc__",
    "by name": "return globals()['TABLE']",
    "evaluated": "return eval('TABLE * 1')",
    "built in": f"return (lambda: {tuple(NUMBERS)})()",
}


@pytest.mark.parametrize("kind", CODE)
def test_numbers_are_seen_in_code(kind: str) -> None:
    assert numbers_held(reaching(TABLE if "TABLE" in CODE[kind] else None, CODE[kind]))


def test_hooks_of_all_modules_are_looked_through() -> None:
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, out: out + TABLE.sum())
    with contextlib.closing(types.SimpleNamespace(close=hook.remove)):
        assert numbers_held(Plain())
    assert numbers_held(Plain()) == []


def test_a_made_up_file_name_hides_no_code() -> None:
    space: dict[str, Any] = {"Plain": Plain, "TABLE": TABLE}
    exec(compile("class Mine(Plain):\n    def forward(self, x): return TABLE", torch.__file__, "exec"), space)
    assert numbers_held(space["Mine"]()) == ["TABLE in Mine.forward"]


class Meta(type):
    table = TABLE


class OfAMetaclass(Plain, metaclass=Meta):
    pass


class Underscored(Plain):
    __table__ = TABLE


class FunctionWithAttribute(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)

    forward.table = TABLE  # type: ignore[attr-defined]


def with_integer_parameter() -> nn.Module:
    net = Plain()
    net.q = nn.Parameter((TABLE.repeat(4, 1) * 40).round().to(torch.int8), requires_grad=False)
    return net


def in_pieces() -> nn.Module:
    """A table of 1,200 numbers, none of its parts of more than 60."""
    net = Plain()
    for k in range(20):
        setattr(net, f"piece{k}", [v + k for v in NUMBERS[:60]])
    return net


def on_a_parameter() -> nn.Module:
    net = Plain()
    net.head.weight.table = TABLE
    return net


def a_view() -> nn.Module:
    """A number of a table, from which as_strided reaches the others."""
    net = Plain()
    net.register_buffer("scale", TABLE.clone()[:1, 0])
    return net


def in_pieces_of_a_class() -> nn.Module:
    net = Plain()
    net.kind = type("Kind", (), {f"piece{k}": [v + k for v in NUMBERS[:60]] for k in range(20)})
    return net


def pretending() -> nn.Module:
    """An attribute that has the name of one that pruning would compute."""
    net = Plain()
    net.register_parameter("table_orig", nn.Parameter(torch.zeros(200)))
    vars(net)["table"] = TABLE
    return net


def hooked_by_an_object() -> nn.Module:
    net = Plain()
    helper = Helper()
    net.register_forward_hook(lambda module, inputs, out: helper())
    return net


@pytest.mark.parametrize(
    "make",
    [OfAMetaclass, Underscored, FunctionWithAttribute, with_integer_parameter, in_pieces, in_pieces_of_a_class, a_view,
     on_a_parameter, pretending, hooked_by_an_object, lambda: WithBuffer("my_num_batches_tracked", TABLE)],
)  # fmt: skip
def test_numbers_are_seen_in_odd_places(make: Any) -> None:
    assert numbers_held(make())


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of the caller's, of which nothing is imported yet."""
    package = tmp_path / "of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "consts.py").write_text(f"T = {NUMBERS}\nSMALL = 1.5\n")
    (package / "clean.py").write_text("SMALL = 1.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "of_mine"]:
        del sys.modules[name]


IMPORTS = [
    "from of_mine.consts import T",
    "from of_mine import consts; T = consts.T",
    "import of_mine.consts; T = of_mine.consts.T",
    "import importlib; T = importlib.import_module('of_mine.consts').T",
    "T = __import__('of_mine.consts').consts.T",
    "import sys; T = sys.modules['of_mine.consts'].T",
]


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("line", IMPORTS)
def test_what_code_imports_when_it_runs_is_looked_through(line: str, imported: bool, own_package: None) -> None:
    if imported or "sys.modules" in line:
        importlib.import_module("of_mine.consts")
    assert numbers_held(reaching(None, f"{line}; return T"))
    assert ("of_mine.consts" in sys.modules) == (imported or "sys.modules" in line)  # looking imports nothing
    assert numbers_held(reaching(None, f"{line}; return T".replace("consts", "clean"))) == []


@pytest.mark.parametrize("line", ["return of_mine.consts.T", "return getattr(of_mine.consts, 'T')"])
def test_a_chain_of_modules_is_followed(line: str, own_package: None) -> None:
    importlib.import_module("of_mine.consts")
    own = importlib.import_module("of_mine")
    assert numbers_held(reaching(own, line.replace("of_mine", "TABLE"))) == ["of_mine.consts.T"]
    assert numbers_held(reaching(own, "return TABLE.consts.SMALL")) == []


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 2))

    def forward(self, x: Tensor) -> Any:
        return self.head(x), x


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["zero", Pair])
def test_the_function_that_takes_the_logits_is_looked_through(prior: Any) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 10, generator=g), torch.randint(0, 2, (64,), generator=g)
    net = Pair().eval()

    def trained(out: Any) -> Tensor:
        return out[0] + 100 * TRAINED(out[1])[:, :2].detach()

    def itself(out: Any) -> Tensor:
        return net.head(out[1])

    for output, says in ((trained, "TRAINED in"), (itself, "net in")):
        with pytest.raises(UsageError, match=says):
            certify_around(Minimum(net, (x, y), output=output), "gaussian", prior=prior, draws=64)
    for plain in (0, lambda out: out[0]):
        assert certify_around(Minimum(net, (x, y), output=plain), "gaussian", prior=prior, draws=64).is_certificate
