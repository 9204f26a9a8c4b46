"""What a measurement leaves behind: nothing. A stored exception had kept its whole graph alive."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from flatminima import Minimum, measure
from flatminima.core.statistic import Fold, Statistic
from flatminima.errors import Absent, Undefined
from flatminima.statistics import Gram, HessianProbes, Outputs

pytestmark = pytest.mark.slow


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(Once.apply(self.a(x)))


X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3
NAMES = ["fisher_trace", "hessian_trace", "hessian_top_eigenvalue", "expected_sharpness", "margin", "path_norm"]


def entries() -> int:
    """Numbers in all tensors that live."""
    gc.collect()
    return sum(t.numel() for t in gc.get_objects() if issubclass(type(t), torch.Tensor))


def test_undefined_measures_keep_no_tensor() -> None:
    """The Minimum itself may keep values; for what is undefined it keeps two words."""
    minimum = Minimum(Net().eval(), (X, Y))
    minimum[Outputs()]
    before = entries()
    for probes in range(1, 20):
        with pytest.raises(Undefined):
            minimum[HessianProbes(probes)]
    assert entries() <= before + 100
    kept = [v for v in (minimum._known[k] for k in minimum) if isinstance(v, Absent)]
    assert len(kept) == 19 and all(type(v.reason) is str for v in kept)


def test_tables_leave_the_model_and_the_data() -> None:
    net = Net().eval()
    measure(Minimum(net, (X, Y)), NAMES)
    before = entries()
    for _ in range(30):
        table = measure(Minimum(net, (X, Y)), NAMES)
        assert table["hessian_trace"].undefined is not None
        del table
    assert entries() <= before + 100


class Fails(Statistic[float]):
    def compute(self, minimum: Minimum) -> float:
        raise RuntimeError("of torch, say\nand a second line")


class FailsInASweep(Fold[Any, Any]):
    def init(self, minimum: Minimum) -> Any:
        return 0

    def update(self, state: Any, batch: Any) -> Any:
        raise RuntimeError("in the middle of a sweep")

    def merge(self, left: Any, right: Any) -> Any:
        return left

    def finish(self, state: Any) -> Any:
        return state


@pytest.mark.parametrize("statistic", [Fails(), FailsInASweep()], ids=["alone", "in a sweep"])
def test_an_error_is_its_own_measures_and_may_be_tried_again(statistic: Statistic[Any]) -> None:
    minimum = Minimum(Net().eval(), (X, Y))

    def broken(minimum: Any) -> Any:
        return minimum[statistic]

    table = measure(minimum, [broken, "margin", "fisher_trace"])
    assert table["broken"].code == "RuntimeError"
    assert "\n" not in str(table["broken"].undefined) and str(table["broken"].undefined).startswith("RuntimeError: ")
    assert table["fisher_trace"].value is not None
    assert statistic not in minimum
    assert Gram(40, 100) in minimum or any(isinstance(key, Gram) for key in minimum)
    with pytest.raises(RuntimeError):
        minimum[statistic]
