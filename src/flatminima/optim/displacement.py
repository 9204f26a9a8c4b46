"""The place of an optimizer's weights: at themselves, or displaced and to be put back bit for bit.

Frameworks put proxies around an optimizer: Lightning and Fabric make a subclass of it on the fly, whose attributes are
the proxy's own. So all that changes during training lies in one object, which every proxy reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor

from flatminima.core.moved_weights import put_back
from flatminima.optim.guards import Guards

T = TypeVar("T")


class Displacement:
    """State of `with opt.perturbed():` and of the step that it belongs to."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}  # of every `Shared` attribute
        self.moved: list[tuple[Tensor, Tensor]] = []  # (weights, what they were)
        self.marks: list[int] = []  # of `core.moved`
        self.inside = False
        self.entered = False  # since the last step: the gradients are those of a block
        self.blocks = 0  # entered so far
        self.cleared = False  # zero_grad() was called while a closure ran
        self.left: tuple[Tensor, Tensor, int] | None = None  # a parameter, its gradient after a block, its version
        self.guards = Guards()
        self.blank = False  # state is zeros that wait for a checkpoint
        self.checked: tuple[int, ...] = ()  # ids of the parameters that were looked at
        self.complete: Callable[[], bool] | None = None  # whether this micro-batch ends a step, if a framework knows
        self.mode: tuple[Any, ...] | None = None  # what train() or eval() of the base was called with last
        self.scaled_by = ""  # what scales a closure's gradients behind our back
        self.micro_batches: list[Callable[[], Any]] = []  # closures of the step so far
        self.micro_losses: list[Any] = []  # and what they returned

    def end(self) -> None:
        """A step is done, or given up."""
        self.entered, self.left = False, None
        self.micro_batches, self.micro_losses = [], []

    def leave(self, parameters: list[Tensor]) -> None:
        """A block has left gradients: remember the smallest, not to keep memory, to know them by."""
        held = [p for p in parameters if p.grad is not None]
        p = min(held, key=Tensor.numel, default=None)
        self.left = None if p is None or p.grad is None else (p, p.grad, _version(p.grad))

    def holds_a_blocks(self) -> bool:
        """Whether the gradients are still those of the last block, or were added to once."""
        if self.left is None:
            return False
        p, g, version = self.left
        return p.grad is g and _version(g) - version in (0, 1)

    def restore(self) -> None:
        """Put the weights back."""
        if self.moved:
            weights, originals = zip(*self.moved, strict=True)
            with torch.no_grad():
                torch._foreach_copy_(list(weights), list(originals))
            torch.clear_autocast_cache()
            self.guards.reshard()
        self.moved = []
        self.inside = False
        self.guards.leave()
        put_back(self.marks)


class Shared(Generic[T]):
    """An attribute that lies in the optimizer's one `Displacement`, whichever proxy reads or writes it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Shared[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        try:
            return instance._at.values[self.name]
        except KeyError:
            raise AttributeError(self.name) from None

    def __set__(self, instance: Any, value: T) -> None:
        instance._at.values[self.name] = value


class Gradients:
    """Gradients before a closure ran, to tell what it did."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._parameters = parameters
        self._before = [(p.grad, _version(p.grad)) for p in parameters if p.grad is not None]
        # the smallest first: one that is not zero ends the search
        self._any = any(bool(g.any()) for g in sorted((g for g, _ in self._before), key=Tensor.numel))

    def absent(self) -> bool:
        """There is none now."""
        return all(p.grad is None for p in self._parameters)

    def untouched(self) -> bool:
        """They are what they were: the closure did nothing."""
        now = [p.grad for p in self._parameters if p.grad is not None]
        return len(now) == len(self._before) and all(
            a is b and _version(a) == v for a, (b, v) in zip(now, self._before, strict=True)
        )

    def added_to(self) -> bool:
        """The closure added its own to those of an earlier pass, instead of clearing them."""
        return self._any and any(
            p.grad is g and _version(g) == v + 1
            for p, (g, v) in zip((p for p in self._parameters if p.grad is not None), self._before, strict=False)
        )


def _version(g: Tensor) -> int:
    return int(g._version)
