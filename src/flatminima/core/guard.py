"""Whatever a measurement does to a model, afterwards it is as before: bit for bit, also when something raised.

Weights, buffers, training modes, gradients, `requires_grad`, hooks, what the modules hold and the global random state
are put back.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as _modules
from torch.utils.hooks import RemovableHandle

from flatminima.core.ambient import SWITCHES_LOCK, hooks_replaced
from flatminima.core.identity import content_version, same_content
from flatminima.core.written import HOOKS, TABLES, Written as Written, same_entries
from flatminima.errors import ModelError
from flatminima.escaping import shown

_OF_MODULES = ("_backward_hooks", "_backward_pre_hooks")
_OF_WEIGHTS = ("_backward_hooks", "_post_accumulate_grad_hooks")


@contextmanager
def untouched(model: nn.Module) -> Iterator[Written]:
    """Run the block in eval mode and restore everything afterwards; one thread at a time."""
    with SWITCHES_LOCK, _restored(model) as written:
        yield written


@contextmanager
def _restored(model: nn.Module) -> Iterator[Written]:
    modules, weights = list(model.modules()), list(model.parameters())
    state = [(t, t.detach().clone(), content_version(t)) for t in (*weights, *model.buffers())]
    parameters = [(p, p.grad, p.requires_grad) for p in weights]
    grads = [(p.grad, p.grad.detach().clone()) for p in weights if p.grad is not None]
    compiled = {m for m in modules if isinstance(m, torch.jit.ScriptModule)}  # their tables are copies
    tables = [
        (getattr(m, name), dict(getattr(m, name))) for m in modules for name in (HOOKS if m in compiled else TABLES)
    ]
    buffers = [(m, name, b) for m in compiled for name, b in m.named_buffers(recurse=False)]
    modes = [(m, m.training) for m in modules if hasattr(m, "training")]
    written = Written([m for m in modules if m not in compiled])
    try:
        with same_randomness(), _gradients_unhooked(modules, weights):
            _evaluate(model)
            yield written
    finally:
        written.put_back()
        for m, training in modes:
            m.training = training
        for table, entries in tables:  # a forward pass may replace a buffer instead of writing into it
            if [*map(id, table.values())] != [*map(id, entries.values())] or [*table] != [*entries]:
                table.clear()
                table.update(entries)
        for m, name, buffer in buffers:
            if getattr(m, name) is not buffer:
                setattr(m, name, buffer)
        with torch.no_grad():
            for tensor, copy, _ in state:
                if not same_entries(tensor, copy):
                    tensor.copy_(copy)
            for tensor, copy in grads:
                if not same_entries(tensor, copy):
                    tensor.copy_(copy)
        for tensor, _, version in state:
            same_content(tensor, version)
        for p, grad, requires_grad in parameters:
            p.grad = grad
            p.requires_grad_(requires_grad)


@contextmanager
def _gradients_unhooked(modules: list[nn.Module], weights: list[nn.Parameter]) -> Iterator[None]:
    """No hook of the caller's on a gradient within the block: one that clips or scales it gives another derivative.

    Neither on weights and modules, nor on tensors that a forward pass makes.
    """
    tables = [getattr(owner, name) for owner, name in _hook_tables(modules, weights)]
    held = [(table, dict(table)) for table in tables if table]
    before = [(p, name, getattr(p, name)) for p in weights for name in _OF_WEIGHTS]
    for table, _ in held:
        table.clear()
    try:
        with _hooks_of_all_modules_off({id(m) for m in modules}), _new_hooks_off():
            yield
    finally:
        for p, name, table in before:
            if getattr(p, name) is not table:
                setattr(p, name, table)
        for table, entries in held:
            table.clear()
            table.update(entries)


def _hook_tables(modules: Iterable[nn.Module], weights: Iterable[nn.Parameter]) -> Iterator[tuple[Any, str]]:
    yield from ((m, name) for m in modules for name in _OF_MODULES)
    yield from ((p, name) for p in weights for name in _OF_WEIGHTS)


def hooks_left_out(model: nn.Module) -> dict[str, None]:
    """Remark that hooks hang on the gradients of weights or modules, where there are any."""
    everywhere = _modules._global_backward_hooks or _modules._global_backward_pre_hooks
    if everywhere or any(getattr(owner, name) for owner, name in _hook_tables(model.modules(), model.parameters())):
        return {"hooks on gradients (clipping?) were left out: derivatives are the network's own": None}
    return {}


def emptied(model: nn.Module) -> set[tuple[str, str]]:
    """Attributes (module, name) that are empty while the model is `untouched`."""
    return {(name, table) for name, _ in model.named_modules() for table in _OF_MODULES}


def _hooks_of_all_modules_off(silent: set[int]) -> AbstractContextManager[None]:
    """Backward hooks of the whole process, which another thread may need, say nothing of the modules with these ids."""
    tables = (_modules._global_backward_hooks, _modules._global_backward_pre_hooks)
    return hooks_replaced(
        tables, lambda hook: lambda module, *gradients: None if id(module) in silent else hook(module, *gradients)
    )


@contextmanager
def _new_hooks_off() -> Iterator[None]:
    """`Tensor.register_hook` hangs up no hook within the block, but those of this library and of sharded tensors."""
    register: Any = Tensor.register_hook
    here = get_ident()

    def chosen(tensor: Tensor, hook: Callable[..., Any]) -> Any:
        origin = getattr(hook, "__module__", None) or ""
        if get_ident() != here or origin.startswith(("flatminima.", "torch.distributed.")):
            return register(tensor, hook)
        return RemovableHandle(OrderedDict())

    Tensor.register_hook = chosen  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.register_hook = register  # type: ignore[method-assign]


def _evaluate(model: nn.Module) -> None:
    """Put every module into eval mode.

    Raises:
        ModelError: it has none.
    """
    try:
        model.eval()
    except NotImplementedError as error:
        raise ModelError(
            f"{shown(type(model).__name__)} has no eval mode: measure the module it was made of"
        ) from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, in its own mode afterwards (a frozen BatchNorm stays frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def same_randomness() -> Iterator[None]:
    """Put the global random states back after the block."""
    state = _random_state()
    try:
        yield
    finally:
        _set_random_state(state)


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Kernels whose gradients can themselves be differentiated: MATH attention, no fused encoder, no cuDNN RNN."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if torch.cuda.is_available() and any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def random_marks(device: torch.device) -> tuple[Any, ...]:
    """Differ where random numbers of torch, numpy or Python were drawn in between."""
    states: list[Any] = [torch.get_rng_state().numpy().tobytes()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    kind, keys, *rest = np.random.get_state()
    return (*states, kind, np.asarray(keys).tobytes(), *rest, random.getstate())


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()


def _set_random_state(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state_all(state[1])
    np.random.set_state(state[2])
    random.setstate(state[3])
