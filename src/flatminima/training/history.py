"""Record of a training, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flatminima.training.evaluate import Evaluation, MeanLoss, evaluation


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Args:
        loss, error: see `History`; no error where the loss calls nothing wrong.
        lr: the learning rate of its last step.
        seconds: that it took.
        held_out: evaluations after it, by name.
    """

    loss: float
    error: float | None
    lr: float
    seconds: float
    held_out: Mapping[str, Evaluation | MeanLoss] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Epoch:
        """The inverse of `dataclasses.asdict`."""
        held_out = {name: evaluation(**found) for name, found in values.get("held_out", {}).items()}
        return cls(**{**values, "held_out": held_out})


@dataclass(frozen=True)
class History:
    """Record of a training.

    Args:
        epochs: one entry an epoch. Its loss and error are means over the batches *while* training (augmented,
            train mode); with `target_loss` or `backward` they are those of the whole set after the epoch, in
            eval mode.
        final: the whole training set after the last step, in eval mode, without augmentation; with averaging, of
            the averaged weights; with `keep_best`, of the best.
        stopped_because: "epochs", "target_loss" or "validation".
        steps: optimizer steps taken.
        best: the epoch with the lowest validation loss, from 1; None without validation.
    """

    epochs: tuple[Epoch, ...]
    final: Evaluation | MeanLoss
    stopped_because: str
    steps: int
    best: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries and lists that JSON can hold."""
        values = asdict(self)
        values["epochs"] = list(values["epochs"])
        return values
