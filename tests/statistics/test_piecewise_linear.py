"""Which networks have the Hessian's diagonal exactly from C backward passes, against dense Hessians."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from case_networks import Net
from flatminima import Minimum
from flatminima.errors import Undefined
from flatminima.statistics import PiecewiseLinearDiagonal

L = nn.Linear


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.s = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.tensor(0.7))
        self.a, self.b = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu6(x @ self.w + 0.3 * self.s) - F.linear(x, 0.5 * self.b @ self.a)


EXACT: dict[str, Callable[[], nn.Module]] = {
    "raw parameters, LoRA": Raw,
    "PReLU": lambda: nn.Sequential(L(4, 5), nn.PReLU(5), L(5, 3)),
    "difference": lambda: Net(lambda s, x: s.a(x) - s.b(F.hardtanh(s.c(x))), a=L(4, 3), b=L(2, 3), c=L(4, 2)),
    "clamp, maximum": lambda: Net(lambda s, x: torch.maximum(s.a(x).clamp(-0.3, 0.4), s.b(x)), a=L(4, 3), b=L(4, 3)),
    "a frozen weight twice": lambda: Net(
        lambda s, x: s.b(s.f(F.relu(s.f(x)))), b=L(4, 3), f=L(4, 4).requires_grad_(False)
    ),
}


def minimum(make: Callable[[], nn.Module]) -> Minimum:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Minimum(make().double().eval(), (torch.randn(9, 4).double(), torch.arange(9) % 3))


@pytest.mark.parametrize("name", EXACT)
def test_the_diagonal_is_exact(name: str) -> None:
    m = minimum(EXACT[name])
    found = m[PiecewiseLinearDiagonal()]
    tensors = list(m.parameters.tensors)
    x, y = m.samples.take(torch.arange(9))
    loss = F.cross_entropy(m.model(x), y)
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, tensors, create_graph=True)])
    rows = [torch.autograd.grad(g, tensors, retain_graph=True, materialize_grads=True) for g in flat]
    dense = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    torch.testing.assert_close(found, dense.diagonal(), rtol=1e-9, atol=1e-13)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weight_norm": (lambda: nn.Sequential(weight_norm(L(4, 5)), nn.ReLU(), L(5, 3)), "'_weight_norm' makes"),
    "a function of the weights": (lambda: Net(lambda s, x: F.linear(x, s.a.weight.tanh()), a=L(4, 3)), "'tanh' makes"),
    "divided by a weight": (lambda: Net(lambda s, x: s.a(x) / s.a.bias, a=L(4, 3)), "'reciprocal' makes"),
    "used functionally": (lambda: Net(lambda s, x: F.linear(F.relu(s.a(x)), s.a.weight), a=L(4, 4)), "is used 2 times"),
    "a square": (lambda: Net(lambda s, x: F.linear(x, s.a.weight * s.a.weight), a=L(4, 3)), "is used 2 times"),
    "a scale, twice": (lambda: Net(lambda s, x: s.a.bias * F.relu(s.a.bias * s.b(x)), a=L(3, 3), b=L(4, 3)), "2 times"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_are_not_linear_in_each_weight_are_refused(name: str) -> None:
    """Counting the modules that run would let a weight that is used by a function pass."""
    make, reason = REFUSED[name]
    with pytest.raises(Undefined, match=reason):
        minimum(make)[PiecewiseLinearDiagonal()]
