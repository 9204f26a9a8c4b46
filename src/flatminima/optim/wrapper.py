"""`Wrapper`: an optimizer around a base optimizer that looks at the gradient elsewhere than at the weights.

It shares the base's groups and state, so schedulers, scalers and checkpoints meet a plain `torch.optim.Optimizer`. The
displacement lives in `with opt.perturbed():` and not in `step`, because a GradScaler that found an infinity never
calls `step`: weights are back, bit for bit, when the block is left, also on an exception.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatminima.errors import UsageError
from flatminima.optim import displaced
from flatminima.optim.state import keep_dtypes, merge, split


class Wrapper(Optimizer, ABC):
    """Shared by PertOPT and SAM.

    Args:
        base: any optimizer whose `step()` needs no closure. Its groups may carry the keys of `own`.
        own: what a group gets where it does not say otherwise.
    """

    name: str  # key of what is ours in a state_dict

    def __init__(self, base: Optimizer, own: dict[str, Any]) -> None:
        if not isinstance(base, Optimizer) or isinstance(base, Wrapper):
            raise UsageError(f"got base={type(base).__name__}; give a plain torch optimizer, such as torch.optim.AdamW")
        if isinstance(base, torch.optim.LBFGS):
            raise UsageError("got base=LBFGS, which evaluates its closure many times a step; use a first-order method")
        self.base = base
        self._own = own
        self._moved: list[tuple[Tensor, Tensor]] = []  # (weights, what they were)
        self._inside = False
        self._entered = False  # since the last step
        self._checked = 0  # parameters
        # not Optimizer.__init__, which would make groups of its own
        Optimizer.__setstate__(self, {"defaults": {**base.defaults, **own}})
        self._complete()

    # The base's, always: a base that replaces its lists (load_state_dict does) cannot part from its wrapper.
    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.base.state

    @abstractmethod
    def _displace(self) -> None:
        """Move the weights; append (weights, what they were) to `_moved` for each tensor moved."""

    @abstractmethod
    def _check(self, group: dict[str, Any]) -> None:
        """Refuse hyper-parameters that have no meaning."""

    @abstractmethod
    def backward(self, closure: Callable[[], Any]) -> Any:
        """Run the closure where the gradient is wanted; returns its loss."""

    def _before_base(self) -> None:
        """Called by `step` before the base's."""

    def _after_base(self) -> None:
        """Called by `step` after the base's."""

    def _tensors(self) -> dict[Tensor, dict[str, Tensor]]:
        """What a checkpoint must hold of each parameter."""
        return {}

    def _numbers(self) -> dict[str, Any]:
        """What else a checkpoint must hold."""
        return {}

    def _load(self, tensors: dict[Tensor, dict[str, Tensor]], numbers: dict[str, Any] | None) -> None:
        """The opposite of the two; `numbers` is None for a checkpoint of the base alone."""

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Forward and backward in this block; afterwards the weights are as they were, bit for bit.

        The backward pass belongs inside: after the block the weights that it needs are gone, and torch says so.
        """
        self._outside("perturbed()")
        self._complete()
        displaced.enter(self, (p for group in self.param_groups for p in group["params"]))
        self._inside = True
        try:
            with torch.no_grad():
                self._displace()
            torch.clear_autocast_cache()  # it holds casts of the old weights
            self._entered = True
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Put the weights back. Leaving the block does; by hand only after an interrupt in the middle of that."""
        if self._moved:
            weights, originals = zip(*self._moved, strict=True)
            with torch.no_grad():
                torch._foreach_copy_(list(weights), list(originals))
            torch.clear_autocast_cache()
        self._moved = []
        self._inside = False
        displaced.leave(self)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The base's step from the restored weights, with the gradient from the perturbed ones.

        Args:
            closure: clears the gradients, computes the loss, calls backward and returns the loss. Without it, the
                gradients must come from a `with perturbed():` block.

        Raises:
            UsageError: inside the block; without a block since the last step; sparse gradients.
        """
        self._outside("step()")
        loss = None
        if closure is not None:
            loss = self.backward(closure)
        elif not self._entered:
            raise UsageError(
                f"step() of {type(self).__name__} without a perturbed pass is the plain {type(self.base).__name__}'s: "
                "run forward and backward in `with opt.perturbed():`, or give step() a closure"
            )
        for p in self._parameters():
            if p.grad is not None and p.grad.layout != torch.strided:
                raise UsageError(
                    f"got a sparse gradient of a parameter of shape {tuple(p.shape)}; "
                    "make the embedding with sparse=False"
                )
        with torch.no_grad():
            self._before_base()
            self.base.step()
            self._after_base()
        self._entered = False
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._outside("add_param_group()")
        self.base.add_param_group(param_group)
        self._complete()

    def state_dict(self) -> dict[str, Any]:
        """The base's, with what is ours of each parameter beside its state, and our numbers under our name."""
        self._outside("state_dict()")
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        packed = merge(self.base.state_dict(), self.param_groups, self._tensors())
        packed[self.name] = self._numbers()
        for after in self._optimizer_state_dict_post_hooks.values():
            packed = after(self, packed) or packed
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, or a checkpoint of the base alone, from which ours starts afresh."""
        self._outside("load_state_dict()")
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        bare, own = split(state_dict, self.name)
        kept = [{key: g[key] for key in self._own if key in g} for g in self.param_groups]
        self.base.load_state_dict(bare)
        keep_dtypes(self.base, bare)
        for group, values in zip(self.param_groups, kept, strict=True):
            for key, value in values.items():
                group.setdefault(key, value)
        numbering = dict(zip(_flat(bare["param_groups"]), _flat(self.param_groups), strict=True))
        self._load({numbering[i]: held for i, held in own.items()}, state_dict.get(self.name))
        self._entered = False
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        self._outside("a copy or pickle")
        # like torch, without hooks; and without the `step` that a scheduler has put on the instance
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_optimizer_") and k != "step"}

    def _complete(self) -> None:
        """Groups made behind our back get our defaults; new parameters and values are checked."""
        for group in self.param_groups:
            for key, value in self._own.items():
                group.setdefault(key, value)
            self._check(group)
        parameters = list(self._parameters())
        if len(parameters) != self._checked:
            for p in parameters:
                if not p.is_floating_point():
                    raise UsageError(f"got a parameter of dtype {p.dtype}; perturbations need real floating point")
                if hasattr(p, "device_mesh"):
                    raise UsageError("got a sharded parameter (DTensor); use DistributedDataParallel instead of FSDP")
            self._checked = len(parameters)

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _outside(self, what: str) -> None:
        if self._inside:
            raise UsageError(f"{what} while the weights are perturbed: leave the `with opt.perturbed():` block first")


def _flat(groups: list[dict[str, Any]]) -> list[Any]:
    return [p for group in groups for p in group["params"]]
