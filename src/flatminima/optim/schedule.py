"""An optimizer's two clocks: steps t from 0, epochs from 1. PertOPT's noise falls like 1 / ln(1 + epoch)."""

from __future__ import annotations

import math

from flatminima.errors import UsageError


def log_anneal(epoch: float) -> float:
    """1 / ln(1 + epoch): 1.44 in the first epoch, which amplifies, 0.91 in the second."""
    return 1.0 / math.log1p(epoch)


class Clock:
    """step: optimizer steps taken. epoch: of the coming step, counted by steps or set by the user."""

    def __init__(self, steps_per_epoch: int | None) -> None:
        if steps_per_epoch is not None and not (isinstance(steps_per_epoch, int) and steps_per_epoch >= 1):
            raise UsageError(f"got steps_per_epoch={steps_per_epoch!r}; give len(loader), or None to set opt.epoch")
        self.steps_per_epoch = steps_per_epoch
        self.step = 0
        self._epoch = 1.0

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
        self._epoch = value

    @property
    def by_hand(self) -> float:
        """The epoch that was set, which steps_per_epoch overrules."""
        return self._epoch

    def load(self, step: int, epoch: float) -> None:
        """Both, from a checkpoint."""
        self.step, self._epoch = step, epoch
