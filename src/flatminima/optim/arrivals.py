"""Whether gradients were added to, and not cleared first: seen at the moment when a new one arrives.

The versions of a gradient count writes of every kind, so that a clipping, a second backward pass or a clearing in place
look alike afterwards. A hook of the parameter runs ahead of the addition, and finds there what is added to.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Arrivals:
    """Parameters under watch, until `close`; few, since a hook costs as much as a small layer.

    Args:
        parameters: to watch. looked: called at an arrival; whether the gradient there says anything.
    """

    def __init__(self, parameters: Sequence[Tensor], looked: Callable[[], bool] | None = None) -> None:
        self.held = [(p, p.grad) for p in parameters if p.requires_grad]
        self.seen: set[int] = set()  # ids of those that a gradient has reached
        self.added = False  # to one that was not zero
        self._looked = looked
        self._handles = [p.register_hook(_Hook(self, p)) for p, _ in self.held]

    def arrive(self, p: Tensor) -> None:
        """A gradient is about to be added to that of a parameter."""
        if id(p) not in self.seen:  # the next is a second pass
            self.seen.add(id(p))
            g = None if self._looked is not None and not self._looked() else p.grad
            self.added = self.added or (g is not None and bool(g.any()))

    def kept(self) -> bool:
        """Whether the gradients of the beginning are in those of now, whatever was added or done to them."""
        return self.added or any(
            id(p) not in self.seen and grad is not None and p.grad is grad and bool(grad.any()) for p, grad in self.held
        )

    def close(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.pop().remove()


class Snapshot:
    """The gradients of a moment, to see whether anything was done to them; keeps none of them."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._seen = [None if p.grad is None else (weakref.ref(p.grad), p.grad._version) for p in parameters]

    def unchanged(self) -> bool:
        """They are the same, unwritten."""
        return all(_is(p.grad, known) for p, known in zip(self._parameters, self._seen, strict=True))


def _is(grad: Tensor | None, known: tuple[weakref.ref[Tensor], int] | None) -> bool:
    if grad is None or known is None:
        return grad is None and known is None
    return known[0]() is grad and known[1] == grad._version


class _Hook:
    """Of a parameter; keeps neither it nor what is told."""

    __torch_unserializable__ = True  # so that saving the parameter does not warn of it

    def __init__(self, told: Arrivals, p: Tensor) -> None:
        self._told, self._of = weakref.ref(told), weakref.ref(p)

    def __call__(self, _: Tensor) -> None:
        told, p = self._told(), self._of()
        if told is not None and p is not None:
            with torch.no_grad():
                told.arrive(p)
