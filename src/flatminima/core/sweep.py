"""The loop over the data: every fold that can share a pass rides in the same one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatminima import progress
from flatminima.core.batch import Batch
from flatminima.core.layers import LayerGradient
from flatminima.core.statistic import Fold, Reads
from flatminima.errors import Undefined

if TYPE_CHECKING:
    from flatminima.core.distributed import Ranks
    from flatminima.core.minimum import Minimum


@dataclass(frozen=True)
class Ride:
    """Folds that share one pass: one order of the samples, one batch size."""

    folds: tuple[Fold[Any, Any], ...]
    order_seed: int | None
    multiple: int


def rides(folds: Sequence[Fold[Any, Any]]) -> list[Ride]:
    """Group folds into as few passes as their orders and batch multiples allow."""
    groups: list[tuple[int | None, int, list[Fold[Any, Any]]]] = []
    for fold in sorted(folds, key=lambda f: (f.order_seed is None, -f.multiple)):
        for i, (seed, multiple, members) in enumerate(groups):
            if fold.order_seed in (None, seed) and fold.multiple in (1, multiple):
                groups[i] = (seed, multiple, [*members, fold])
                break
        else:
            groups.append((fold.order_seed, fold.multiple, [fold]))
    return [Ride(tuple(members), seed, multiple) for seed, multiple, members in groups]


def sweep(minimum: Minimum, ride: Ride, index: Callable[[int, int], Tensor] | None = None) -> dict[Fold[Any, Any], Any]:
    """Values of the ride's folds; a fold that is undefined maps to its `Undefined`.

    Args:
        minimum: model, data and loss; the caller guards the model.
        ride: from `rides`.
        index: positions start..stop of the order to sample indices (tests split the data with it).
    """
    run = _Run(minimum, ride, index)
    if minimum.ranks is None:
        run.go(0, run.total)
    else:
        run.share(minimum.ranks)
    return run.results | {fold: _finish(fold, state) for fold, state in run.states.items()}


class _Run:
    """A ride's states while it goes, and what turned out undefined."""

    def __init__(self, minimum: Minimum, ride: Ride, index: Callable[[int, int], Tensor] | None) -> None:
        self.minimum, self.ride, self.index = minimum, ride, index
        self.order = None if ride.order_seed is None else minimum.samples.order(ride.order_seed)
        self.states: dict[Fold[Any, Any], Any] = {}
        self.results: dict[Fold[Any, Any], Any] = {}
        for fold in ride.folds:
            try:
                self.states[fold] = fold.init(minimum)
            except Undefined as reason:
                self.results[fold] = reason
        self.limits = {fold: fold.limit(minimum) for fold in self.states}
        self.total = max(self.limits.values(), default=0)

    def go(self, start: int, end: int) -> None:
        """Over the positions from start to end."""
        minimum, multiple = self.minimum, self.ride.multiple
        step = multiple * max(1, minimum.batch_size // multiple)
        task = ", ".join(sorted({type(fold).__name__ for fold in self.ride.folds}))
        while start < end and self.states:
            limits = self.limits.values()
            stop = min(start + step, end, *(x for x in limits if x > start and x % multiple == 0))
            stop = max(stop, start + 1)
            batch = Batch(minimum, self._indices(start, stop), start)
            active = [fold for fold in self.states if self.limits[fold] > start]
            for fold, undefined in _update(batch, active, self.states).items():
                self._lose(fold, undefined)
            start = stop
            progress.report(task, start, self.total)

    def share(self, ranks: Ranks) -> None:
        """This rank's part, then everybody's together."""

        def work() -> tuple[list[Any], list[Any]]:
            self.go(*ranks.span(self.total, self.ride.multiple))
            return [self.states.get(f) for f in self.ride.folds], [self.results.get(f) for f in self.ride.folds]

        parts = ranks.together(work)
        for i, fold in enumerate(self.ride.folds):
            lost = next((results[i] for _, results in parts if results[i] is not None), None)
            if lost is not None:
                self._lose(fold, lost)
            else:
                self.states[fold] = reduce(fold.merge, (states[i] for states, _ in parts))

    def _indices(self, start: int, stop: int) -> Tensor:
        if self.index is not None:
            return self.index(start, stop)
        return torch.arange(start, stop) if self.order is None else self.order[start:stop]

    def _lose(self, fold: Fold[Any, Any], reason: Undefined) -> None:
        self.results[fold] = reason
        self.states.pop(fold, None)
        self.limits.pop(fold, None)


def _finish(fold: Fold[Any, Any], state: Any) -> Any:
    try:
        return fold.finish(state)
    except Undefined as reason:
        return reason


def _update(
    batch: Batch, folds: list[Fold[Any, Any]], states: dict[Fold[Any, Any], Any]
) -> dict[Fold[Any, Any], Undefined]:
    """Give the batch to each fold; those that turn out undefined are returned with the reason."""
    reads_of = {fold: fold.reads_at(batch.minimum) for fold in folds}
    reads = reduce(or_, reads_of.values(), Reads(0))
    lost: dict[Fold[Any, Any], Undefined] = {}

    def hearer(fold: Fold[Any, Any]) -> Callable[[LayerGradient], None]:
        def hear(layer: LayerGradient) -> None:
            if fold not in lost:
                try:
                    fold.hear(states[fold], layer, batch)
                except Undefined as reason:
                    lost[fold] = reason

        return hear

    def hears(flag: Reads) -> list[Callable[[LayerGradient], None]]:
        return [hearer(fold) for fold in folds if reads_of[fold] & flag]

    deep = Reads.LAYERS | Reads.COLUMNS | Reads.INPUTS
    try:
        missing = batch.read(reads, hears(Reads.LAYERS), hears(Reads.COLUMNS))
    except Undefined as reason:  # of all gradients; whoever reads only outputs goes on
        missing = {deep: reason}
        if not reads & deep:
            raise
        batch.read(reads & ~deep, [], [])
    for flag, absent in missing.items():
        lost.update({fold: absent for fold in folds if reads_of[fold] & flag})
    folds = [fold for fold in folds if fold not in lost]
    for fold in folds:
        try:
            states[fold] = fold.update(states[fold], batch)
        except Undefined as reason:
            lost[fold] = reason
    return lost
