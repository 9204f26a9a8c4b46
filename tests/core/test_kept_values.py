"""What a network keeps from one forward pass to the next: caches of shapes pass, values of its weights are refused."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flatminima import Minimum, certify, measure
from flatminima.core.parameters import copied
from flatminima.errors import ModelError

X, Y = torch.randn(24, 5, 3, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
MEASURES = ["fisher_trace", "hessian_trace", "expected_sharpness"]


class Positions(nn.Module):
    """Multiplies each position by a number that a subclass makes or keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def numbers(self, x: Tensor) -> Tensor:
        return torch.arange(x.shape[1], dtype=x.dtype).cos()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) * self.numbers(x)).tanh().mean(1))


class InAnAttribute(Positions):
    kept: Any = None

    def numbers(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = super().numbers(x)
        return self.kept


class InAnAttributeOfItsOwn(InAnAttribute):
    def __init__(self) -> None:
        super().__init__()
        self.kept = None


class InADictionary(Positions):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[Any, Tensor] = {}

    def numbers(self, x: Tensor) -> Tensor:
        key = (x.shape[1], x.dtype)
        if key not in self.kept:
            self.kept[key] = super().numbers(x)
        return self.kept[key]


class InABuffer(Positions):
    kept: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", None, persistent=False)

    def numbers(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = super().numbers(x)
        return self.kept


class Features(Positions):
    """Keeps features and an auxiliary loss for whoever asks afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Any = None
        self.auxiliary: Any = 0.0

    def numbers(self, x: Tensor) -> Tensor:
        self.last = self.a(x)
        self.auxiliary = self.last.square().mean()
        return super().numbers(x)


class ChoosesALayer(Positions):
    """Replaces a layer by another with the same weights in its first pass, as some do where sentences are short."""

    def forward(self, x: Tensor) -> Tensor:
        if type(self.a) is nn.Linear:
            chosen = ShortLinear(3, 4)
            chosen.weight, chosen.bias = self.a.weight, self.a.bias
            self.a = chosen
        return super().forward(x)


class ShortLinear(nn.Linear):
    pass


CACHES = [InAnAttribute, InAnAttributeOfItsOwn, InADictionary, InABuffer, Features, ChoosesALayer]


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return kind().eval()


@pytest.mark.parametrize("kind", CACHES)
def test_a_cache_that_is_empty_until_the_first_pass_is_no_change(kind: type[Positions]) -> None:
    """A checkpoint that was loaded and never run is measured, twice, and comes back as it was."""
    net = made(kind)
    before = {k: v for k, v in vars(net).items() if not k.startswith("_")}
    minimum = Minimum(net, (X, Y))
    found, expected = measure(minimum, MEASURES), measure(Minimum(made(Positions), (X, Y)), MEASURES)
    for name in MEASURES:  # a layer of another class has gradients of another rounding
        assert found[name].value == pytest.approx(expected[name].value, rel=1e-5 if kind is ChoosesALayer else 0)
    assert {k: v for k, v in vars(net).items() if not k.startswith("_")} == before
    assert list(net.buffers()) == []
    if kind is ChoosesALayer:
        assert type(net.a) is nn.Linear
    elif kind is not InABuffer:  # a buffer that the caller's own pass makes is a change
        with torch.no_grad():
            net(X)
        minimum.refuse_stale()


class Weights(nn.Module):
    """Computes with tanh of its first weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)
        self.kept: Any = None

    def weight(self) -> Tensor:
        return 2 * self.a.weight.tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.b((x @ self.weight().T + self.a.bias).tanh())


class KeptForInference(Weights):
    def weight(self) -> Tensor:
        if torch.is_grad_enabled():
            return super().weight()
        if self.kept is None:
            self.kept = super().weight()
        return self.kept


class KeptDetached(Weights):
    def weight(self) -> Tensor:
        if self.kept is None:
            self.kept = super().weight().detach()
        return self.kept


class KeptInABuffer(Weights):
    merged: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("merged", torch.zeros(4, 3))

    def weight(self) -> Tensor:
        if not self.kept:
            self.kept = True
            self.merged.copy_(super().weight().detach())
        return self.merged


class MergesInEval(nn.Linear):
    """Low-rank changes, added to the weights on `eval()`, as adapters often do."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out)
        self.weight.requires_grad_(False)
        self.down, self.up, self.merged = nn.Parameter(torch.randn(2, into)), nn.Parameter(torch.randn(out, 2)), False

    def train(self, mode: bool = True) -> MergesInEval:
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.up.detach() @ self.down.detach()
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if self.merged else out + x @ self.down.T @ self.up.T


X2 = X[:, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [KeptForInference, KeptDetached, KeptInABuffer])
def test_values_kept_of_the_weights_are_refused(kind: type[Weights], dtype: torch.dtype) -> None:
    x = X2.to(dtype)
    assert Minimum(made(Weights).to(dtype), (x, Y)).trainable
    with pytest.raises(ModelError, match="keeps values that it computed from its weights"):
        Minimum(made(kind).to(dtype), (x, Y))


def test_values_kept_from_before_a_checkpoint_was_loaded_are_refused() -> None:
    net, other = made(KeptForInference), Weights()
    with torch.no_grad():
        net(X2)
    net.load_state_dict(other.state_dict())
    with pytest.raises(ModelError, match="outputs with gradients are others than without"):
        Minimum(net, (X2, Y))


def merging(training: bool) -> nn.Module:
    net = made(lambda: nn.Sequential(MergesInEval(3, 4), nn.Tanh())).train(training)
    net[0].bias.requires_grad_(False)
    return net


def test_weights_that_eval_mode_merges_are_refused_and_come_back() -> None:
    net = merging(training=True)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ModelError, match="merged weights"):
        Minimum(net, (X2, torch.arange(24) % 4))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training and not net[0].merged


def test_merged_weights_are_said_and_give_no_number_that_needs_a_gradient() -> None:
    """Losses and outputs are what they are; a sharpness of 0 is none of the merged weights."""
    table = measure(
        Minimum(merging(training=False), (X2, torch.arange(24) % 4)), ["sharpness", "fisher_trace", "margin"]
    )
    for name in ("sharpness", "fisher_trace"):
        assert table[name].value is None and "does not depend on a trainable parameter" in str(table[name])
    assert table["margin"].value is not None
    assert any("no trainable parameter (merged adapters?" in remark for remark in table.notes)


def test_no_certificate_of_a_network_that_keeps_values_of_its_weights() -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ModelError, match=r"keeps values|without"):
        certify(KeptForInference, (x, x.argmax(1)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_certificate_of_torchscript_alone() -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ModelError, match="got TorchScript"):
        certify(torch.jit.script(nn.Linear(3, 3)), (x, x.argmax(1)), stated="random weights")


def test_an_exported_program_has_no_eval_mode() -> None:
    program = torch.export.export(nn.Linear(3, 3), (X2,)).module()
    with pytest.raises(ModelError, match="no eval mode"):
        Minimum(program, (X2, Y))


class KeepsItsGraph(Weights):
    """Keeps features and a loss with the graph of the pass that made them, in a list that holds itself too."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Any] = []
        self.log.append(self.log)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = super().forward(x)
        self.log[1:] = [{"loss": self.kept.square().mean()}]
        return self.kept


def test_a_network_that_keeps_a_graph_is_copied() -> None:
    """Trained weights come with it: the last pass was one with gradients."""
    net = made(KeepsItsGraph)
    net(X2)
    assert not net.kept.is_leaf
    other = copied(net)
    assert other.log[0] is other.log and torch.equal(other.log[1]["loss"], net.log[1]["loss"])
    assert torch.equal(other(X2), net(X2)) and other.a.weight is not net.a.weight
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    assert certify(net, (x, x.argmax(1)), stated="random weights").risk_bound < 1


def test_second_derivatives_of_a_network_that_keeps_a_graph_are_compared() -> None:
    """`torch.nn.utils.weight_norm` keeps the product, and torch's second derivative of it is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it is deprecated, and in many networks
        net = made(lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 3))).double()
    net(X2.double())
    assert not net[0].weight.is_leaf
    table = measure(Minimum(net, (X2.double(), Y)), ["hessian_trace"])
    assert "second derivative of this network is not" in (table["hessian_trace"].undefined or "")


def test_what_cannot_be_copied_is_one_line() -> None:
    net = made(Weights)
    net.lock = threading.Lock()
    assert measure(Minimum(net, (X2, Y)), ["hessian_trace"])["hessian_trace"].value is not None
    with pytest.raises(ModelError, match="Weights cannot be copied: cannot pickle"):
        certify(net, (X.reshape(-1, 3), torch.arange(120) % 3), stated="random weights")


class Unreached(Weights):
    """Has a layer that it does not use, and one that it detaches."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.cut = nn.Linear(2, 2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.cut(x).detach())


def test_weights_that_no_gradient_reaches_are_said() -> None:
    notes = measure(Minimum(made(Unreached), (X2, Y)), ["margin"]).notes
    assert any("no gradient reaches spare.weight, spare.bias, cut.weight and 1 more" in note for note in notes)
    assert not any("reaches" in note for note in measure(Minimum(made(Weights), (X2, Y)), ["margin"]).notes)
