"""Loss and error of a classifier over tensors, in eval mode, leaving the model as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatminima.errors import DataError, NumericalError

if TYPE_CHECKING:
    from flatminima.core.distributed import Ranks


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats, share of samples misclassified in [0, 1], and the number of samples."""

    loss: float
    error: float
    n: int


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, in its own mode afterwards (a frozen BatchNorm stays frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def evaluate(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    batch_size: int = 512,
    *,
    ranks: Ranks | None = None,
    each_batch: Callable[[], None] | None = None,
) -> Evaluation:
    """Mean cross-entropy and error over all samples; the last batch may be smaller, samples weigh alike.

    Args:
        model: maps (batch, ...) to logits (batch, classes), on the device of the inputs.
        inputs: shape (n, ...), floating. targets: shape (n,), int64.
        batch_size: samples a forward pass; changes the result by rounding only.
        ranks: processes that each take a part of the samples; all get the result.
        each_batch: called before each forward pass.

    Raises:
        DataError: no samples, or lengths that differ. NumericalError: the loss is not finite.

    Examples:
        >>> evaluate(nn.Identity(), torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.tensor([1, 0])).n
        2
    """
    check_samples(inputs, targets)
    begin, end = (0, len(inputs)) if ranks is None else ranks.span(len(inputs))
    sums = torch.zeros(2, dtype=torch.float64, device="cpu")  # of losses, of errors
    with evaluating(model), torch.no_grad():
        for start in range(begin, end, batch_size):
            if each_batch is not None:
                each_batch()
            x, y = (t[start : min(start + batch_size, end)] for t in (inputs, targets))
            logits = model(x)
            sums[0] += cross_entropy(logits, y, reduction="none").double().sum().cpu()
            sums[1] += int((logits.argmax(dim=1) != y).sum())
    if ranks is not None:
        sums = ranks.total(lambda: sums)
    loss, wrong = float(sums[0]) / len(inputs), int(sums[1])
    if not math.isfinite(loss):
        raise NumericalError(f"the mean loss over {len(inputs)} samples is {loss}: check weights and inputs")
    return Evaluation(loss, wrong / len(inputs), len(inputs))


def check_samples(inputs: Tensor, targets: Tensor) -> None:
    """Raise DataError unless inputs are floating and targets are as many class numbers."""
    if len(inputs) == 0:
        raise DataError("no samples in data: inputs has length 0")
    if not inputs.is_floating_point():
        raise DataError(f"inputs are {inputs.dtype}: scale them to floats first (flatminima.data.normalise)")
    if targets.shape != (len(inputs),) or targets.dtype != torch.int64:
        raise DataError(
            f"{len(inputs)} inputs need int64 targets of shape ({len(inputs)},); "
            f"got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    if int(targets.min()) < 0:
        row = int((targets < 0).nonzero()[0])
        raise DataError(f"sample {row} has the label {int(targets[row])}: labels count from 0")
