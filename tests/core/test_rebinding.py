"""A copy computes with its own weights, also where a function holds a layer of the original, or it is refused."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flatminima import Minimum, measures
from flatminima.core.identity import fingerprint
from flatminima.core.parameters import copied, refuse_reaching_back
from flatminima.errors import ModelError

X, Y = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


class Net(nn.Module):
    """A frozen base with an adapter that its forward function does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6).requires_grad_(False), nn.Linear(6, 3).requires_grad_(False)
        self.adapter = nn.Linear(5, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def network(adapt: Callable[[Net], object] = lambda net: None) -> Net:
    torch.manual_seed(2)
    net = Net().eval()
    adapt(net)
    return net


def added(out: Tensor, made: Tensor) -> Tensor:
    return out + made.to(out.dtype)


def asked(adapter: nn.Module, x: Tensor) -> Tensor:
    made: Tensor = adapter(x.to(next(adapter.parameters()).dtype))
    return made


def hung(net: Net, ask: Callable[[Tensor], Tensor]) -> None:
    net.first.register_forward_hook(lambda module, args, out: added(out, ask(args[0])))


def in_a_closure(net: Net) -> None:
    adapter = net.adapter
    net.first.register_forward_hook(lambda module, args, out: added(out, asked(adapter, args[0])))


def in_a_default(net: Net) -> None:
    net.first.register_forward_hook(lambda module, args, out, a=net.adapter: added(out, asked(a, args[0])))


def in_a_keyword(net: Net) -> None:
    def hook(module: Any, args: Any, out: Tensor, *, a: nn.Module = net.adapter) -> Tensor:
        return added(out, asked(a, args[0]))

    net.first.register_forward_hook(hook)


def in_a_global(net: Net) -> None:
    globals()["KEPT"] = net
    net.first.register_forward_hook(lambda module, args, out: added(out, asked(KEPT.adapter, args[0])))  # noqa: F821


def the_weight_alone(net: Net) -> None:
    weight = net.adapter.weight
    hung(net, lambda x: x.to(weight.dtype) @ weight.T)


def in_a_list(net: Net) -> None:
    adapters = [{"a": (net.adapter,)}]
    hung(net, lambda x: asked(adapters[0]["a"][0], x))


def in_an_object(net: Net) -> None:
    holder = types.SimpleNamespace(adapter=net.adapter)
    hung(net, lambda x: asked(holder.adapter, x))


def in_a_partial(net: Net) -> None:
    net.first.register_forward_hook(
        functools.partial(lambda a, module, args, out: added(out, asked(a, args[0])), net.adapter)
    )


def in_a_closure_in_a_partial(net: Net) -> None:
    hung(net, functools.partial(lambda k, x: k * asked(net.adapter, x), 1.0))


def in_its_forward(net: Net) -> None:
    old = net.first.forward
    net.first.forward = lambda x: added(old(x), asked(net.adapter, x))  # type: ignore[method-assign]


def in_a_method(net: Net) -> None:
    adapter = net.adapter
    old = type(net.first).forward
    net.first.forward = types.MethodType(  # type: ignore[method-assign]
        lambda layer, x: added(old(layer, x), asked(adapter, x)), net.first
    )


def by_a_weak_reference(net: Net) -> None:
    kept = weakref.ref(net.adapter)
    hung(net, lambda x: asked(kept(), x))


def by_an_attribute(net: Net) -> None:
    net.chosen = [weakref.ref(net.adapter)]
    hung(net, lambda x: asked(net.chosen[0](), x))


def wrapped(net: Net) -> None:
    def ask(x: Tensor) -> Tensor:
        return asked(net.adapter, x)

    hung(net, functools.wraps(ask)(lambda x: ask(x)))


def by_itself(net: Net) -> None:
    def ask(x: Tensor, times: int = 3) -> Tensor:
        return ask(x, times - 1) if times else asked(net.adapter, x)

    hung(net, ask)


WAYS = [
    in_a_closure, in_a_default, in_a_keyword, in_a_global, the_weight_alone, in_a_list, in_an_object, in_a_partial,
    in_a_closure_in_a_partial, in_its_forward, in_a_method, by_a_weak_reference, by_an_attribute, wrapped, by_itself,
]  # fmt: skip


@pytest.mark.parametrize("adapt", WAYS)
def test_a_copy_computes_with_its_own_adapter(adapt: Callable[[Net], object]) -> None:
    net = network(adapt)
    other = copied(net)
    with torch.no_grad():
        before = net(X)
        assert torch.equal(other(X), before) and not torch.equal(network()(X), before)
        other.adapter.weight.mul_(2)
        moved = other(X)
        assert torch.equal(net(X), before) and not torch.equal(moved, before)
        net.adapter.weight.mul_(3)
        assert torch.equal(other(X), moved) and not torch.equal(net(X), before)
    globals().pop("KEPT", None)


def test_what_a_hook_keeps_for_the_caller_is_the_callers() -> None:
    """A list outside of the model is no part of it, nor are functions that know nothing of its layers."""
    features: list[Tensor] = []
    hook = lambda module, args, out: features.append(out)  # noqa: E731
    net = network(lambda net: net.first.register_forward_hook(hook))
    other = copied(net)
    assert list(other.first._forward_hooks.values()) == [hook]
    other(X)
    assert len(features) == 1


def test_an_adapter_by_a_hook_is_measured_in_half_precision_as_one_in_forward() -> None:
    """The copy in float32 had the original's adapter: a sharpness of 0 with a small error bar."""
    found = []
    for adapt in (in_a_closure, lambda net: setattr(net, "forward", types.MethodType(_with_adapter, net))):
        net = network(adapt).to(torch.bfloat16)
        found.append(measures.sharpness(Minimum(net, (X.bfloat16(), Y)), samples=None))
    assert found[0].value == pytest.approx(found[1].value, rel=1e-3) and found[0].value > 0


def _with_adapter(net: Net, x: Tensor) -> Tensor:
    out: Tensor = net.last(torch.tanh(net.first(x) + net.adapter(x)))
    return out


REGISTRY: dict[str, nn.Module] = {}


def test_a_copy_that_reaches_the_original_in_another_way_is_refused() -> None:
    def adapt(net: Net) -> None:
        REGISTRY["adapter"] = net.adapter
        hung(net, lambda x: asked(REGISTRY["adapter"], x))

    net = network(adapt)
    minimum = Minimum(net, (X, Y))
    before = {k: v.clone() for k, v in net.state_dict().items()}, fingerprint(net)
    assert measures.sharpness(minimum).value is not None
    with pytest.raises(ModelError, match="still computes with weights of the original"):
        minimum.replace(dtype=torch.float64)
    assert all(torch.equal(v, before[0][k]) for k, v in net.state_dict().items()) and fingerprint(net) == before[1]
    assert measures.fisher_trace(minimum, subset=10).value is not None  # and is not stale
    REGISTRY.clear()


def test_a_network_that_refuses_nan_is_refused_too() -> None:
    def outputs() -> Tensor:
        if not bool(torch.isfinite(weight).all()):
            raise ValueError("weights are not finite")
        return weight.sum()

    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(ModelError, match="weights of the original"):
        refuse_reaching_back(outputs, [weight])
    assert torch.equal(weight, torch.ones(3)) and weight.requires_grad
    refuse_reaching_back(lambda: torch.ones(2), [weight])
