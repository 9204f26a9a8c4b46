"""The loop over the data: every fold that can share a pass rides in the same one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatminima import progress
from flatminima.batch import Batch
from flatminima.errors import Undefined
from flatminima.layers import LayerGradient
from flatminima.statistic import Fold, Reads

if TYPE_CHECKING:
    from flatminima.minimum import Minimum


@dataclass(frozen=True)
class Ride:
    """Folds that share one pass: one order of the samples, one batch size."""

    folds: tuple[Fold[Any, Any], ...]
    order_seed: int | None
    multiple: int

    def reads(self) -> Reads:
        out = Reads(0)
        for fold in self.folds:
            out |= fold.reads
        return out


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
    order = None if ride.order_seed is None else minimum.samples.order(ride.order_seed)
    states: dict[Fold[Any, Any], Any] = {}
    results: dict[Fold[Any, Any], Any] = {}
    for fold in ride.folds:
        try:
            states[fold] = fold.init(minimum)
        except Undefined as reason:
            results[fold] = reason
    limits = {fold: fold.limit(minimum) for fold in states}
    total = max(limits.values(), default=0)
    step = ride.multiple * max(1, minimum.batch_size // ride.multiple)
    task = ", ".join(sorted({type(fold).__name__ for fold in ride.folds}))
    start = 0
    while start < total and states:
        stop = min(start + step, total, *(x for x in limits.values() if x > start and x % ride.multiple == 0))
        stop = max(stop, start + 1)
        if index is not None:
            indices = index(start, stop)
        else:
            indices = torch.arange(start, stop) if order is None else order[start:stop]
        batch = Batch(minimum, indices, start)
        active = [fold for fold in states if limits[fold] > start]
        for fold, undefined in _update(batch, active, states).items():
            results[fold] = undefined
            del states[fold], limits[fold]
        start = stop
        progress.report(task, start, total)
    return results | {fold: _finish(fold, state) for fold, state in states.items()}


def _finish(fold: Fold[Any, Any], state: Any) -> Any:
    try:
        return fold.finish(state)
    except Undefined as reason:
        return reason


def _update(
    batch: Batch, folds: list[Fold[Any, Any]], states: dict[Fold[Any, Any], Any]
) -> dict[Fold[Any, Any], Undefined]:
    """Give the batch to each fold; those that turn out undefined are returned with the reason."""
    reads = Reads(0)
    for fold in folds:
        reads |= fold.reads
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
        return [hearer(fold) for fold in folds if fold.reads & flag]

    deep = Reads.LAYERS | Reads.COLUMNS | Reads.INPUTS
    try:
        missing = batch.read(reads, hears(Reads.LAYERS), hears(Reads.COLUMNS))
    except Undefined as reason:  # of all gradients; whoever reads only outputs goes on
        missing = {deep: reason}
        if not any(fold.reads & deep for fold in folds):
            raise
        batch.read(reads & ~deep, [], [])
    for flag, absent in missing.items():
        lost.update({fold: absent for fold in folds if fold.reads & flag})
    folds = [fold for fold in folds if fold not in lost]
    for fold in folds:
        try:
            states[fold] = fold.update(states[fold], batch)
        except Undefined as reason:
            lost[fold] = reason
    return lost
