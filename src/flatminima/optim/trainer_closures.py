"""Closures of Lightning's Trainer, and what they say where its callback is not there to say it.

The Trainer hands an optimizer a partial, whose arguments hold the module and the closure that runs the training step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

_PACKAGES = ("lightning", "pytorch_lightning")


def only_measures(closure: Any) -> bool:
    """Whether it makes no backward pass: StochasticWeightAveraging measures running statistics anew."""
    return any(
        type(found).__module__.split(".")[0] in _PACKAGES and getattr(found, "_backward_fn", closure) is None
        for found in _inside(closure)
    )


def trainer_epoch(closure: Any) -> int | None:
    """The Trainer's epoch, from 1; None: the closure is not Lightning's."""
    for package in ("lightning.pytorch", "pytorch_lightning"):
        kind = getattr(sys.modules.get(package), "LightningModule", None)
        for found in _inside(closure):
            if kind is not None and isinstance(found, kind):
                return int(found.current_epoch) + 1
    return None


def _inside(closure: Any) -> Iterator[Any]:
    """It, and the arguments of the partials in it."""
    yield closure
    if isinstance(closure, partial):
        for argument in (*closure.args, *closure.keywords.values()):
            yield from _inside(argument)
