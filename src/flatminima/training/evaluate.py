"""Loss and error of a classifier over tensors, in eval mode, leaving the model as it was."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatminima.errors import DataError, NumericalError


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


def evaluate(model: nn.Module, inputs: Tensor, targets: Tensor, batch_size: int = 512) -> Evaluation:
    """Mean cross-entropy and error over all samples; the last batch may be smaller, samples weigh alike.

    Args:
        model: maps (batch, ...) to logits (batch, classes), on the device of the inputs.
        inputs: shape (n, ...), floating. targets: shape (n,), int64.
        batch_size: samples a forward pass; changes the result by rounding only.

    Raises:
        DataError: no samples, or lengths that differ. NumericalError: the loss is not finite.

    Examples:
        >>> evaluate(nn.Identity(), torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.tensor([1, 0])).n
        2
    """
    check_samples(inputs, targets)
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    wrong = 0
    with evaluating(model), torch.no_grad():
        for start in range(0, len(inputs), batch_size):
            x, y = inputs[start : start + batch_size], targets[start : start + batch_size]
            logits = model(x)
            total += cross_entropy(logits, y, reduction="none").double().sum().cpu()
            wrong += int((logits.argmax(dim=1) != y).sum())
    loss = float(total) / len(inputs)
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
