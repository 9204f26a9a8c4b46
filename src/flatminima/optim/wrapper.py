"""`Wrapper`: an optimizer around a base optimizer that takes the gradient at displaced weights.

It shares the base's groups and state, so schedulers, scalers and checkpoints meet a plain `torch.optim.Optimizer`. The
displacement lives in `with opt.perturbed():` and not in `step`, because a GradScaler that found an infinity never
calls `step`: weights are back, bit for bit, when the block is left, also on an exception.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from flatminima.core.ambient import SWITCHES_LOCK
from flatminima.core.moved_weights import mark_moved, put_back
from flatminima.errors import UsageError
from flatminima.optim.accelerate import adopt
from flatminima.optim.arrivals import Snapshot
from flatminima.optim.base_steps import needs_closure, watch_steps
from flatminima.optim.displacement import Displacement, Gradients, Shared
from flatminima.optim.schedule import Clock
from flatminima.optim.shards import check_dense, check_sharding, check_values, gradient
from flatminima.optim.state import hide, merge, own_copies, show, split_state
from flatminima.optim.trainer_closures import only_measures, trainer_epoch


class Wrapper(Optimizer, ABC):
    """Shared by PertOPT and SAM.

    Args:
        base: any optimizer whose `step()` needs no closure. Its groups may carry the keys of `own`.
        own: what a group gets where it does not say otherwise.
        numbers: keys of ours in every group of a checkpoint, with what they are at the start.
        model: that owns the parameters, or None.
    """

    name: str  # of ours in a checkpoint of an earlier version
    model: Shared[nn.Module | None] = Shared()

    def __init__(
        self, base: Optimizer, own: dict[str, Any], *, numbers: dict[str, Any], model: nn.Module | None
    ) -> None:
        if not isinstance(base, Optimizer) or isinstance(base, Wrapper):
            raise UsageError(f"got base={type(base).__name__}; give a plain torch optimizer, such as torch.optim.AdamW")
        if needs_closure(base):
            raise UsageError(
                f"got base={type(base).__name__}, whose step() evaluates a closure by itself; use a first-order method"
            )
        self.base = base
        self._own = own
        self._fresh_numbers = numbers
        self._at = Displacement()
        self.model = model
        # not Optimizer.__init__, which would make groups of its own
        Optimizer.__setstate__(self, {"defaults": {**base.defaults, **own}})
        self._complete()
        watch_steps(base, self._at)

    def __setstate__(self, state: dict[str, Any]) -> None:
        Optimizer.__setstate__(self, state)
        watch_steps(self.base, self._at)  # copies have no hooks

    # The base's, always: a base that replaces its lists (load_state_dict does) cannot part from its wrapper.
    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.base.state

    def __getattr__(self, name: str) -> Any:
        """What only the base has: `train()` and `eval()` of Schedule-Free, `consolidate_state_dict()`, ..."""
        if name.startswith("_") or "base" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        found = getattr(self.base, name)
        return partial(self._switch, name) if name in ("train", "eval") else found

    @property
    def _is_accelerate_prepared(self) -> bool:
        """Asked by accelerate, which would hide `perturbed()` behind a wrapper of its own."""
        return adopt(self)

    @_is_accelerate_prepared.setter
    def _is_accelerate_prepared(self, value: bool) -> None:
        """accelerate notes what it has prepared."""

    @abstractmethod
    def _displace(self) -> None:
        """Move the weights; append (weights, what they were) to `_at.moved` before each is moved."""

    @abstractmethod
    def _check(self, group: dict[str, Any]) -> None:
        """Refuse hyper-parameters that have no meaning."""

    @abstractmethod
    def _evaluate(self, closure: Callable[[], Any], before: Gradients) -> Any:
        """Run the closure where the gradient is wanted; returns its loss. `before`: the gradients ahead of it."""

    @abstractmethod
    def _micro_batch(self, closure: Callable[[], Any]) -> Any:
        """Run the closure of a micro-batch that does not end a step."""

    def _by_epoch(self) -> str:
        """What the user gave that goes by the epoch; "" where the default does, or nothing."""
        return ""

    @abstractmethod
    def _needs_block(self) -> bool:
        """Whether the coming step wants a perturbed pass."""

    @abstractmethod
    def _before_base(self) -> None:
        """Called by `step` before the base's."""

    @abstractmethod
    def _after_base(self) -> None:
        """Called by `step` after the base's."""

    @abstractmethod
    def _blank(self) -> None:
        """State of every parameter as a checkpoint has it, for one to be read into."""

    @abstractmethod
    def _tensors(self) -> dict[Tensor, dict[str, Tensor]]:
        """What a checkpoint must hold of each parameter."""

    @abstractmethod
    def _numbers(self) -> dict[str, Any]:
        """What else a checkpoint must hold: int and float."""

    @abstractmethod
    def _load(self, tensors: dict[Tensor, dict[str, Tensor]], numbers: dict[str, Any]) -> None:
        """The opposite of the two."""

    @abstractmethod
    def perturbed(self) -> AbstractContextManager[None]:
        """Forward and backward in this block; afterwards the weights are as they were, bit for bit.

        The backward pass belongs inside: after the block the weights that it needs are gone. torch says so, or, where
        activation checkpointing computes them again at others, `step()` does.
        """

    @contextmanager
    def _block(self) -> Iterator[None]:
        self._outside("perturbed()")
        self._complete()
        check_values(self._parameters())
        at = self._at
        marks = mark_moved(self._parameters())  # waits for a measurement, refuses where another thread has them
        try:
            at.marks, at.inside = marks, True
            with torch.no_grad():
                self._displace()
            at.guards.enter(self._parameters(), self.model)
            at.guards.reshard()
            torch.clear_autocast_cache()  # it holds casts of the old weights
            at.entered = True
            at.blocks += 1
            at.forget_late()
            before = Snapshot(self._parameters())
            yield
            if before.unchanged():
                at.expect_late(self._parameters())
        finally:
            at.restore()

    def restore(self) -> None:
        """Put the weights back. Leaving the block does; by hand only after an interrupt in the middle of that."""
        self._at.restore()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The base's step from the restored weights, with the gradient from the perturbed ones.

        Args:
            closure: clears the gradients, computes the loss, calls backward and returns the loss. Without it, or if
                it does nothing, the gradients must come from a `with perturbed():` block. One that clears the
                gradients and calls no backward skips the step.

        Raises:
            UsageError: inside the block; without a block since the last step; sparse gradients; a closure that adds
                to gradients from outside of a block; a backward pass after the block of its forward pass.
        """
        self._outside("step()")
        check_values(self._parameters())
        at = self._at
        if at.idle or only_measures(closure):
            return None if closure is None else closure()
        if at.complete is not None and not at.complete():
            return None if closure is None else self._of_micro_batch(closure)
        clock: Clock | None = vars(self).get("clock")  # of those that go by epochs
        if clock is not None and not clock.told:
            given = self._by_epoch() if clock.step == 0 else ""
            clock.warn(type(self).__name__, given, trainer_epoch(closure) or 1)
        loss = None
        if closure is not None and at.scaled_by:
            raise UsageError(
                f"got a closure, whose gradients {at.scaled_by} would leave scaled: run forward and backward in "
                "`with opt.optimizer.perturbed():` and call step() without one"
            )
        if closure is not None:
            marks = mark_moved(self._parameters())  # its passes at w too: no measurement moves the weights meanwhile
            try:
                loss, has_gradient = self._run(closure)
            finally:
                put_back(marks)
            if not has_gradient:
                at.end()
                return loss
        if not at.entered and self._needs_block():
            if closure is None and self._is_initial():
                with torch.no_grad():
                    self.base.step()
                self._blank()
                at.blank = True
                show(self.base, self._tensors())
                return None
            raise UsageError(
                f"step() of {type(self).__name__} without a perturbed pass is the plain {type(self.base).__name__}'s: "
                "run forward and backward in `with opt.perturbed():`, or give step() a closure"
            )
        if at.is_late():
            at.end()
            raise UsageError(
                f"the backward pass came after the perturbed block of {type(self).__name__}, at other weights than the "
                "forward pass: call backward() in `with opt.perturbed():` too"
            )
        for p in self._parameters():
            check_dense(p.grad)
        with SWITCHES_LOCK, torch.no_grad():  # a measurement in another thread would put the weights back
            if at.blank:
                hide(self.base)
            at.blank = False
            self._before_base()
            at.entered, entered = False, at.entered
            try:
                self.base.step()
            finally:
                at.entered = entered
            self._after_base()
        at.end()
        return loss

    def backward(self, closure: Callable[[], Any]) -> Any:
        """Run the closure where the gradient is wanted, without a step; returns its loss."""
        self._outside("backward()")
        return self._run(closure)[0]

    def zero_grad(self, set_to_none: bool = True) -> None:
        at = self._at
        if at.complete is not None and (at.micro_batches or not at.complete()):
            return  # in the middle of a step of several micro-batches
        at.cleared = True
        at.let_go()
        at.expect_late([])
        with SWITCHES_LOCK:
            self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._outside("add_param_group()")
        self.base.add_param_group(param_group)
        self._complete()

    def state_dict(self) -> dict[str, Any]:
        """The base's, with what is ours of each parameter beside its state, and our numbers in every group."""
        self._outside("state_dict()")
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        numbers = self._numbers()
        for group in self.param_groups:
            group.update(numbers)
        packed = merge(self.base.state_dict(), self.param_groups, self._tensors())
        for after in self._optimizer_state_dict_post_hooks.values():
            packed = after(self, packed) or packed
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, or a checkpoint of the base alone, from which ours starts afresh."""
        self._outside("load_state_dict()")
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        bare, own, numbers = split_state(state_dict, self.name, self._fresh_numbers)
        keys = {**self._own, **self._fresh_numbers}
        kept = [{key: g[key] for key in keys if key in g} for g in self.param_groups]
        self._at.blank, self._at.mode = False, None
        self.base.load_state_dict(bare)
        own_copies(self.base, bare)
        for group, values in zip(self.param_groups, kept, strict=True):
            for key, value in values.items():
                group.setdefault(key, value)
        numbering = dict(zip(_flat(bare["param_groups"]), _flat(self.param_groups), strict=True))
        self._load({numbering[i]: held for i, held in own.items()}, numbers)
        self._at.end()
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        self._outside("a copy or pickle")
        # like torch, without hooks; and without the `step` that a scheduler has put on the instance
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_optimizer_") and k != "step"}

    def _of_micro_batch(self, closure: Callable[[], Any]) -> Any:
        loss = self._micro_batch(closure)
        self._at.micro_batches.append(closure)
        self._at.micro_losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        return loss

    def _run(self, closure: Callable[[], Any]) -> tuple[Any, bool]:
        """(the closure's loss, whether there is a gradient to step with)."""
        at = self._at
        entered, at.cleared = at.entered, False
        watch = not entered and not at.clears
        before = Gradients(self._parameters(), watch=watch, cleared=lambda: at.cleared)
        try:
            loss = self._evaluate(closure, before)
        finally:
            before.close()
        if before.absent():
            return loss, False
        if not entered and before.untouched():
            at.entered = False
        return loss, True

    def _refuse_added(self, before: Gradients) -> None:
        """After a closure at the start of a step, of which no micro-batch was perturbed."""
        at = self._at
        at.clears = at.cleared or before.replaced() or (at.clears and not before.unclear())
        if not at.cleared and not at.micro_batches and before.added_to():
            raise UsageError(
                f"the closure of {type(self).__name__} added to gradients of passes outside of a perturbed block: "
                "run every micro-batch of a step in the block, or let the closure clear the gradients"
            )

    def _switch(self, name: str, *arguments: Any) -> Any:
        """train() or eval() of a base such as Schedule-Free, which moves the weights unless it is in that mode."""
        mode = (name, *arguments)
        if self._at.inside and mode == self._at.mode:  # loops that call it before every pass
            return None
        self._outside(f"{name}()")
        self._at.mode = mode
        return getattr(self.base, name)(*arguments)

    def _is_initial(self) -> bool:
        """A step of learning rate 0 along zeros, by which torch.distributed.checkpoint makes a base's state."""
        with torch.no_grad():
            return (
                not self._tensors()
                and all(group.get("lr", 0.0) is not None for group in self.param_groups)  # Adafactor chooses its rate
                and all(float(group.get("lr", 0.0)) == 0 for group in self.param_groups)
                and all(p.grad is None or not bool(gradient(p).any()) for p in self._parameters())
            )

    def _complete(self) -> None:
        """Groups made behind our back get our defaults; new parameters and values are checked."""
        for group in self.param_groups:
            for key, value in self._own.items():
                group.setdefault(key, value)
            for key, value in self._fresh_numbers.items():
                group.setdefault(key, value)
            self._check(group)
        parameters = self._parameters()
        ids = tuple(map(id, parameters))
        if ids != self._at.checked:
            for p in parameters:
                if p.is_complex():  # integers have no gradient: a quantised layer is left alone
                    raise UsageError(f"got a parameter of dtype {p.dtype}; perturbations need real floating point")
                check_sharding(p)
            self._at.checked = ids
        elif dist.is_available() and dist.is_initialized():
            for p in parameters:
                check_sharding(p)  # FSDP1 flattens the very parameters that it is given

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _outside(self, what: str) -> None:
        if self._at.inside:
            raise UsageError(f"{what} while the weights are perturbed: leave the `with opt.perturbed():` block first")


def _flat(groups: list[dict[str, Any]]) -> list[Any]:
    return [p for group in groups for p in group["params"]]
