"""Weights in the channels-last format while a network trains, and in their own again afterwards.

The optimizer's state goes along: a moment in another order of memory than its weight is slow at best, and what reads
both as flat memory pairs wrong entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_IMAGES = 4  # axes of the weight of a convolution over images


@contextmanager
def channels_last(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Convolutions' weights and what the optimizer keeps of them in channels-last within the block."""
    before = [(p, p.stride()) for p in model.parameters() if p.dim() == _IMAGES]
    for p, _ in before:
        p.data = p.data.contiguous(memory_format=torch.channels_last)
    _follow(optimizer)
    try:
        yield
    finally:
        for p, stride in before:
            p.data = _laid(p.data, stride)
        _follow(optimizer)


def _follow(optimizer: torch.optim.Optimizer) -> None:
    """Lay the optimizer's state out as the weights are."""
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                state[name] = _laid(value, p.stride())


def _laid(t: Tensor, stride: tuple[int, ...]) -> Tensor:
    if t.stride() == stride:
        return t
    return torch.empty_strided(t.shape, stride, dtype=t.dtype, device=t.device).copy_(t)
