"""Whatever a measurement does to a model, afterwards it is as before: bit for bit, also when something raised.

Weights, buffers, training modes, gradients, `requires_grad`, hooks and the global random state are put back.
"""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatminima.core.identity import content_version, dense_parts, same_content
from flatminima.errors import ModelError
from flatminima.escaping import shown

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TABLES = ("_parameters", "_buffers", "_modules", *_HOOKS)
_OWN = (*_TABLES, "forward")  # attributes that no forward pass writes
_COLLECTIONS = (list, dict, set, deque, OrderedDict, defaultdict)


class Written:
    """Attributes of a model's modules and what their collections hold, as they are when this is made."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._attributes = [(m, dict(vars(m))) for m in modules]
        self._buffers = [(m._buffers, dict(m._buffers)) for m in modules]
        self._collections = [c for _, kept in self._attributes for c in _collections(kept)]

    def put_back(self) -> None:
        """All attributes, also those that are gone; new ones go."""
        for m, kept in self._attributes:
            vars(m).clear()
            vars(m).update(kept)
        self._refill()

    def take_away(self) -> None:
        """Undo what forward passes wrote since (counters, caches), within a block that may have changed the modules."""
        for m, kept in self._attributes:
            now = vars(m)
            for name in [k for k, v in now.items() if k not in _OWN and (k not in kept or kept[k] is not v)]:
                del now[name]
            now.update((k, v) for k, v in kept.items() if k not in _OWN)
        for table, entries in self._buffers:  # a forward pass may replace a buffer instead of writing into it
            if [*map(id, table.values())] != [*map(id, entries.values())]:
                table.update(entries)
        self._refill()

    def _refill(self) -> None:
        for collection, held in self._collections:
            _refill(collection, held)


@contextmanager
def untouched(model: nn.Module) -> Iterator[Written]:
    """Run the block in eval mode and restore everything afterwards."""
    modules, weights = list(model.modules()), list(model.parameters())
    state = [(t, t.detach().clone(), content_version(t)) for t in (*weights, *model.buffers())]
    parameters = [(p, p.grad, p.requires_grad) for p in weights]
    grads = [(p.grad, p.grad.detach().clone()) for p in weights if p.grad is not None]
    compiled = {m for m in modules if isinstance(m, torch.jit.ScriptModule)}  # their tables are copies
    tables = [
        (getattr(m, name), dict(getattr(m, name))) for m in modules for name in (_HOOKS if m in compiled else _TABLES)
    ]
    buffers = [(m, name, b) for m in compiled for name, b in m.named_buffers(recurse=False)]
    modes = [(m, m.training) for m in modules if hasattr(m, "training")]
    written = Written([m for m in modules if m not in compiled])
    try:
        with same_randomness():
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
                if not _same(tensor, copy):
                    tensor.copy_(copy)
            for tensor, copy in grads:
                if not _same(tensor, copy):
                    tensor.copy_(copy)
        for tensor, _, version in state:
            same_content(tensor, version)
        for p, grad, requires_grad in parameters:
            p.grad = grad
            p.requires_grad_(requires_grad)


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


def _collections(attributes: dict[str, Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Lists, dicts and sets of a module (logs, caches) and those within them, with the entries that they hold."""
    stack = [value for name, value in attributes.items() if name not in _TABLES]
    seen: set[int] = set()
    while stack:
        value = stack.pop()
        if id(value) in seen or type(value) not in _COLLECTIONS:
            continue
        seen.add(id(value))
        entries = [*value.items()] if isinstance(value, dict) else [*value]
        stack += [entry for _, entry in entries] if isinstance(value, dict) else entries
        yield value, entries


def _refill(collection: Any, entries: list[Any]) -> None:
    if isinstance(collection, dict):
        now = [*collection.items()]
        same = len(now) == len(entries) and all(a is c and b is d for (a, b), (c, d) in zip(now, entries, strict=True))
    else:
        same = [*map(id, collection)] == [*map(id, entries)]
    if not same:
        collection.clear()
        collection.extend(entries) if isinstance(collection, list | deque) else collection.update(entries)


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


def _same(a: Tensor, b: Tensor) -> bool:
    if a.layout != torch.strided:
        return all(_same(x, y) for x, y in zip(dense_parts(a), dense_parts(b), strict=True))
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


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
