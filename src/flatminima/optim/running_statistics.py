"""Buffers that a forward pass moves, kept as they are while extra passes run in training mode.

Running statistics, the vectors of a spectral norm, the counts of an observer, a codebook's averages: copies of all
buffers are put back afterwards. Switching momentum to 0 would break cumulative averages and still count batches;
switching to eval mode would change the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook


class Buffers:
    """The buffers of modules as they are now, whether a pass writes into them or puts others in their place.

    Attributes:
        moved: whether any was found changed when it was put back.
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        self._seen: dict[int, tuple[nn.Module, dict[str, Tensor | None]]] = {}  # the module, so that its id stays its
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        self.moved = False
        for module in modules:
            self.remember(module)

    def remember(self, module: nn.Module) -> None:
        """A module's own buffers, unless they are known."""
        if not module._buffers or id(module) in self._seen:
            return
        self._seen[id(module)] = (module, dict(module._buffers))
        for buffer in module._buffers.values():
            if buffer is not None and id(buffer) not in self._copies:
                self._copies[id(buffer)] = (buffer, buffer.detach().clone())

    @torch.no_grad()
    def restore(self) -> None:
        """All as they were, bit for bit; what did not change is not written."""
        for module, table in self._seen.values():
            if [*map(id, module._buffers.values())] != [*map(id, table.values())]:
                self.moved = True
                module._buffers.clear()
                module._buffers.update(table)
        for buffer, copy in self._copies.values():
            if not _same(buffer, copy):
                self.moved = True
                buffer.copy_(copy)


def couples_the_batch(model: nn.Module) -> bool:
    """Whether a sample's output depends on the other samples of its batch, as far as the layer kinds tell."""
    return any(
        isinstance(m, _BatchNorm) and (m.training or (m.running_mean is None and m.running_var is None))
        for m in model.modules()
    )


@contextmanager
def kept(model: nn.Module | None) -> Iterator[None]:
    """The block's forward passes leave the buffers of `model` as they were, also on an exception.

    Without a model the layers are found as they are called. `torch.compile(model)` is found as a whole; a model
    compiled in place (`model.compile()`) calls nothing that can be seen, so give it.
    """
    buffers = Buffers(() if model is None else model.modules())

    def remember_called(module: nn.Module, _: Any) -> None:
        if module._buffers:
            buffers.remember(module)
        if "_orig_mod" in module._modules:  # compiled: its parts are not called
            for part in module.modules():
                buffers.remember(part)

    handle = register_module_forward_pre_hook(remember_called) if model is None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        buffers.restore()


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
