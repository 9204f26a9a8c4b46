"""Running statistics of normalization layers, kept as they are while extra passes run in training mode.

Copies are put back afterwards. Switching momentum to 0 would break cumulative averages and still count batches;
switching to eval mode would change the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

_NAMES = ("running_mean", "running_var", "num_batches_tracked")


def couples_the_batch(model: nn.Module) -> bool:
    """Whether a sample's output depends on the other samples of its batch, as far as the layer kinds tell."""
    return any(
        isinstance(m, _BatchNorm) and (m.training or (m.running_mean is None and m.running_var is None))
        for m in model.modules()
    )


@contextmanager
def kept(model: nn.Module | None) -> Iterator[None]:
    """The block's forward passes leave the running statistics of `model` as they were, also on an exception.

    Without a model the layers are found as they are called. `torch.compile(model)` is found as a whole; a model
    compiled in place (`model.compile()`) calls nothing that can be seen, so give it.
    """
    copies: dict[int, tuple[Tensor, Tensor]] = {}

    def remember(module: nn.Module) -> None:
        if module.training:
            for name in _NAMES:
                buffer = module._buffers.get(name)
                if buffer is not None and id(buffer) not in copies:
                    copies[id(buffer)] = (buffer, buffer.detach().clone())

    def remember_called(module: nn.Module, _: Any) -> None:
        for part in module.modules() if hasattr(module, "_orig_mod") else [module]:
            remember(part)

    handle = register_module_forward_pre_hook(remember_called) if model is None else None
    if model is not None:
        for module in model.modules():
            remember(module)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        with torch.no_grad():
            for buffer, copy in copies.values():
                buffer.copy_(copy)
