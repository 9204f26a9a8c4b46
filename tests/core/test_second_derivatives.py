"""torch's second derivatives are believed only where differences of gradients agree: operations that lose terms in
silence, custom functions that forget, straight-through estimators, weight norm; and no smooth or ReLU network is
refused for nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from flatminima import Minimum, measures

N = 40


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Forgets(torch.autograd.Function):
    """Keeps a detached copy on the context, so that its derivative is a constant to torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = x.detach().exp()
        return x.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.kept


class Rounds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(4 * x) / 4

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Sine(torch.autograd.Function):
    """As it should be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.cos()


class Net(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor], first: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.activation = first or nn.Linear(6, 8), nn.Linear(8, 3), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.activation(self.a(x)))


class Quantized(nn.Linear):
    """Weights rounded in the forward pass, with the gradient of the identity."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + (torch.round(8 * self.weight) / 8 - self.weight).detach(), self.bias)


WRONG = {
    "once differentiable": (lambda: Net(Square.apply), "Square"),
    "forgets": (lambda: Net(Forgets.apply), "Forgets"),
    "straight through": (lambda: Net(Rounds.apply), "Rounds"),
    "rounded weights": (lambda: Net(torch.tanh, Quantized(6, 8)), "straight-through"),
    "weight norm": (lambda: Net(torch.tanh, nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))), "weight_norm"),
}
RIGHT = {
    "tanh": lambda: Net(torch.tanh),
    "ReLU": lambda: Net(torch.relu),
    "ReLU at zero": lambda: _zero_biases(Net(torch.relu)),
    "GELU": lambda: Net(F.gelu),
    "custom": lambda: Net(Sine.apply),
    "spectral norm": lambda: Net(torch.tanh, nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8))),
    "float32 inside": lambda: Net(lambda h: h.float().softmax(1).to(h)),
    "a weight without entries": lambda: _with_none(Net(torch.tanh)),
}


def _with_none(net: Net) -> Net:
    net.register_parameter("none", nn.Parameter(torch.zeros(0, 4)))
    return net


def _zero_biases(net: Net) -> Net:
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 1:
                p.zero_()
    return net


def minimum(net: nn.Module, dtype: torch.dtype = torch.float32) -> Minimum:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 6, generator=g).to(dtype)
    x[: N // 2] = 0.0  # pre-activations exactly at the kink where biases are zero
    return Minimum(net.to(dtype).eval(), (x, torch.randint(0, 3, (N,), generator=g)))


@pytest.mark.parametrize("name", WRONG)
def test_a_second_derivative_that_is_wrong_is_undefined_and_named(name: str) -> None:
    torch.manual_seed(0)
    make, word = WRONG[name]
    found = measures.hessian_trace(minimum(make()))
    assert found.value is None and word in str(found.undefined)
    assert found.code == "second_derivative"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["64", "32", "bf16"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_network_that_is_right_is_not_refused(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    chosen = minimum(RIGHT[name](), dtype)
    assert measures.hessian_trace(chosen).value is not None
    assert chosen.examined["hessian"] is None


def test_the_check_is_made_once_and_counted_apart() -> None:
    torch.manual_seed(0)
    chosen = minimum(Net(torch.tanh))
    measures.hessian_trace(chosen)
    checks = chosen.passes.checks
    assert 0 < checks < 20 * N
    measures.hessian_top_eigenvalue(chosen)
    assert chosen.passes.checks == checks


class Expert(nn.Module):
    """A function that few samples pass: those few alone, or all of them behind a mask that is shut for the others."""

    def __init__(self, function: Callable[[Tensor], Tensor], masked: bool, own: bool = True) -> None:
        super().__init__()
        self.a, self.b, self.function, self.masked = nn.Linear(6, 8), nn.Linear(8, 3), function, masked
        self.expert = nn.Linear(8, 8) if own else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        chosen = x[:, 0] > 2.0
        if self.masked:
            return self.b(torch.where(chosen.unsqueeze(1), h + self.function(self.expert(h)), h))
        if bool(chosen.any()):
            out = h.clone()
            out[chosen] = h[chosen] + self.function(self.expert(h[chosen]))
            h = out
        return self.b(h)


def _rounded(h: Tensor) -> Tensor:
    return h + (torch.round(4 * h) / 4 - h).detach()


def _few_pass(net: nn.Module) -> Minimum:
    """Two samples of 200, none among those looked at first."""
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).clamp(max=1.9)
    looked_at = torch.randperm(200, generator=torch.Generator().manual_seed(2))
    x[looked_at[[100, 150]], 0] = 2.1
    return Minimum(net.eval(), (x, torch.arange(200) % 3), batch_size=64)


@pytest.mark.parametrize("measure", [measures.hessian_trace, measures.hessian_top_eigenvalue])
@pytest.mark.parametrize(
    ("function", "masked", "own"),
    [(Square.apply, False, True), (Square.apply, True, True), (Square.apply, True, False), (_rounded, False, True),
     (_rounded, True, True), (_rounded, False, False)],
)  # fmt: skip
def test_what_few_samples_use_is_looked_at_when_they_come(measure: Any, function: Any, masked: bool, own: bool) -> None:
    torch.manual_seed(0)
    found = measure(_few_pass(Expert(function, masked, own)), samples=None)
    assert found.value is None and found.code == "second_derivative"


@pytest.mark.parametrize("masked", [False, True])
def test_a_right_function_that_few_samples_use_is_measured_and_looked_at_once(masked: bool) -> None:
    torch.manual_seed(0)
    one, two = _few_pass(Expert(Sine.apply, masked)), _few_pass(Expert(torch.sin, masked))
    two.model.load_state_dict(one.model.state_dict())
    two = Minimum(two.model, (one.samples.inputs, one.samples.targets), batch_size=64)  # type: ignore[attr-defined]
    found = [measures.hessian_trace(m, samples=None).value for m in (one, two)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    checks, forward = one.passes.checks, one.passes.forward
    assert forward == two.passes.forward
    measures.hessian_top_eigenvalue(one, samples=None)
    assert one.passes.checks == checks


def test_kinks_of_many_samples_prove_nothing() -> None:
    """Among many ReLUs differences settle at a smoothed curvature: a fault is one that a few samples show."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(6, 4000), nn.ReLU(), nn.Linear(4000, 50), nn.ReLU(), nn.Linear(50, 3))
    chosen = minimum(wide)
    assert measures.hessian_trace(chosen).value is not None
    assert chosen.examined["hessian"] is None
