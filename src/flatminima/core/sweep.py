"""The loop over the data: every fold that can share a pass is in the same one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatminima import progress
from flatminima.core.batch import Batch
from flatminima.core.chance import refusing_chance
from flatminima.core.gradient_check import LayersDisagree, out_of_memory
from flatminima.core.layer_gradient import LayerGradient
from flatminima.core.statistic import Fold, Reads
from flatminima.errors import Absent, FlatMinimaError, Undefined

if TYPE_CHECKING:
    from flatminima.core.distributed import Ranks
    from flatminima.core.minimum import Minimum


@dataclass(frozen=True)
class SharedPass:
    """Folds that share one pass: one order of the samples, one batch size."""

    folds: tuple[Fold[Any, Any], ...]
    order_seed: int | None
    multiple: int


def shared_passes(folds: Sequence[Fold[Any, Any]]) -> list[SharedPass]:
    """Group folds into as few passes as their orders and batch multiples allow."""
    groups: list[tuple[int | None, int, list[Fold[Any, Any]]]] = []
    for fold in sorted(folds, key=lambda f: (f.order_seed is None, -f.multiple)):
        for i, (seed, multiple, members) in enumerate(groups):
            if fold.order_seed in (None, seed) and fold.multiple in (1, multiple):
                groups[i] = (seed, multiple, [*members, fold])
                break
        else:
            groups.append((fold.order_seed, fold.multiple, [fold]))
    return [SharedPass(tuple(members), seed, multiple) for seed, multiple, members in groups]


def sweep(
    minimum: Minimum, shared: SharedPass, index: Callable[[int, int], Tensor] | None = None, *, tolerant: bool = False
) -> dict[Fold[Any, Any], Any]:
    """Values of a shared pass's folds; a fold that has none maps to its `Absent`.

    Where the layers' gradients turn out not to be the network's, the sweep begins anew with another way to make them.

    Args:
        minimum: model, data and loss; the caller guards the model.
        shared: from `shared_passes`.
        index: positions start..stop of the order to sample indices (tests split the data with it).
        tolerant: an error of one fold's own is why that fold is absent, whatever its class.
    """
    while True:
        run = SweepRun(minimum, shared, index, tolerant=tolerant)
        minimum.following.begin()
        try:
            if minimum.ranks is None:
                run.go(0, run.total)
            else:
                run.share(minimum.ranks)
        except LayersDisagree as disagreement:
            reason = str(disagreement)
        else:
            return run.values()
        minimum.following.degrade(reason)


class SweepRun:
    """States of a shared pass under way, and what turned out absent."""

    def __init__(
        self,
        minimum: Minimum,
        shared: SharedPass,
        index: Callable[[int, int], Tensor] | None = None,
        *,
        tolerant: bool = False,
    ) -> None:
        self.minimum, self.shared, self.index, self.tolerant = minimum, shared, index, tolerant
        self.order = None if shared.order_seed is None else minimum.samples.order(shared.order_seed)
        self.states: dict[Fold[Any, Any], Any] = {}
        self.results: dict[Fold[Any, Any], Any] = {}
        self.limits: dict[Fold[Any, Any], int] = {}
        for fold in shared.folds:
            self._set(fold, self.own(fold, partial(fold.init, minimum)))
            if fold in self.states:
                limit = self.own(fold, partial(fold.limit, minimum))
                if isinstance(limit, Absent):
                    self._lose(fold, limit)
                else:
                    self.limits[fold] = limit
        self.total = max(self.limits.values(), default=0)

    def own(self, fold: Fold[Any, Any], work: Callable[[], Any]) -> Any:
        """Run a fold's own code; returns its result, or why it is absent."""
        try:
            return work()
        except Undefined as reason:
            return Absent.of(reason)
        except Exception as error:  # of torch, or of a user's fold: this fold's alone
            if isinstance(error, LayersDisagree) or out_of_memory(error) or not self.tolerant:
                raise
            return Absent.of(error)

    def values(self) -> dict[Fold[Any, Any], Any]:
        """Value of every fold, after all batches."""
        done = {fold: self.own(fold, partial(fold.finish, state)) for fold, state in self.states.items()}
        return self.results | done

    def _set(self, fold: Fold[Any, Any], state: Any) -> None:
        if isinstance(state, Absent):
            self._lose(fold, state)
        else:
            self.states[fold] = state

    def go(self, start: int, end: int) -> None:
        """Over the positions from start to end."""
        step = self.shared.multiple * max(1, self.minimum.batch_size // self.shared.multiple)
        cuts = [*range(start, end, step), end]
        with refusing_chance(self.minimum, lambda: [self._indices(a, b) for a, b in itertools.pairwise(cuts)]):
            self._go(start, end, step)

    def _go(self, start: int, end: int, step: int) -> None:
        minimum, multiple = self.minimum, self.shared.multiple
        task = ", ".join(sorted({type(fold).__name__ for fold in self.shared.folds}))
        while start < end and self.states:
            limits = self.limits.values()
            stop = min(start + step, end, *(x for x in limits if x > start and x % multiple == 0))
            stop = max(stop, start + 1)
            batch = Batch(minimum, self._indices(start, stop), start)
            with refusing_chance(minimum, lambda batch=batch: [batch.indices], closely=True):  # type: ignore[misc]
                self.update(batch, [fold for fold in self.states if self.limits[fold] > start])
            start = stop
            progress.report(task, start, self.total)

    def share(self, ranks: Ranks) -> None:
        """This rank's part, then everybody's together."""

        def work() -> tuple[list[Any], list[Any]]:
            self.go(*ranks.span(self.total, self.shared.multiple))
            return [self.states.get(f) for f in self.shared.folds], [self.results.get(f) for f in self.shared.folds]

        parts = ranks.together(work)
        for i, fold in enumerate(self.shared.folds):
            lost = next((results[i] for _, results in parts if results[i] is not None), None)
            if lost is not None:
                self._lose(fold, lost)
            else:
                self.states[fold] = reduce(fold.merge, (states[i] for states, _ in parts))

    def _indices(self, start: int, stop: int) -> Tensor:
        if self.index is not None:
            return self.index(start, stop)
        return torch.arange(start, stop) if self.order is None else self.order[start:stop]

    def _lose(self, fold: Fold[Any, Any], reason: Absent) -> None:
        self.results[fold] = reason
        self.states.pop(fold, None)
        self.limits.pop(fold, None)

    def update(self, batch: Batch, folds: list[Fold[Any, Any]]) -> None:
        """Give the batch to each fold; those that turn out absent leave the pass."""
        reads_of = {fold: fold.reads_at(self.minimum) for fold in folds}
        lost: dict[Fold[Any, Any], Absent] = {}
        raised: list[Exception] = []

        def listener(fold: Fold[Any, Any]) -> Callable[[LayerGradient], None]:
            def receive(layer: LayerGradient) -> None:
                if fold in lost or raised:
                    return
                try:
                    absent = self.own(fold, lambda: fold.receive(self.states[fold], layer, batch))
                except Exception as error:  # within autograd's backward pass, which takes it for its own
                    raised.append(error)
                    return
                if isinstance(absent, Absent):
                    lost[fold] = absent

            return receive

        def listeners(flag: Reads) -> list[Callable[[LayerGradient], None]]:
            return [listener(fold) for fold in folds if reads_of[fold] & flag]

        reads = reduce(or_, reads_of.values(), Reads(0))
        drawn: dict[tuple[int, int], list[Callable[[LayerGradient], None]]] = {}
        for fold in folds:
            if reads_of[fold] & Reads.DRAWN and fold.drawn is not None:
                drawn.setdefault(fold.drawn, []).append(listener(fold))
        read = partial(batch.read, layers=listeners(Reads.LAYERS), columns=listeners(Reads.COLUMNS), drawn=drawn)
        missing = self._read(reads, read)
        if raised:
            raise raised[0]
        for flag, absent in missing.items():
            lost.update({fold: absent for fold in folds if reads_of[fold] & flag or not flag})
        for fold in folds:
            if fold in lost:
                self._lose(fold, lost[fold])
            else:
                self._set(fold, self.own(fold, partial(fold.update, self.states[fold], batch)))

    def _read(self, reads: Reads, read: Callable[[Reads], dict[Reads, Absent]]) -> dict[Reads, Absent]:
        """Prepare what the folds read; what is absent by what is read, under `Reads(0)` all of it."""
        deep = Reads.LAYERS | Reads.COLUMNS | Reads.DRAWN | Reads.INPUTS
        try:
            return read(reads)
        except Undefined as reason:  # of all gradients; whoever reads only outputs goes on
            if not reads & deep:
                return {Reads(0): Absent.of(reason)}
            absent = Absent.of(reason)
        except (FlatMinimaError, LayersDisagree):  # bad data or weights, which no fold can read
            raise
        except Exception as error:
            if out_of_memory(error) or not self.tolerant:
                raise
            return {Reads(0): Absent.of(error)}
        read(reads & ~deep)
        return {deep: absent}
