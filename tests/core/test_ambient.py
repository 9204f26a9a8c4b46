"""Inside autocast, inference mode, another default dtype or device: the numbers are those outside, or one refusal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from flatminima import Minimum, measure, measures
from flatminima.core.ambient import neutral
from flatminima.errors import ModelError, UsageError
from flatminima.landscape import directions, landscape

MEASURES = ["fisher_trace", "hessian_trace", "sharpness", "expected_sharpness", "pacgen", "margin", "path_norm"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(100, 6, generator=g, dtype=torch.float32, device="cpu")
    return x, torch.randint(0, 3, (100,), generator=g, device="cpu")


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast, nested": lambda: _both(torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", torch.float16)),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "no_grad in autocast": lambda: _both(torch.autocast("cpu", torch.bfloat16), torch.no_grad()),
    "saved tensors rounded": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t.float()),
    "a function mode that rounds": lambda: Rounds(),
    "function modes on a device": lambda: _both(torch.device("meta"), Rounds()),
    "two devices": lambda: _both(torch.device("cpu"), _both(Rounds(), torch.device("meta"))),
}
SETS_HOOKS_ASIDE = hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
if not SETS_HOOKS_ASIDE:  # there torch itself cannot leave one default device within another
    del MODES["two devices"]


class Rounds(torch.overrides.TorchFunctionMode):
    """Rounds what linear layers return."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        return out.bfloat16().float() if function is nn.functional.linear else out


@contextlib.contextmanager
def _both(one: Any, two: Any) -> Iterator[None]:
    with one, two:
        yield


def numbers(minimum: Minimum) -> dict[str, Any]:
    table = measure(minimum, MEASURES)
    return {name: (e.value, e.stderr, e.undefined) for name, e in table.items()}


@pytest.fixture(scope="module")
def outside() -> dict[str, Any]:
    found = numbers(Minimum(network(), data()))
    assert all(found[name][0] is not None for name in MEASURES if name not in ("margin", "path_norm"))
    return found


@contextlib.contextmanager
def _refused_before_torch_2_7(mode: str) -> Iterator[None]:
    """Hooks that torch cannot look at are refused, since they may change every gradient."""
    if mode == "saved tensors rounded" and not SETS_HOOKS_ASIDE:
        with pytest.raises(UsageError, match="hooks on saved tensors are on"):
            yield
    else:
        yield


def switches() -> list[Any]:
    modes = torch.overrides._get_current_function_mode_stack()
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True) if SETS_HOOKS_ASIDE else None
    return [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), modes, hooks]


@pytest.mark.parametrize("mode", MODES)
def test_a_table_made_inside_is_the_table_made_outside(mode: str, outside: dict[str, Any]) -> None:
    """Inside autocast an expected sharpness was 0 +- 0: the cache of cast weights hides every perturbation."""
    net, pair = network(), data()
    with MODES[mode]():
        before = switches()
        with _refused_before_torch_2_7(mode):
            assert numbers(Minimum(net, pair)) == outside
        assert switches() == before


@pytest.mark.parametrize("mode", MODES)
def test_a_minimum_made_outside_may_be_measured_inside(mode: str, outside: dict[str, Any]) -> None:
    minimum = Minimum(network(), data())
    with MODES[mode](), _refused_before_torch_2_7(mode):
        assert numbers(minimum) == outside
        assert measures.fisher_trace(minimum).value == outside["fisher_trace"][0]


@pytest.mark.parametrize("mode", ["autocast", "inference_mode", "default float64"])
def test_landscapes_are_those_outside(mode: str) -> None:
    minimum = Minimum(network(), data())
    expected = landscape(minimum, directions(minimum, "filter", 1), steps=5).losses
    other = Minimum(network(), data())
    with MODES[mode]():
        found = landscape(other, directions(other, "filter", 1), steps=5).losses
    assert (found == expected).all()


def test_a_network_that_relies_on_the_default_dtype_is_run_in_it() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x + torch.linspace(0, 1, 3) @ torch.eye(3))

    with default_dtype(torch.float64):
        net = Shifted().eval()
        x = torch.randn(20, 3)
        table = measure(Minimum(net, (x, torch.arange(20) % 2)), ["margin"])
    assert table["margin"].value is not None


def test_weights_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        net = network()
    with pytest.raises(ModelError, match="made in inference mode"):
        Minimum(net, data())


def test_modes_without_values_and_transforms_are_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    minimum = Minimum(network(), data())
    with FakeTensorMode(), pytest.raises(UsageError, match="FakeTensorMode"):
        measure(minimum, ["margin"])
    with pytest.raises(UsageError, match=r"torch\.func"):
        torch.func.vmap(lambda x: measure(minimum, ["margin"]) and x)(torch.ones(2))


def test_modes_are_as_before_after_an_exception() -> None:
    with torch.autocast("cpu", torch.bfloat16), default_dtype(torch.float64):
        with pytest.raises(KeyError), neutral():
            assert not torch.is_autocast_enabled("cpu") and torch.get_default_dtype() == torch.float32
            raise KeyError
        assert torch.is_autocast_enabled("cpu") and torch.get_default_dtype() == torch.float64


def orthogonal_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(orthogonal(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("made_inside", [True, False])
def test_parametrized_weights_follow_every_move_where_they_are_cached(made_inside: bool) -> None:
    """`parametrize.cached` kept those of before the move: a Fisher trace was half of what it is."""
    net, pair = orthogonal_network(), data()
    expected = numbers(Minimum(net, pair))
    minimum = None if made_inside else Minimum(net, pair)
    with parametrize.cached():
        kept = net[0].weight
        assert numbers(minimum or Minimum(net, pair)) == expected
        assert net[0].weight is kept and parametrize._cache_enabled == 1
    assert not parametrize._cache and net[0].weight is not kept


def test_a_cache_that_another_thread_leaves_meanwhile_is_not_brought_back() -> None:
    net = orthogonal_network()
    with contextlib.ExitStack() as others:
        others.enter_context(parametrize.cached())
        first = net[0].weight
        with neutral():
            assert net[0].weight is not net[0].weight
            others.close()
            assert net[0].weight is not net[0].weight
    assert not parametrize._cache and not parametrize._cache_enabled and net[0].weight is not first
