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
