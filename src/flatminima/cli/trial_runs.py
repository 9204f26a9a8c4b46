"""Seconds of work before it is done: it is tried on a few samples, with few draws, and scaled by its passes.

A statistic's own code is its unit of time. The passes that a trial made are counted, and a statistic says how many it
takes of all the data. What reads no sample is computed as it will be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from flatminima.core.minimum import Minimum
from flatminima.core.statistic import Cost, Fold, Reads, Statistic
from flatminima.errors import Absent, FlatMinimaError, StaleMinimum
from flatminima.statistics.redrawn import Redrawn

_ROWS = (8, 512)  # samples of a trial
_FORWARD = 0.02  # seconds that a forward pass over them may take
_BACKWARD = 2.0  # forward passes that a backward pass is worth
_FEW = {"draws": 2, "probes": 2, "steps": 20}  # of a trial, where a statistic has so many and more
_LOOSE = 0.5  # tolerance of eigenvalues: a product's seconds are wanted, not the eigenvalue

Clock = Callable[[], float]


@dataclass(frozen=True)
class _Trial:
    """Work that was tried: its value, seconds that are spent once, seconds of a run, and that run's weighted passes."""

    value: Any
    once: float
    seconds: float
    made: float


@dataclass(frozen=True)
class Trials:
    """A network on a few of its samples, where work is timed.

    Attributes:
        minimum: as it will be measured.
        few: the same on its first samples in a random order, with passes of its own.
        clock: seconds.
    """

    minimum: Minimum
    few: Minimum
    clock: Clock = time.perf_counter

    @classmethod
    def of(cls, minimum: Minimum, clock: Clock = time.perf_counter) -> Trials:
        """Choose as many samples as a forward pass takes in 20 ms, from 8 to 512.

        Half a batch would do where a sample is dear; a network whose samples are cheap spends its time between them.
        """
        n = min(len(minimum.samples), _ROWS[1])
        order = minimum.samples.order(minimum.seed)
        rows = min(_ROWS[0], n)
        seconds = _forward(minimum, order[:rows], clock)
        rows = max(rows, min(n, int(rows * _FORWARD / max(seconds, 1e-9))))
        few = minimum.replace(data=minimum.samples.take(order[:rows]))
        few.passes = type(few.passes)()
        return cls(minimum, few, clock)

    def forward(self) -> float:
        """Seconds of a forward pass over all the samples."""
        rows = torch.arange(len(self.few.samples))
        return _forward(self.few, rows, self.clock) * len(self.minimum.samples) / len(rows)

    def statistics(self, keys: Iterable[Statistic[Any]]) -> float:
        """Seconds of computing the statistics; folds that read alike are tried together, and share a forward pass."""
        groups: dict[Any, list[Fold[Any, Any]]] = {}
        seconds, forward = 0.0, []
        for key in keys:
            if isinstance(key, Fold) and self.minimum.can_sweep(key):
                groups.setdefault(_alike(key, self.minimum), []).append(key)
            else:
                seconds += self.scaled(reduced(key, len(self.few.samples)).compute, key.cost(self.minimum))
        for folds in groups.values():
            trial = self._tried(_sweep_of([reduced(fold, len(self.few.samples)) for fold in folds]))
            cost = most(fold.cost(self.minimum) for fold in folds)
            if trial is not None and all(isinstance(value, Absent) for value in trial.value.values()):
                cost = Cost(cost.forward)  # seen after a forward pass, before any backward one
            seconds += self._scaled(trial, cost)
            if not folds[0].reads_at(self.minimum) & Reads.GRAPH:
                forward.append(cost.forward)
        again = sum(forward) - max(forward, default=0.0)
        return max(seconds - (again * self.forward() if again else 0.0), 0.0)

    def scaled(self, work: Callable[[Minimum], Any], cost: Cost) -> float:
        """Seconds of work that makes `cost` passes over all the data, from a second run on the few; 0: undefined."""
        return self._scaled(self._tried(work), cost)

    def _scaled(self, trial: _Trial | None, cost: Cost) -> float:
        if trial is None:
            return 0.0
        whole = _weight(cost.forward, cost.backward) * len(self.minimum.samples)
        return trial.once + (trial.seconds * whole / trial.made if trial.made and whole else trial.seconds)

    def _tried(self, work: Callable[[Minimum], Any]) -> _Trial | None:
        """Work done twice on the few; None where it is undefined.

        The first run also pays for imports, and for checks that are made once, which are kept where there were any.
        """
        few, checks = self.few, self.few.passes.checks
        try:
            with few.open():
                started = self.clock()
                work(few)
                first, before = self.clock() - started, replace(few.passes)
                started = self.clock()
                value = work(few)
                second = self.clock() - started
        except StaleMinimum:
            raise
        except (FlatMinimaError, RuntimeError, ValueError, ArithmeticError):
            return None
        now = few.passes
        made = _weight(now.forward - before.forward, now.backward - before.backward)
        return _Trial(value, max(first - second, 0.0) if now.checks > checks else 0.0, second, made)


def _sweep_of(folds: Sequence[Fold[Any, Any]]) -> Callable[[Minimum], Any]:
    """A sweep that gives a value to each of the folds that has one."""
    return lambda few: few.sweep(folds, tolerant=True)


def reduced(key: Any, rows: int) -> Any:
    """A statistic with fewer draws, probes and steps, and with groups as large as those of all its samples.

    Examples:
        >>> from flatminima.statistics import HessianProbes
        >>> small = reduced(HessianProbes(probes=9, samples=1000, groups=50), 100)
        >>> small.probes, small.groups
        (2, 5)
    """
    if isinstance(key, Redrawn):  # the same on other samples, of which a trial may have none
        key = key.statistic
    own = {f.name: getattr(key, f.name) for f in fields(key)}
    few = {name: count for name, count in _FEW.items() if isinstance(own.get(name), int) and own[name] > count}
    if isinstance(own.get("groups"), int) and isinstance(own.get("samples"), int) and own["samples"] > rows:
        few["groups"] = max(1, round(own["groups"] * rows / own["samples"]))
    if "tolerance" in own and "k" in own:
        few["tolerance"] = _LOOSE  # type: ignore[assignment]
    return replace(key, **few) if few else key


def most(costs: Iterable[Cost]) -> Cost:
    """Passes of a sweep that serves all of them."""
    forward, backward = 0.0, 0.0
    for cost in costs:
        forward, backward = max(forward, cost.forward), max(backward, cost.backward)
    return Cost(forward, backward)


def _alike(fold: Fold[Any, Any], minimum: Minimum) -> Any:
    """Folds with the same one are tried together: they share their backward passes, and look at as many samples."""
    reads = fold.reads_at(minimum)
    return fold if reads & Reads.GRAPH else (reads & ~Reads.OUTPUTS, fold.limit(minimum), fold.multiple)


def _weight(forward: float, backward: float) -> float:
    return forward + _BACKWARD * backward


def _forward(minimum: Minimum, rows: Any, clock: Clock) -> float:
    """Seconds of a forward pass over the rows, the second one's."""
    with minimum.open(), torch.no_grad():
        batch = minimum.batch(rows)
        for _ in range(2):
            started = clock()
            minimum.loss(minimum.forward(batch.inputs), batch.targets)
            seconds = clock() - started
    return seconds


__all__: Sequence[str] = ["Clock", "Trials", "most", "reduced"]
