"""An optimizer's two clocks: steps t from 0, epochs from 1. PertOPT's noise falls like 1 / ln(1 + epoch)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

from flatminima.errors import UsageError
from flatminima.optim.rounding import PerturbationWarning

_LOOKED_AT = (1, 2, 3, 5, 10, 20, 50, 100, 200)  # epochs


def log_anneal(epoch: float) -> float:
    """1 / ln(1 + epoch): 1.44 in the first epoch, which amplifies, 0.91 in the second."""
    return 1.0 / math.log1p(epoch)


def depends_on_epoch(factor: Callable[[float], float]) -> bool:
    """Whether a schedule is not one number for all epochs, as far as a look tells."""
    try:
        return len({float(factor(float(epoch))) for epoch in _LOOKED_AT}) > 1
    except Exception:  # the user's function, which may end at some epoch
        return True


class Clock:
    """step: optimizer steps taken. epoch: of the coming step, counted by steps or set by the user, `told`."""

    def __init__(self, steps_per_epoch: int | None) -> None:
        if steps_per_epoch is not None and not (isinstance(steps_per_epoch, int) and steps_per_epoch >= 1):
            raise UsageError(f"got steps_per_epoch={steps_per_epoch!r}; give len(loader), or None to set opt.epoch")
        self.steps_per_epoch = steps_per_epoch
        self.step = 0
        self._epoch = 1.0
        self.told = steps_per_epoch is not None

    @property
    def epoch(self) -> float:
        if self.steps_per_epoch is None:
            return self._epoch
        return 1 + self.step // self.steps_per_epoch

    @epoch.setter
    def epoch(self, value: float) -> None:
        if self.steps_per_epoch is not None:
            raise UsageError("the epoch is counted by steps_per_epoch; leave that out to set it yourself")
        if not (math.isfinite(value) and value >= 1):
            raise UsageError(f"got epoch={value!r}; epochs count from 1")
        self._epoch, self.told = value, True

    @property
    def by_hand(self) -> float:
        """The epoch that was set, which steps_per_epoch overrules."""
        return self._epoch

    def load(self, step: int, epoch: float) -> None:
        """Both, from a checkpoint."""
        self.step, self._epoch = step, epoch
        self.told = self.told or epoch != 1

    def warn(self, whose: str, given: str, epoch: int) -> None:
        """Once, where the epoch matters and stays 1 because nobody says it.

        Args:
            given: what the user gave that goes by it, or "". epoch: what a framework counts.
        """
        if given or epoch > 1:
            self.told = True
            is_so = f"the Trainer's is {epoch}" if epoch > 1 else f"{given} goes by it"
            warnings.warn(
                f"{whose} takes every epoch for the first, and {is_so}: give steps_per_epoch=, or set opt.epoch at the "
                "start of each epoch (in Lightning the callback FlatMinima() does)",
                PerturbationWarning,
                stacklevel=4,
            )
