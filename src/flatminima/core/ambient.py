"""torch's ambient modes, which no measurement may depend on.

Autocast, inference mode, another default dtype or device are inputs that nobody lists: inside `torch.autocast` the
cache of cast weights makes every perturbation invisible, and an expected sharpness comes out as exactly 0; inside
`parametrize.cached` the same happens to parametrized weights. With TF32 it is rounding. They are switched off around
everything that the library computes, and are again as they were afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from threading import RLock, get_ident
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.modules import module as _modules
from torch.nn.utils import parametrize as _parametrize
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from flatminima.core.full_precision import full_precision
from flatminima.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")

SWITCHES_LOCK = RLock()  # around whatever reads or sets a switch of the process
_DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
_CPU = torch.device("cpu")
_REFUSED = ("FakeTensorMode", "FunctionalTensorMode", "ProxyTorchDispatchMode")


@dataclass(frozen=True)
class Defaults:
    """Defaults of tensors that are made without a dtype or device."""

    dtype: torch.dtype
    device: torch.device

    @classmethod
    def now(cls) -> Defaults:
        return cls(torch.get_default_dtype(), torch.empty(0).device)  # torch's own word leaves out blocks before 2.7


_NEUTRAL = Defaults(torch.float32, _CPU)
_outer: list[Defaults] = []  # of the caller, while the library has its own
_depth = 0  # of blocks, changed under the lock


def _after_fork() -> None:
    """In a child made while another thread measured: that thread is not here to let go of the lock."""
    global _depth
    if not SWITCHES_LOCK.acquire(blocking=False):
        SWITCHES_LOCK._at_fork_reinit()  # type: ignore[attr-defined]
        _depth = 0
        _outer.clear()
    else:
        SWITCHES_LOCK.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def neutral() -> Iterator[None]:
    """No autocast, no inference mode, no TF32, gradients on, float32 and the CPU as defaults; nested, it does nothing.

    Nothing is kept of parametrized weights, nor packed of what a backward pass needs, and no function mode is on.

    Raises:
        UsageError: inside a mode whose tensors hold no values, or a functorch transform.
    """
    global _depth
    with SWITCHES_LOCK, ExitStack() as stack:
        if _depth:
            yield
            return
        if _refuse_modes():  # a counter of operations takes some of them apart, which is another rounding
            stack.enter_context(_disable_current_modes())
        for switched_off in (_function_modes_off, _hooks_on_saved_tensors_off, _kept_parametrizations_off):
            stack.enter_context(switched_off())
        stack.enter_context(_without_trackers())
        stack.enter_context(full_precision())
        for kind in _DEVICE_TYPES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        here = Defaults.now()
        if here != _NEUTRAL:
            stack.enter_context(_defaults(_NEUTRAL))
            _outer.append(here)
            stack.callback(_outer.pop)
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1


@contextmanager
def the_models_own(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """The caller's defaults again around a forward pass, where they are those of the model (`dtype`, `device`)."""
    if not _outer:
        yield
        return
    outer = _outer[0]
    wanted = Defaults(
        outer.dtype if outer.dtype == dtype else _NEUTRAL.dtype,
        outer.device if outer.device.type == device.type else _NEUTRAL.device,
    )
    if wanted == Defaults.now():
        yield
        return
    with _defaults(wanted):
        yield


@contextmanager
def _defaults(wanted: Defaults) -> Iterator[None]:
    dtype, modes = torch.get_default_dtype(), _get_current_function_mode_stack()
    others = [mode for mode in modes if not isinstance(mode, DeviceContext)]
    torch.set_default_dtype(wanted.dtype)
    _change_function_modes(modes, others)  # before torch 2.7 the outer one of two default devices wins
    try:
        with torch.device(wanted.device):
            yield
    finally:
        _change_function_modes(others, modes)
        torch.set_default_dtype(dtype)


@contextmanager
def _function_modes_off() -> Iterator[None]:
    """No function mode of the caller's but default devices, which have a switch of their own."""
    modes = _get_current_function_mode_stack()  # of this thread
    devices = [mode for mode in modes if isinstance(mode, DeviceContext)]
    if len(devices) == len(modes):
        yield
        return
    _change_function_modes(modes, devices)
    try:
        yield
    finally:
        _change_function_modes(devices, modes)


def _change_function_modes(now: list[Any], wanted: list[Any]) -> None:
    for _ in now:
        _pop_mode()
    for mode in wanted:
        _push_mode(mode)


@contextmanager
def _hooks_on_saved_tensors_off() -> Iterator[None]:
    """No pair of `saved_tensors_hooks` that the caller has set: one that rounds gives other gradients."""
    graphs: Any = torch._C._autograd
    hooks: list[Any] = []  # of this thread, the innermost first
    if hasattr(graphs, "_top_saved_tensors_default_hooks"):
        while (pair := graphs._top_saved_tensors_default_hooks(True)) is not None:
            hooks.append(pair)
            graphs._pop_saved_tensors_default_hooks()
    else:
        _refuse_hooks_on_saved_tensors()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            graphs._push_saved_tensors_default_hooks(pack, unpack)


def _refuse_hooks_on_saved_tensors() -> None:
    try:
        with disable_saved_tensors_hooks("they are looked for"):
            pass
    except RuntimeError:
        raise UsageError(
            f"hooks on saved tensors are on, which may give other gradients, and torch {torch.__version__} cannot set "
            "them aside: measure outside `saved_tensors_hooks` and the like, or with a newer torch, such as 2.13"
        ) from None


class _Empty(dict[tuple[int, str], Tensor | None]):
    """A cache that stays empty."""

    def __setitem__(self, key: tuple[int, str], value: Tensor | None) -> None:
        pass


@contextmanager
def _kept_parametrizations_off() -> Iterator[None]:
    """Parametrized weights made anew at each use, where `parametrize.cached` would keep those of before a move.

    Its counter stays: another thread may leave its own block meanwhile, which begins another cache.
    """
    if not _parametrize._cache_enabled:
        yield
        return
    kept, empty = _parametrize._cache, _Empty()
    _parametrize._cache = empty
    try:
        yield
    finally:
        if _parametrize._cache is empty:
            _parametrize._cache = kept


@contextmanager
def _without_trackers() -> Iterator[None]:
    """Hooks on every module of the process that torch's own counters of operations set do nothing within the block.

    They hang hooks on gradients, which no per-sample backward pass allows. A counter of another thread goes on counting
    what that thread does, and may end meanwhile.
    """
    here = get_ident()

    def silent(hook: Callable[..., Any]) -> Callable[..., Any]:
        if not type(getattr(hook, "__self__", None)).__module__.startswith("torch."):
            return hook
        return lambda *arguments: None if get_ident() == here else hook(*arguments)

    with hooks_replaced((_modules._global_forward_pre_hooks, _modules._global_forward_hooks), silent):
        yield


@contextmanager
def hooks_replaced(
    tables: Iterable[dict[int, Any]], by: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Hooks of the process replaced within the block, under the lock; one that is gone meanwhile stays so."""
    held = [(table, number, hook) for table in tables for number, hook in table.items()]
    for table, number, hook in held:
        table[number] = by(hook)
    try:
        yield
    finally:
        for table, number, hook in held:
            if number in table:
                table[number] = hook


def in_neutral(function: Callable[P, T]) -> Callable[P, T]:
    """The function, run in `neutral`."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with neutral():
            return function(*args, **kwargs)

    return run


def refuse_without_gradients() -> None:
    """Refuse the modes in which nothing can be trained.

    Raises:
        UsageError: inference mode, a mode whose tensors hold no values, a functorch transform.
    """
    _refuse_modes()
    if torch.is_inference_mode_enabled():
        raise UsageError("got called inside torch.inference_mode, where nothing has a gradient; leave it first")


def _refuse_modes() -> bool:
    """Whether there are dispatch modes, none of which has to be refused."""
    modes: list[Any] = _get_current_dispatch_mode_stack()
    for mode in modes:
        name = type(mode).__name__
        if name in _REFUSED:
            raise UsageError(f"got called inside {name}, whose tensors hold no values; leave it first")
    if torch._C._functorch.maybe_current_level() is not None:
        raise UsageError("got called inside a torch.func transform (vmap, grad, ...); call it outside")
    return bool(modes)
