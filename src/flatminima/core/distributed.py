"""Several processes that share one measurement: each takes a part of the samples, sums are added up.

Every rank runs the same program on the same weights and data and gets the same numbers. An error on one rank is raised
on all of them, so that none waits for a sum that never comes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from flatminima.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Ranks:
    """This process among those of a `torch.distributed` group.

    Args:
        group: of processes; None: all of them.

    Raises:
        UsageError: `torch.distributed.init_process_group` was not called (`torchrun` alone does not).

    Examples:
        >>> Ranks()
        Traceback (most recent call last):
        flatminima.errors.UsageError: no process group: call torch.distributed.init_process_group("gloo") first
    """

    def __init__(self, group: Any = None) -> None:
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            raise UsageError('no process group: call torch.distributed.init_process_group("gloo") first')
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def span(self, total: int, multiple: int = 1) -> tuple[int, int]:
        """This rank's part of `total` positions: a run of whole groups of `multiple`.

        Returns:
            start, stop; of all ranks together every position once.
        """
        groups = -(-total // multiple)
        edges = [min(groups * r // self.size * multiple, total) for r in (self.rank, self.rank + 1)]
        return edges[0], edges[1]

    def together(self, work: Callable[[], T]) -> list[T]:
        """Results of `work` on each rank, in their order.

        Raises:
            the first rank's error, on every rank.
        """
        import torch.distributed as dist

        found, error = None, None
        try:
            found = work()
        except Exception as raised:  # whatever it is, the other ranks must know of it
            error = raised
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, (found, _sendable(error)), self.group)
        for rank, (_, other) in enumerate(every):
            if other is not None:
                raise error if rank == self.rank and error is not None else other
        return [value for value, _ in every]

    def total(self, work: Callable[[], Tensor]) -> Tensor:
        """Sum over ranks of the tensor that `work` returns; the same bits on all of them.

        Raises:
            the first rank's error, on every rank.
        """
        import torch.distributed as dist

        mine: list[Tensor] = []
        self.together(lambda: mine.append(work()))
        dist.all_reduce(mine[0], group=self.group)
        return mine[0]

    def agree(self, what: str, value: object) -> None:
        """Refuse to go on where ranks differ in what must be equal.

        Raises:
            UsageError: naming it.
        """
        every = self.together(lambda: value)
        if any(other != every[0] for other in every):
            raise UsageError(f"the ranks have different {what}: every rank needs the same weights, data and options")


def _sendable(error: Exception | None) -> Exception | None:
    """The error, or one with its words where it does not survive pickling."""
    try:
        restored = pickle.loads(pickle.dumps(error))
    except Exception:
        restored = None
    return error if type(restored) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")
