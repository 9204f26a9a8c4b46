"""Training options as one value: equal configurations on equal data give equal weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flatminima.catalog.choices import PRECISIONS, SCHEDULES
from flatminima.errors import UnknownName, UsageError
from flatminima.training import schedule

_OPTIMIZERS = ("adam", "sgd")


@dataclass(frozen=True)
class TrainConfig:
    """Training options; equal configurations on equal data give equal weights. The defaults are N17's.

    Args:
        optimizer: "sgd" or "adam". lr: base learning rate, positive.
        momentum: of SGD, in [0, 1). nesterov: SGD only. weight_decay: factor of the L2 term, 0 or more.
        batch_size: at least 1. epochs: the most, at least 1.
        target_loss: stop once the cross-entropy of the whole training set, in eval mode after an epoch, is
            below this (costs a pass an epoch); None trains all epochs.
        look_every: look at `target_loss` after every so many steps too, at least 1 (costs a pass each): an epoch of
            small batches goes far past the target. None: after epochs only.
        seed: of batches, augmentation and dropout, 0 or more. The initial weights are the model's own.
        schedule: "constant", "step" (times `gamma` at each of `milestones`), "cosine" (to 0 over `epochs`) or "plateau"
            (times `gamma` when the loss of an epoch has not fallen for more than `patience` epochs: the mean over its
            steps, as they saw it, with or without a target; with validation samples, theirs).
        warmup: epochs in which the rate rises by the step from nothing to the schedule's, 0 or more.
        keep_best: end with the weights of the epoch with the lowest validation loss.
        stop_after: stop once so many epochs have not lowered the validation loss, at least 1; None never.
        average_from: stochastic weight averaging: the final weights are the mean of those at the end of this epoch,
            counted from 1, and of all later ones; None does not average.
        average_lr: learning rate of the epochs averaged over, constant; None keeps the schedule.
        channels_last: images and weights in that memory format while training, 1.3 to 1.6 times as fast on a CPU;
            another order of sums, so other roundings.
        precision: "float32", or "bfloat16": the forward pass in autocast, weights and their updates in float32.
    """

    optimizer: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    batch_size: int = 64
    epochs: int = 20
    target_loss: float | None = None
    look_every: int | None = None
    seed: int = 0
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    patience: int = 10
    average_from: int | None = None
    average_lr: float | None = None
    warmup: int = 0
    keep_best: bool = False
    stop_after: int | None = None
    channels_last: bool = False
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.optimizer not in _OPTIMIZERS:
            raise UnknownName("optimizer", self.optimizer, _OPTIMIZERS)
        if self.schedule not in SCHEDULES:
            raise UnknownName("schedule", self.schedule, SCHEDULES)
        if self.precision not in PRECISIONS:
            raise UnknownName("precision", self.precision, PRECISIONS)
        object.__setattr__(self, "milestones", tuple(self.milestones))  # JSON gives a list
        for name, value, fits, range_ in (
            ("lr", self.lr, 0 < self.lr < math.inf, "positive"),
            ("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "at least 1"),
            ("epochs", self.epochs, self.epochs >= 1, "at least 1"),
            ("target_loss", self.target_loss, self.target_loss is None or self.target_loss > 0, "positive"),
            ("look_every", self.look_every, _fits(self.look_every, 1, math.inf), "at least 1"),
            ("patience", self.patience, self.patience >= 0, "0 or more"),
            ("seed", self.seed, self.seed >= 0, "0 or more"),
            ("average_from", self.average_from, _fits(self.average_from, 1, self.epochs), f"in 1 to {self.epochs}"),
            ("warmup", self.warmup, 0 <= self.warmup < math.inf, "0 or more"),
            ("stop_after", self.stop_after, _fits(self.stop_after, 1, math.inf), "at least 1"),
            ("average_lr", self.average_lr, _fits(self.average_lr, 0, math.inf), "0 or more, and finite"),
        ):
            if not fits:
                raise UsageError(f"{name}={value}: must be {range_}")
        if self.keep_best and self.average_from is not None:
            raise UsageError("keep_best and average_from each decide the final weights; give one of them")

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        return self.lr * self.factor(epoch)

    def ramp(self, epoch: int, step: int, steps: int) -> float:
        """The warm-up's factor in (0, 1] at a step of an epoch of so many steps; epoch and step count from 0."""
        return min(1.0, (epoch * steps + step + 1) / (self.warmup * steps)) if epoch < self.warmup else 1.0

    def factor(self, epoch: int) -> float:
        """The schedule's factor of the base rate in an epoch, counted from 0, but for a plateau's drops."""
        if self.average_from is not None and self.average_lr is not None and epoch + 1 >= self.average_from:
            return self.average_lr / self.lr
        if self.schedule == "step":
            return schedule.step(epoch, self.milestones, self.gamma)
        if self.schedule == "cosine":
            return schedule.cosine(epoch, self.epochs)
        return schedule.constant(epoch)


def _fits(value: float | None, least: float, most: float) -> bool:
    return value is None or (math.isfinite(value) and least <= value <= most)
