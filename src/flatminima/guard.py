"""Whatever a measurement does to a model, afterwards it is as before: bit for bit, also when something raised.

Weights, buffers, training modes, gradients, `requires_grad`, hooks and the global random state are put back.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STRIDE = 1021  # prime, so that the checksum's sample does not follow a tensor's rows


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run the block in eval mode and restore everything afterwards."""
    state = [(t, t.detach().clone()) for t in _tensors(model)]
    parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    grads = [(p.grad, p.grad.detach().clone()) for p in model.parameters() if p.grad is not None]
    modes = [(m, m.training) for m in model.modules()]
    hooks = [(m, name, dict(getattr(m, name))) for m in model.modules() for name in _HOOKS]
    buffers = [(m, dict(m._buffers)) for m in model.modules()]
    random_state = _random_state()
    model.eval()
    try:
        yield
    finally:
        for m, kept in buffers:  # a forward pass may replace a buffer instead of writing into it
            m._buffers.clear()
            m._buffers.update(kept)
        with torch.no_grad():
            for tensor, copy in [*state, *grads]:
                if not _same(tensor, copy):
                    tensor.copy_(copy)
        for p, grad, requires_grad in parameters:
            p.grad = grad
            p.requires_grad_(requires_grad)
        for m, mode in modes:
            m.training = mode
        for m, name, entries in hooks:
            current = getattr(m, name)
            if dict(current) != entries:
                current.clear()
                current.update(entries)
        _set_random_state(random_state)


@contextmanager
def differentiable() -> Iterator[None]:
    """Kernels whose gradients can themselves be differentiated: MATH attention, no fused encoder, no cuDNN RNN."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False) if torch.cuda.is_available() else _nothing())
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """Changes whenever a parameter or buffer is written (version counters, and a checksum for writes to .data)."""
    marks = []
    for t in _tensors(model):
        sample = t.detach().reshape(-1)[::_STRIDE]
        marks.append((t._version, t.data_ptr(), float(sample.double().sum()) if sample.numel() else 0.0))
    return tuple(marks)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *(b for b in model.buffers() if b is not None)]


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()


def _set_random_state(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state_all(state[1])
    np.random.set_state(state[2])
    random.setstate(state[3])
