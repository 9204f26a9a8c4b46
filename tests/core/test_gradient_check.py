"""Per-sample gradients layer by layer are those of autograd, or another way is taken: weights used behind a layer's
back, rows in another order, routes that few samples take, hooks that scale. Each was once silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import Minimum, measure, measures
from flatminima.core.gradient_check import LayerComparison, row_weights
from flatminima.core.layer_gradient import LayerGradient
from flatminima.statistics import FisherDiagonal, Outputs

pytestmark = pytest.mark.slow

N = 60
FISHER = partial(measures.fisher_trace, subset=20)


class Net(nn.Module):
    """A forward function over named modules."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def linears(*sizes: tuple[int, int]) -> dict[str, nn.Module]:
    return {"abc"[i]: nn.Linear(*size) for i, size in enumerate(sizes)}


def side_head(net: Any, x: Tensor) -> Tensor:
    h = torch.tanh(net.a(x))
    return net.b(h) + 0.01 * F.linear(h, net.c.weight)  # 1e-4 of the Gram matrix


def gate(net: Any, x: Tensor) -> Tensor:
    """A head used again for the few samples that a gate lets through."""
    return net.b(torch.tanh(net.a(x))) + F.relu(x[:, :1] - 1.5) * F.linear(x, net.b.weight[:, :6])


def functional_norm(net: Any, x: Tensor) -> Tensor:
    n = net.norm
    h = F.batch_norm(net.a(x), n.running_mean, n.running_var, n.weight, n.bias, n.training)
    return net.b(torch.tanh(h))


def sorted_inside(net: Any, x: Tensor) -> Tensor:
    order = torch.argsort(x[:, 0], descending=True, stable=True)
    return net.b(torch.tanh(net.a(x[order]))[torch.argsort(order)])


def rolled(net: Any, x: Tensor) -> Tensor:
    return net.b(torch.tanh(net.a(x.roll(1, 0))).roll(-1, 0))


def matrix_of_a_neighbour(net: Any, x: Tensor) -> Tensor:
    return net.b(torch.tanh(net.a(x))) + x @ net.a.weight.T @ net.b.weight.T


def called_past_its_hooks(net: Any, x: Tensor) -> Tensor:
    return net.b(torch.tanh(net.a.forward(x)))


def a_rare_branch(net: Any, x: Tensor) -> Tensor:
    """Taken by batches that hold an extreme sample: one batch of many."""
    h = torch.tanh(net.a(x))
    extreme = x[:, :1] > 9
    return net.b(h) + (extreme * F.linear(h, net.b.weight) if bool(extreme.any()) else 0.0)


class _Adds(torch.autograd.Function):
    """h + m * x w^T, whose parameters no torch function sees."""

    @staticmethod
    def forward(ctx, h, x, w, m):
        ctx.save_for_backward(x, w, m)
        return h + m * (x @ w.T)

    @staticmethod
    def backward(ctx, grad):
        x, w, m = ctx.saved_tensors
        return grad, (m * grad) @ w, (m * grad).T @ x, None


def masked_function(net: Any, x: Tensor) -> Tensor:
    """A custom function takes a weight of no layer that is called, behind a mask that is shut but for one sample."""
    return _Adds.apply(net.b(torch.tanh(net.a(x))), x, net.c.weight, 1.0 * (x[:, :1] > 9))


def masked_function_of_a_layer(net: Any, x: Tensor) -> Tensor:
    """The same with the weight of a layer that is called as well."""
    h = torch.tanh(net.a(x))
    return _Adds.apply(net.b(h), h, net.b.weight, 1.0 * (x[:, :1] > 9))


def rare_function(net: Any, x: Tensor) -> Tensor:
    """The same in a branch that one batch takes, whose other operations are those of all batches."""
    h = torch.tanh(net.a(x))
    extreme = 1.0 * (x[:, :1] > 9)
    return _Adds.apply(net.b(h), h, net.b.weight, extreme) if bool(extreme.any()) else net.b(h)


def experts(net: Any, x: Tensor) -> Tensor:
    chosen = net.a(x).argmax(1)
    out = torch.zeros(len(x), 3, dtype=x.dtype)
    for i, expert in enumerate((net.b, net.c)):
        rows = chosen == i
        if bool(rows.any()):
            out[rows] = expert(x[rows])
    return out + net.a(x)[:, :3]


def scaled_by_a_hook(net: Any, x: Tensor) -> Tensor:
    return net.b(torch.tanh(net.a(x)))


CASES: dict[str, Callable[[], Net]] = {
    "a small side head": lambda: Net(side_head, a=nn.Linear(6, 8), b=nn.Linear(8, 3), c=nn.Linear(8, 3, bias=False)),
    "a gate": lambda: Net(gate, a=nn.Linear(6, 6), b=nn.Linear(6, 3)),
    "functional BatchNorm": lambda: Net(functional_norm, a=nn.Linear(6, 8), norm=nn.BatchNorm1d(8), b=nn.Linear(8, 3)),
    "sorted inside": lambda: Net(sorted_inside, a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
    "rolled": lambda: Net(rolled, a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
    "a neighbour's matrix": lambda: Net(matrix_of_a_neighbour, a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
    "past its hooks": lambda: Net(called_past_its_hooks, a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
    "a rare branch": lambda: Net(a_rare_branch, a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
    "a masked function": lambda: Net(masked_function, a=nn.Linear(6, 8), b=nn.Linear(8, 3), c=nn.Linear(6, 3)),
    "a layer in a function": lambda: Net(masked_function_of_a_layer, a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
    "a rare function": lambda: Net(rare_function, a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
    "experts": lambda: Net(experts, a=nn.Linear(6, 3), b=nn.Linear(6, 3), c=nn.Linear(6, 3)),
    "a scaling hook": lambda: _hooked(),
}


def _hooked() -> Net:
    net = Net(scaled_by_a_hook, a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    net.a.register_forward_hook(lambda module, args, output: 3.0 * output)
    return net


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 6, generator=g)
    x = x[torch.argsort(x[:, 0], descending=True)]  # stored as padded sequences are, by length
    x[-1, 0] = 10.0
    return x, torch.randint(0, 3, (N,), generator=g)


def truth(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Per-sample gradients (n, W), an ordinary backward pass each."""
    rows = []
    for i in range(len(y)):
        grads = torch.autograd.grad(
            F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]), tuple(net.parameters()), allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_the_fisher_matrix_is_autograds(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    net = CASES[name]().to(dtype).eval()
    x, y = data()
    x = x.to(dtype)
    rows = truth(net, x, y).double()
    minimum = Minimum(net, (x, y), batch_size=16)
    rtol = 1e-9 if dtype == torch.float64 else 1e-4
    diagonal = minimum[FisherDiagonal()]
    torch.testing.assert_close(diagonal, rows.square().mean(0), rtol=rtol, atol=rtol * float(diagonal.max()))
    frobenius = measures.fisher_frobenius(minimum, subset=N, trials=1)
    expected = float((rows @ rows.T).square().sum() / N**2)
    assert float(frobenius) in (pytest.approx(expected, rel=10 * rtol), pytest.approx(expected**0.5, rel=10 * rtol))


@pytest.mark.parametrize("name", ["a small side head", "sorted inside", "a scaling hook"])
def test_the_table_says_which_way_was_taken(name: str) -> None:
    torch.manual_seed(1)
    table = measure(Minimum(CASES[name]().eval(), data()), [FISHER])
    assert any("one backward pass a sample: " in note for note in table.notes), table.notes


def test_what_layers_can_follow_is_followed() -> None:
    """The slow path would be right as well, and hide a check that refuses everything."""
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 3)).eval()
    minimum = Minimum(plain, data(), batch_size=7)
    minimum[FisherDiagonal()]
    assert minimum.follows_layers and minimum.following.level == 0
    assert 0 < minimum.passes.checks < 1.2 * N


def test_the_routes_of_frozen_and_of_checked_passes_are_one() -> None:
    """Each batch is checked as often as the sweep says: 1, 2, 4, 8, and no batch because its graph has other nodes."""
    torch.manual_seed(1)
    embedded = Net(lambda net, x: net.b(torch.relu(net.a(2.0 * x)).square()), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    minimum = Minimum(embedded.eval(), data(), batch_size=4)
    assert minimum.follows_layers
    checks = minimum.passes.checks
    minimum[FisherDiagonal()]
    assert minimum.passes.checks - checks <= 4 * 4 + 4


def test_values_made_in_a_wrong_way_are_made_again() -> None:
    """A later sweep shows what an earlier one did not: the earlier values are forgotten, and tables begin anew."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    minimum = Minimum(net, data())
    minimum[Outputs(), FisherDiagonal()]
    minimum.following.degrade("as if a later batch had shown it")
    generation = minimum.generation
    assert generation == 1
    minimum[FisherDiagonal(samples=5)]
    table = measure(minimum, [FISHER])
    assert all(e.value is not None for e in table.values()) and minimum.generation == generation


def test_rows_near_each_other_weigh_differently() -> None:
    weights = row_weights(40)
    assert len(weights.unique()) >= 8
    exponents = weights.abs().log2()
    assert torch.equal(exponents, exponents.round())  # seeds scale without rounding


def test_a_parameter_that_no_layer_reported_must_have_no_gradient() -> None:
    def compared(sums: dict[str, Tensor], truth: dict[str, Tensor]) -> str | None:
        comparison = LayerComparison(torch.ones(1), truth, torch.float32)
        comparison(LayerGradient("a", summed={name: value.unsqueeze(0) for name, value in sums.items()}))
        return comparison.disagreement()

    truth = {"a": torch.ones(3), "b": torch.full((2,), 1e-4)}
    assert "'b'" in str(compared({"a": torch.ones(3)}, truth))
    assert compared({"a": torch.ones(3)}, truth | {"b": torch.zeros(2)}) is None
    assert "'a'" in str(compared({"a": 1.01 * torch.ones(3), "b": truth["b"]}, truth))
    assert compared(truth, truth) is None


@pytest.mark.parametrize("factor", [1e-40, 1e-44, float("nan")])
def test_gradients_that_agree_in_no_way_end_the_search_for_one(factor: float) -> None:
    """Below float32's range, where layers and autograd round to different numbers: it went on for ever."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))

    def loss(output, target):
        return 1.0 + _Scaled.apply(output.square().sum(1), factor)

    minimum = Minimum(net, (x, torch.zeros(20)), loss)
    found = measures.fisher_trace(minimum, subset=5)
    assert found.value is None or found.value >= 0
    assert minimum.following.level <= 3


class _Scaled(torch.autograd.Function):
    """0, with a gradient of `factor`."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def test_no_graph_is_kept_of_weights_that_some_samples_leave_out() -> None:
    """Under torch 2.6 the zeros of `materialize_grads` ask for gradients, and a sum over them keeps every graph."""
    torch.manual_seed(1)
    net = CASES["experts"]().double().eval()
    x, y = data()
    minimum = Minimum(net, (x.double(), y), batch_size=16)
    assert not minimum[FisherDiagonal()].requires_grad
    assert not minimum.batch(torch.zeros(1, dtype=torch.long)).gradient().requires_grad
    assert not minimum.mean_gradient(torch.zeros(1, dtype=torch.long))[1].requires_grad
