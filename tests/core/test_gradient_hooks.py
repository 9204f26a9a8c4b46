"""Hooks that clip, scale or look at gradients are the caller's training: no number depends on them, and they stay."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as everywhere

from flatminima import Minimum, measure, measures
from flatminima.core.guard import untouched
from flatminima.statistics import HessianDiagonal

# torch's, of what such hooks see
pytestmark = [pytest.mark.filterwarnings(f"ignore:{words}") for words in ("Full backward hook", "Using a non-full")]

X, Y = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def clip(gradient: Tensor) -> Tensor:
    return gradient.clamp(-0.005, 0.005)


def zero(weight: Tensor) -> None:
    assert weight.grad is not None
    weight.grad.zero_()


def clipped(gradients: Any) -> tuple[Tensor | None, ...]:
    return tuple(None if g is None else clip(g) for g in gradients)


class Net(nn.Module):
    """Does something with its hidden layer, or its weight, in each forward pass."""

    def __init__(self, act: Callable[[Net, Tensor], object] = lambda net, h: None) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(5, 6), nn.Linear(6, 3), act

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        if h.requires_grad:
            self.act(self, h)
        return self.b(h)


def network(act: Callable[[Net, Tensor], object] = lambda net, h: None) -> Net:
    torch.manual_seed(0)
    return Net(act).eval()


def on_weights(net: Net) -> list[Any]:
    return [p.register_hook(clip) for p in net.parameters()]


def after_accumulation(net: Net) -> list[Any]:
    return [p.register_post_accumulate_grad_hook(zero) for p in net.parameters()]


def on_outputs_of_a_layer(net: Net) -> list[Any]:
    return [net.a.register_forward_hook(lambda module, args, out: out.register_hook(clip) and None)]


HUNG: dict[str, Callable[[Net], list[Any]]] = {
    "weights": on_weights,
    "weights, after accumulation": after_accumulation,
    "a layer": lambda net: [net.b.register_full_backward_hook(lambda module, gi, go: clipped(gi))],
    "a layer, before": lambda net: [net.a.register_full_backward_pre_hook(lambda module, go: clipped(go))],
    "a layer, the old way": lambda net: [net.b.register_backward_hook(lambda module, gi, go: clipped(gi))],
    "all layers": lambda net: [everywhere.register_module_full_backward_hook(lambda module, gi, go: clipped(gi))],
    "all layers, before": lambda net: [
        everywhere.register_module_full_backward_pre_hook(lambda module, go: clipped(go))
    ],
}
IN_FORWARD: dict[str, Callable[[Net, Tensor], object]] = {
    "a lambda": lambda net, h: h.register_hook(lambda g: clip(g)),
    "a partial": lambda net, h: h.register_hook(functools.partial(torch.clamp, min=-0.005, max=0.005)),
    "torch's function": lambda net, h: h.register_hook(torch.zeros_like),
    "a function of torch.nn": lambda net, h: h.register_hook(F.softmin),
    "a weight": lambda net, h: net.a.weight.register_hook(clip),
    "removed at once": lambda net, h: h.register_hook(clip).remove(),
}


def numbers(net: Net) -> list[float]:
    minimum = Minimum(net, (X, Y))
    found = [
        e.value for e in measure(minimum, ["fisher_trace", "gradient_variance", "sharpness", "robustness"]).values()
    ]
    return [*found, float(minimum[HessianDiagonal()].sum()), measures.hessian_top_eigenvalue(minimum).value]


@pytest.fixture(scope="module")
def expected() -> list[float]:
    return numbers(network())


def gradients(net: Net) -> list[Tensor]:
    net.zero_grad()
    F.cross_entropy(net(X), Y).backward()
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("name", HUNG)
def test_hooks_on_gradients_change_no_number_and_stay(name: str, expected: list[float]) -> None:
    """With clipping of weights a Fisher trace was .078 where it is 2.383, and a Hessian's trace 0."""
    net = network()
    truth = gradients(net)
    hung = HUNG[name](net)
    try:
        before = gradients(net)
        assert any(not torch.equal(a, b) for a, b in zip(before, truth, strict=True))
        assert numbers(net) == pytest.approx(expected, rel=1e-5)
        minimum = Minimum(net, (X, Y))
        assert any("hooks on gradients" in note for note in measure(minimum, ["margin"]).notes)
        with pytest.raises(KeyError), minimum.open():
            raise KeyError("in the middle")
        minimum.refuse_stale()
        assert all(torch.equal(a, b) for a, b in zip(gradients(net), before, strict=True))
    finally:
        for handle in hung:
            handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(gradients(net), truth, strict=True))


@pytest.mark.parametrize("name", IN_FORWARD)
def test_hooks_that_a_forward_pass_hangs_up_change_no_number(name: str, expected: list[float]) -> None:
    net, register = network(IN_FORWARD[name]), Tensor.register_hook
    assert numbers(net) == pytest.approx(expected, rel=1e-5)
    assert Tensor.register_hook is register and not net.a.weight._backward_hooks
    net(X)
    assert bool(net.a.weight._backward_hooks) == (name == "a weight")


def test_hooks_that_a_forward_hook_hangs_up_change_no_number(expected: list[float]) -> None:
    net = network()
    on_outputs_of_a_layer(net)
    assert numbers(net) == pytest.approx(expected, rel=1e-5)


def test_a_hook_that_is_removed_while_the_network_is_measured_does_no_harm() -> None:
    net = network()
    (handle, *_) = on_weights(net)
    with Minimum(net, (X, Y)).open():
        handle.remove()
    handle.remove()
    assert not net.a.weight._backward_hooks


def test_a_network_without_hooks_says_nothing_of_them() -> None:
    assert not any("hooks" in note for note in measure(Minimum(network(), (X, Y)), ["margin"]).notes)


def test_two_threads_leave_the_hooks_of_the_process_as_they_were() -> None:
    """Blocks that overlap: whoever came second would put back what the first had put in its place."""
    register, handle = Tensor.register_hook, everywhere.register_module_full_backward_hook(lambda *_: None)
    try:
        tables = dict(everywhere._global_backward_hooks)
        inside, leave = threading.Event(), threading.Event()

        def first() -> None:
            with untouched(nn.Linear(2, 2)):
                inside.set()
                leave.wait(1)  # the second is in its block by then, if it may be

        def second() -> None:
            inside.wait(10)
            with untouched(nn.Linear(2, 2)):
                leave.set()
                threads[0].join(1)

        threads = [threading.Thread(target=act) for act in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert Tensor.register_hook is register
        assert dict(everywhere._global_backward_hooks) == tables
    finally:
        handle.remove()
