"""The objective of training: the mean over samples of a loss; which outputs are wrong; how a network is called.

The loss of a sample is what the measures see, so that what is trained is what is measured: the loss of a text is the
mean over its tokens that count, and texts weigh alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatminima.core.guard import evaluating
from flatminima.core.losses import Loss, PerSample
from flatminima.core.losses.cross_entropy import CrossEntropy
from flatminima.core.losses.elementwise import BinaryCrossEntropy
from flatminima.core.output import logits
from flatminima.core.samples import call
from flatminima.errors import DataError, ModelError
from flatminima.optim.sub_batches import batch_tensors, mapped

LABELS = "cross_entropy"


class Objective:
    """The mean of a loss.

    Args:
        loss: a name, one of torch's own losses, or a callable that returns a loss a sample, shape (batch,).

    Examples:
        >>> outputs = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
        >>> Objective().wrong(outputs, torch.tensor([0, 1]))
        1.0
        >>> float(Objective("mse").mean(outputs, torch.zeros(2, 2)))
        2.0
    """

    def __init__(self, loss: str | PerSample | Loss = LABELS) -> None:
        self.loss = Loss.of(loss)
        self.name = self.loss.name
        self.of_labels = isinstance(loss, str) and loss == LABELS

    @property
    def calls_wrong(self) -> bool:
        """Whether an output can be wrong, and not only far."""
        return isinstance(self.loss, CrossEntropy | BinaryCrossEntropy)

    def mean(self, outputs: Any, targets: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""
        outputs = logits(outputs)
        if self.of_labels:  # torch's own: its roundings are what earlier versions trained with
            return cross_entropy(outputs, targets)
        return self.loss(outputs, targets).mean()

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses, (batch,)."""
        return cross_entropy(outputs, targets, reduction="none") if self.of_labels else self.loss(outputs, targets)

    @torch.no_grad()
    def wrong(self, outputs: Tensor, targets: Tensor) -> float | None:
        """Samples that are wrong; of several labels or tokens a sample, their shares; None where none can be."""
        if isinstance(self.loss, CrossEntropy):
            return _wrong_classes(self.loss, outputs, targets)
        if isinstance(self.loss, BinaryCrossEntropy):
            missed = (outputs > 0) != (targets > 0.5)
            return float(missed.reshape(len(missed), -1).double().mean(1).sum())
        return None

    def check_samples(self, inputs: Any, targets: Tensor) -> None:
        """Refuse samples that no network could be trained on with this loss.

        Raises:
            DataError: saying what was seen.
        """
        n = count(inputs)
        if n == 0:
            raise DataError("no samples in data: inputs has length 0")
        if not self.of_labels:
            if len(targets) != n:
                raise DataError(f"got {n} inputs and {len(targets)} targets; one target a sample is needed")
            return
        integers = [t.dtype for t in batch_tensors(inputs) if not t.is_floating_point()]
        if isinstance(inputs, Tensor) and integers:
            raise DataError(f"inputs are {integers[0]}: scale them to floats first (flatminima.data.normalise)")
        if targets.shape != (n,) or targets.dtype != torch.int64:
            raise DataError(
                f"{n} inputs need int64 targets of shape ({n},); got {targets.dtype} of shape {tuple(targets.shape)}"
            )
        if int(targets.min()) < 0:
            row = int((targets < 0).nonzero()[0])
            raise DataError(f"sample {row} has the label {int(targets[row])}: labels count from 0")

    def check_targets(self, targets: Tensor, outputs: Tensor) -> None:
        """Refuse targets, of all samples, that do not fit the outputs of one, before a kernel stumbles over them."""
        if self.of_labels and outputs.dim() == 2:
            if int(targets.max()) >= outputs.shape[1]:
                raise DataError(f"a label is {int(targets.max())} but the model has {outputs.shape[1]} outputs")
            return
        self.loss.check_targets(targets, outputs, torch.arange(len(targets)))


class Called(nn.Module):
    """A network as a function of one argument, which returns its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Tensor:
        return logits_of(self.model, inputs)


def logits_of(model: nn.Module, inputs: Any) -> Tensor:
    """The network's logits; several inputs are a tuple or, by name, a dictionary, or all its one argument."""
    return logits(call(model, inputs))


def output_of_one(model: nn.Module, inputs: Any) -> Tensor:
    """The logits of the first sample, in eval mode; the network and the random numbers stay as they were.

    Raises:
        ModelError: the network does not take such inputs.
    """
    one = rows(inputs, slice(0, 1))
    devices = [t.device for t in batch_tensors(one) if t.is_cuda]
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
        try:
            return logits_of(model, one)
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            shapes = " and ".join(str(tuple(t.shape[1:])) for t in batch_tensors(one))
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"the network does not take inputs of shape {shapes} a sample: {reason}") from None


def count(inputs: Any) -> int:
    """Samples in a tensor, a tuple or a dictionary of them."""
    return len(batch_tensors(inputs)[0])


def rows(inputs: Any, index: Tensor | slice) -> Any:
    """Some of the samples."""
    take: Callable[[Tensor], Tensor] = lambda t: t[index]  # noqa: E731
    return mapped(take, inputs)


def _wrong_classes(loss: CrossEntropy, outputs: Tensor, targets: Tensor) -> float:
    guess = (outputs if loss.classes_last else outputs.movedim(1, -1)).argmax(-1)
    if targets.is_floating_point():
        targets = targets.argmax(1)
    if loss.shifted:
        guess, targets = guess[:, :-1], targets[:, 1:]
    counted = (targets != loss.ignored).reshape(len(targets), -1)
    missed = (guess != targets).reshape(len(targets), -1) & counted
    return float((missed.sum(1).double() / counted.sum(1).clamp_min(1)).sum())
