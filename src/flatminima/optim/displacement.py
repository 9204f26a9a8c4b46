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
from flatminima.optim.arrivals import Arrivals
from flatminima.optim.guards import Guards
from flatminima.optim.shards import is_sharded

T = TypeVar("T")
_WATCHED = 4  # parameters a closure: one whose gradient is not zero tells, and a closure may leave some out


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
        self.clears = False  # the closure before cleared them, so that the next one will
        self.left: Arrivals | None = None  # at the gradients that a block has left
        self.late = Arrivals(())  # gradients after a block without a backward pass
        self.guards = Guards()
        self.blank = False  # state is zeros that wait for a checkpoint
        self.checked: tuple[int, ...] = ()  # ids of the parameters that were looked at
        self.complete: Callable[[], bool] | None = None  # whether this micro-batch ends a step, if a framework knows
        self.mode: tuple[Any, ...] | None = None  # what train() or eval() of the base was called with last
        self.idle = False  # a framework runs forward passes only: no step is one
        self.scaled_by = ""  # what scales a closure's gradients behind our back
        self.micro_batches: list[Callable[[], Any]] = []  # closures of the step so far
        self.micro_losses: list[Any] = []  # and what they returned

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "left": None, "late": Arrivals(())}  # hooks stay with the parameters

    def end(self) -> None:
        """A step is done, or given up."""
        self.entered = False
        self.let_go()
        self.expect_late([])
        self.micro_batches, self.micro_losses = [], []

    def leave(self, parameters: list[Tensor]) -> None:
        """A block has left gradients: watch the smallest, not to keep memory, to know them by."""
        held = sorted((p for p in parameters if p.grad is not None), key=Tensor.numel)
        self.let_go()
        self.left = Arrivals([p for p in held if p.grad is not None and _tells(p.grad)][:1])

    def let_go(self) -> None:
        """The gradients are no longer those of a block."""
        if self.left is not None:
            self.left.close()
        self.left = None

    def holds_a_blocks(self) -> bool:
        """Whether the gradients are still those of the last block, also if they were added to, or clipped."""
        return self.left is not None and self.left.kept()

    def expect_late(self, parameters: list[Tensor]) -> None:
        """A block had no backward pass: watch for one that comes now, at other weights than its forward pass."""
        self.late.close()
        few = sorted((p for p in parameters if p.requires_grad), key=Tensor.numel)[:_WATCHED]
        self.late = Arrivals(few)

    def forget_late(self) -> None:
        """Another block begins; what came late counts as long as it is there."""
        self.late.close()
        if not self.is_late():
            self.late = Arrivals(())

    def is_late(self) -> bool:
        """Whether gradients are there that came after a block."""
        return bool(self.late.seen) and any(p.grad is not None for p, _ in self.late.held)

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
    """Gradients before a closure ran, to tell what it did.

    Args:
        watch: also look at them when the closure's own arrive; else a clipping hides an addition. cleared: whether
            `zero_grad()` of the optimizer was called since.
    """

    def __init__(self, parameters: list[Tensor], *, watch: bool, cleared: Callable[[], bool]) -> None:
        self._parameters = parameters
        self._before = [(p, p.grad, _version(p.grad)) for p in parameters if p.grad is not None]
        held = sorted((p for p, *_ in self._before), key=Tensor.numel)
        # the smallest first: one that is not zero ends the search
        first = next((i for i, p in enumerate(held) if p.grad is not None and bool(p.grad.any())), None)
        self._any = first is not None
        few = held[first : first + _WATCHED] if watch and first is not None else []
        self._arrivals = Arrivals(few, lambda: not cleared())

    def absent(self) -> bool:
        """There is none now."""
        return all(p.grad is None for p in self._parameters)

    def untouched(self) -> bool:
        """They are what they were: the closure did nothing."""
        now = [p.grad for p in self._parameters if p.grad is not None]
        return len(now) == len(self._before) and all(
            a is b and _version(a) == v for a, (_, b, v) in zip(now, self._before, strict=True)
        )

    def added_to(self) -> bool:
        """The closure added its own to those of an earlier pass, instead of clearing them."""
        return self._any and (self._arrivals.added or any(map(self._added, self._before)))

    def replaced(self) -> bool:
        """The closure let go of them all."""
        return all(p.grad is not g for p, g, _ in self._before)

    def unclear(self) -> bool:
        """Whether nobody saw if they were cleared in place, or added to and clipped."""
        return self._any and any(
            p.grad is g and _version(g) - v > 1 and id(p) not in self._arrivals.seen for p, g, v in self._before
        )

    def close(self) -> None:
        """The closure is over."""
        self._arrivals.close()

    def _added(self, known: tuple[Tensor, Tensor, int]) -> bool:
        """Of a parameter that no hook has told of: one write is an addition, unless it leaves zeros."""
        p, g, version = known
        later = _version(g) - version
        told = id(p) in self._arrivals.seen
        return not told and p.grad is g and (later == 1 or (later > 1 and is_sharded(p))) and bool(g.any())


def _tells(g: Tensor) -> bool:
    """Whether it is not zero, where asking does not wait for an accelerator."""
    return g.device.type != "cpu" or bool(g.any())


def _version(g: Tensor) -> int:
    return int(g._version)
