"""Loss and error of a network over tensors, in eval mode, leaving the model as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatminima.core.guard import evaluating
from flatminima.errors import NumericalError
from flatminima.training.objective import Objective, count, logits_of, rows

if TYPE_CHECKING:
    from flatminima.core.distributed import Ranks


@dataclass(frozen=True)
class Evaluation:
    """Mean loss (in nats, of a cross-entropy), share of samples that are wrong in [0, 1], and the number of samples."""

    loss: float
    error: float
    n: int


@dataclass(frozen=True)
class MeanLoss:
    """Mean of a loss by which no output is wrong, such as a squared error."""

    loss: float
    error: None
    n: int


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
    found = assess(model, inputs, targets, batch_size, ranks=ranks, each_batch=each_batch)
    assert isinstance(found, Evaluation)
    return found


def assess(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    batch_size: int = 512,
    *,
    objective: Objective | None = None,
    ranks: Ranks | None = None,
    each_batch: Callable[[], None] | None = None,
) -> Evaluation | MeanLoss:
    """The same with any loss.

    Args:
        inputs: a tensor, or a tuple or dictionary of them, with the samples along the first axis.
        objective: what the loss is; None for cross-entropy.
    """
    objective = objective or Objective()
    objective.check_samples(inputs, targets)
    n = count(inputs)
    begin, end = (0, n) if ranks is None else ranks.span(n)
    sums = torch.zeros(2, dtype=torch.float64, device="cpu")  # of losses, of errors
    with evaluating(model), torch.no_grad():
        for start in range(begin, end, batch_size):
            if each_batch is not None:
                each_batch()
            part = slice(start, min(start + batch_size, end))
            outputs, y = logits_of(model, rows(inputs, part)), targets[part]
            sums[0] += objective.each(outputs, y).double().sum().cpu()
            sums[1] += objective.wrong(outputs, y) or 0.0
    if ranks is not None:
        sums = ranks.total(lambda: sums)
    loss, wrong = (float(total) / n for total in sums)
    if not math.isfinite(loss):
        raise NumericalError(f"the mean loss over {n} samples is {loss}: check weights and inputs")
    return evaluation(loss, wrong if objective.calls_wrong else None, n)


def evaluation(loss: float, error: float | None, n: int) -> Evaluation | MeanLoss:
    """Evaluation of either kind."""
    return MeanLoss(loss, None, n) if error is None else Evaluation(loss, error, n)
