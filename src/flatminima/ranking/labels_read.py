"""Classes where targets are labels: as a loss says, or read off one logit with 0 and 1, one-hot rows, a callable's
class indices.

What a callable takes for the larger answer is asked of it: the answer is read as the class at which its loss is
smaller, and is read as none where this makes the losses larger on the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatminima.core.losses import Loss
from flatminima.core.losses.cross_entropy import CrossEntropy
from flatminima.core.losses.elementwise import BinaryCrossEntropy
from flatminima.core.losses.user import UserLoss
from flatminima.core.minimum import Minimum
from flatminima.core.samples import Samples, TensorSamples
from flatminima.errors import DataError

_BINARY = ((0.0, 1.0), (-1.0, 1.0))  # what the two classes of one number are written as


@dataclass
class Reader:
    """Classes of outputs and of targets.

    Attributes:
        loss: of the network.
        form: "classes" of a loss of labels; "index" of another with class indices; "hot" rows; "binary" numbers.
        classes: how many.
        example: a target (1, ...) of training.
        pair: what the two classes of "binary" are written as.
        of_answers, of_targets: summed losses at the classes that were read, and at the given ones.
    """

    loss: Loss
    form: str
    classes: int
    example: Tensor
    pair: tuple[float, float] = (0.0, 1.0)
    of_answers: float = field(default=0.0, init=False)
    of_targets: float = field(default=0.0, init=False)

    @property
    def agrees(self) -> bool:
        """Whether the losses are smaller at the classes that were read: else the outputs mean something else."""
        return self.of_answers <= self.of_targets

    def read(self, output: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Class numbers (batch,), and the probability of each where the outputs are logits."""
        if self.form == "binary":
            return self._of_two(output, targets)
        best = output.argmax(1)
        if isinstance(self.loss, UserLoss) and targets is not None:
            self.of_targets += float(self.loss(output, targets).double().sum())
            self.of_answers += float(self.loss(output, self._written(best, targets)).double().sum())
        if not isinstance(self.loss, CrossEntropy):
            return best, None
        return best, output.softmax(1).double().max(1).values

    def labels(self, targets: NDArray[Any]) -> NDArray[np.int64] | None:
        """Class numbers of targets; None where they are no labels of this form."""
        if self.form == "hot":
            return None if not _is_hot(torch.from_numpy(targets)) else targets.argmax(1).astype(np.int64)
        if self.form == "binary":
            flat = targets.reshape(len(targets)).astype(np.float64)
            return (flat == self.pair[1]).astype(np.int64) if bool(np.isin(flat, self.pair).all()) else None
        return targets.astype(np.int64)

    def refuse_others(self, samples: Samples) -> None:
        """Refuse labels that the training data could not hold, whatever a callable makes of them.

        Raises:
            DataError: naming the sample.
        """
        if self.form not in ("index", "binary"):
            return
        targets = every_target(samples).reshape(-1)
        low, high = (0, self.classes - 1) if self.form == "index" else self.pair
        bad = ((targets < low) | (targets > high)).nonzero()
        if len(bad):
            place = int(bad[0, 0])
            raise DataError(
                f"label {float(targets[place]):g} of sample {place} is out of range: those of the training data are "
                f"{low:g} to {high:g}"
            )

    def _written(self, classes: Tensor, like: Tensor) -> Tensor:
        """Class numbers as targets of this form."""
        if self.form == "index":
            return classes.to(like.dtype)
        hot: Tensor = torch.zeros_like(like)
        return hot.scatter_(1, classes.unsqueeze(1), torch.ones_like(like[:, :1]))

    def _of_two(self, output: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
        flat = output.reshape(len(output))
        if isinstance(self.loss, BinaryCrossEntropy):
            z = flat.double()
            return (z > 0).long(), z.abs().sigmoid()
        like = self.example.to(output.device).expand(len(output), *self.example.shape[1:])
        low, high = (self.loss(output, torch.full_like(like, v)) for v in self.pair)
        return (high < low).long(), None


def reader_of(minimum: Minimum) -> Reader | None:
    """Reader of the classes of the network's outputs, by its loss and its training targets; None: there are none."""
    loss = minimum.loss
    example = minimum.batch(torch.arange(1)).targets
    if loss.labels:
        return Reader(loss, "classes", 0, example)
    if isinstance(loss, CrossEntropy) and not loss.soft:
        return None
    with minimum.open(), torch.no_grad():
        shape = tuple(minimum.forward(minimum.batch(torch.arange(1)).inputs).shape[1:])
    targets = every_target(minimum.samples)
    if math.prod(shape) == 1 and targets.numel() == len(targets):
        pair = next((p for p in _BINARY if bool(_among(targets, p).all())), None)
        usual = isinstance(loss, UserLoss) or pair == _BINARY[0]
        return Reader(loss, "binary", 2, example, pair) if pair is not None and usual else None
    if len(shape) != 1 or math.prod(shape) < 2:
        return None
    if targets.shape[1:] == shape and _is_hot(targets):
        return Reader(loss, "hot", shape[0], example)
    indices = isinstance(loss, UserLoss) and targets.dim() == 1 and not targets.is_floating_point()
    if not indices or targets.dtype == torch.bool or not bool(((targets >= 0) & (targets < shape[0])).all()):
        return None
    return Reader(loss, "index", shape[0], example)


def every_target(samples: Samples) -> Tensor:
    """All targets, on the CPU."""
    if isinstance(samples, TensorSamples):
        return samples.targets.detach().cpu()
    return torch.cat([targets.detach().cpu() for _, targets in samples.each_target()])


def _among(targets: Tensor, values: tuple[float, float]) -> Tensor:
    return (targets == values[0]) | (targets == values[1])


def _is_hot(targets: Tensor) -> bool:
    if targets.dim() != 2 or targets.shape[1] < 2:
        return False
    return bool(((targets == 0) | (targets == 1)).all()) and bool((targets.double().sum(1) == 1).all())
