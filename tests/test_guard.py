"""The guard puts everything back, and the fingerprint sees every way of changing weights."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima.core.guard import differentiable, random_marks, same_randomness, untouched as guarded
from flatminima.core.identity import fingerprint
from mutation import Untouched


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()
        self.register_buffer("cache", torch.zeros(2))
        self.register_buffer("absent", None)
        self.calls, self.last = 0, None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.norm(self.fc(x)))
        return out


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made = Model().train()
    made.norm.eval()
    made.fc.bias.requires_grad_(False)
    made.fc.weight.grad = torch.ones(3, 3)
    made.norm.register_forward_hook(lambda *_: None)
    return made


def _replace_weight(m: nn.Module) -> None:
    m.fc.weight = nn.Parameter(torch.zeros(3, 3))


def _delete_buffer(m: nn.Module) -> None:
    del m.cache


DAMAGE: dict[str, Callable[[nn.Module], object]] = {
    "weights": lambda m: m.fc.weight.data.mul_(2),
    "one weight": lambda m: m.fc.weight.data.view(-1).__setitem__(7, 5.0),
    "a weight made NaN": lambda m: m.fc.weight.data.fill_(torch.nan),
    "a frozen weight": lambda m: m.fc.bias.data.add_(1),
    "a weight replaced": _replace_weight,
    "statistics": lambda m: m.norm.train()(torch.randn(4, 3)),
    "a buffer replaced": lambda m: setattr(m, "cache", torch.ones(5)),
    "a buffer deleted": _delete_buffer,
    "a buffer filled": lambda m: setattr(m, "absent", torch.ones(5)),
    "gradients written": lambda m: m.fc.weight.grad.add_(1),
    "gradients replaced": lambda m: m.zero_grad(),
    "gradients made": lambda m: m.train()(torch.randn(4, 3)).sum().backward(),
    "requires_grad": lambda m: m.requires_grad_(True),
    "modes": lambda m: m.train(),
    "hooks added": lambda m: m.fc.register_forward_hook(lambda *_: None),
    "backward hooks added": lambda m: m.fc.register_full_backward_hook(lambda *_: None),
    "pre-hooks added": lambda m: m.fc.register_forward_pre_hook(lambda *_: None),
    "hooks removed": lambda m: m.norm._forward_hooks.clear(),
    "a counter": lambda m: setattr(m, "calls", 3),
    "a new attribute": lambda m: setattr(m, "graph", "kept"),
    "torch's random numbers": lambda m: torch.rand(1),
    "numpy's random numbers": lambda m: np.random.rand(),
    "python's random numbers": lambda m: random.random(),
}


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_put_back(damage: str, raises: bool, model: nn.Module, untouched: Untouched) -> None:
    with untouched(model):
        if raises:
            with pytest.raises(KeyError), guarded(model):
                DAMAGE[damage](model)
                raise KeyError
        else:
            with guarded(model):
                DAMAGE[damage](model)


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_fixture_sees_the_damage(damage: str, model: nn.Module, untouched: Untouched) -> None:
    """Or the tests that use it prove nothing."""
    with same_randomness(), pytest.raises(AssertionError, match="changed"), untouched(model):
        DAMAGE[damage](model)


def test_runs_in_eval_mode(model: nn.Module) -> None:
    with guarded(model):
        assert not any(m.training for m in model.modules())


def test_untouched_weights_are_not_written(model: nn.Module) -> None:
    """A version counter that moves would spoil graphs that others keep."""
    versions = [t._version for t in model.state_dict(keep_vars=True).values()]
    with guarded(model):
        model(torch.randn(2, 3))
    assert [t._version for t in model.state_dict(keep_vars=True).values()] == versions


WRITES: dict[str, Callable[[nn.Module], object]] = {
    "an optimizer's step": lambda m: torch.optim.SGD([m.fc.weight], lr=0.1).step(),
    "in place": lambda m: m.norm.weight.detach().mul_(1.0),
    "through .data": lambda m: m.fc.weight.data.mul_(2.0),
    "one entry through .data": lambda m: m.fc.weight.data.view(-1).__setitem__(5, 3.0),
    "a loaded state": lambda m: m.load_state_dict(Model().state_dict()),
    "a weight replaced": _replace_weight,
    "a buffer through .data": lambda m: m.norm.running_var.data.add_(1.0),
}


@pytest.mark.parametrize("write", WRITES)
def test_the_fingerprint_sees_writes(write: str, model: nn.Module) -> None:
    before = fingerprint(model)
    assert fingerprint(model) == before
    WRITES[write](model)
    assert fingerprint(model) != before


def test_the_fingerprint_sees_writes_to_part_of_a_large_tensor() -> None:
    model = nn.Linear(300, 300)
    before = fingerprint(model)
    model.weight.data[100:110] += 1.0
    assert fingerprint(model) != before


def test_attention_can_be_differentiated_twice() -> None:
    q = torch.randn(1, 2, 4, 8, requires_grad=True)
    fast = torch.backends.mha.get_fastpath_enabled()
    with differentiable(nn.LSTM(2, 2)):
        assert not torch.backends.mha.get_fastpath_enabled()
        (gradient,) = torch.autograd.grad(F.scaled_dot_product_attention(q, q, q).square().sum(), q, create_graph=True)
        torch.autograd.grad(gradient.sum(), q)
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_random_marks() -> None:
    device = torch.device("cpu")
    with same_randomness():
        before = random_marks(device)
        assert random_marks(device) == before
        torch.rand(1)
        assert random_marks(device) != before
