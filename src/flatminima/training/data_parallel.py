"""One training by several processes: each takes a part of every batch, and all of them take the same step.

A process holds the whole network and optimizer. The gradient is that of the batch's mean loss, summed over processes,
so that the weights are those of one process but for the order of sums, whatever the optimizer and however often it
asks for a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatminima.errors import ModelError
from flatminima.optim.running_statistics import couples_the_batch
from flatminima.training.objective import rows

if TYPE_CHECKING:
    from flatminima.core.distributed import Ranks


def check_together(model: nn.Module, ranks: Ranks) -> None:
    """Refuse a network whose gradient is no sum over parts of the batch.

    Raises:
        ModelError: it has BatchNorm in training mode.
    """
    if couples_the_batch(model):
        raise ModelError(
            f"BatchNorm on {ranks.size} processes would see a part of each batch, another network than on one: train "
            "with one process, or with GroupNorm"
        )


def summed_over_processes(ranks: Ranks, parameters: Sequence[nn.Parameter], numbers: Sequence[float]) -> list[float]:
    """Sum gradients over processes, in place, and numbers; a gradient that no process has stays None."""
    import torch.distributed as dist

    present = [0.0 if p.grad is None else 1.0 for p in parameters]
    device = parameters[0].device
    small = torch.tensor([*numbers, *present], dtype=torch.float64, device=device)
    dist.all_reduce(small, group=ranks.group)
    sums: list[float] = small.tolist()
    kinds: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for p, held in zip(parameters, sums[len(numbers) :], strict=True):
        if held:
            kinds.setdefault((p.device, p.dtype), []).append(p)
    for some in kinds.values():
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in some])
        dist.all_reduce(flat, group=ranks.group)
        for p, piece in zip(some, flat.split([p.numel() for p in some]), strict=True):
            grad = piece.view(p.shape)
            if p.grad is None:
                p.grad = torch.empty_like(p).copy_(grad)
            else:
                p.grad.copy_(grad)
    return sums[: len(numbers)]


def part(ranks: Ranks | None, x: Any, y: Tensor) -> tuple[Any, Tensor]:
    """This process's samples of a batch."""
    if ranks is None:
        return x, y
    start, stop = ranks.span(len(y))
    return rows(x, slice(start, stop)), y[start:stop]
