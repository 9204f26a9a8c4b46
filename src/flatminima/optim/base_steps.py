"""The steps of a base optimizer: which cannot be taken for it, and which are not to be taken past what wraps it."""

from __future__ import annotations

import inspect
import weakref
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from flatminima.errors import UsageError
from flatminima.optim.displacement import Displacement

_HOOKS: weakref.WeakKeyDictionary[Optimizer, RemovableHandle] = weakref.WeakKeyDictionary()


def needs_closure(base: Optimizer) -> bool:
    """Whether step() cannot be called without an argument."""
    found = list(inspect.signature(type(base).step).parameters.values())[1:]
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in found)


def watch_steps(base: Optimizer, at: Displacement) -> None:
    """Refuse the base's step() in place of ours, after a block; a base without torch's hooks cannot be watched."""
    known = weakref.ref(at)

    def refuse(*_: Any) -> None:
        at = known()
        if at is not None and at.entered:
            at.end()
            raise UsageError(
                "got a step() of the base optimizer after a perturbed pass, of which PertOPT and SAM would learn "
                "nothing: call step() of the optimizer around it, also in scaler.step()"
            )

    earlier = _HOOKS.pop(base, None)  # of a wrapper that nobody uses any more
    if earlier is not None:
        earlier.remove()
    if hasattr(base, "_optimizer_step_pre_hooks"):
        _HOOKS[base] = base.register_step_pre_hook(refuse)
