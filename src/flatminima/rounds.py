"""`measure()` and `plan()`: many measures, few sweeps.

Rounds: each measure is tried on what is known; the statistics that it finds missing are collected and computed
together; then it is tried again. Leaving this file out would change the cost of a table, never a number in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flatminima import catalog
from flatminima.errors import Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.minimum import Minimum
from flatminima.statistic import Cost, Fold, Statistic, Statistics
from flatminima.sweep import rides
from flatminima.table import MeasureTable

MeasureFunction = Callable[[Statistics], Estimate]
_ROUNDS = 8  # measures need one or two; more means that one asks for something new forever


class _Missing(Exception):
    def __init__(self, keys: Sequence[Statistic[Any]]) -> None:
        self.keys = keys


@dataclass
class _Known:
    """Statistics that refuse to compute: what is absent is reported instead."""

    minimum: Minimum

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        missing = [k for k in keys if k not in self.minimum]
        if missing:
            raise _Missing(missing)
        return self.minimum[key]


@dataclass(frozen=True)
class Plan:
    """What measuring would cost, before any of it is done.

    Attributes:
        sweeps: the statistics that share each pass over the data, by name.
        others: statistics with loops of their own.
        cost: passes over the data and bytes kept (more can follow from what is found).
    """

    sweeps: tuple[tuple[str, ...], ...]
    others: tuple[str, ...]
    cost: Cost

    def __str__(self) -> str:
        lines = [f"sweep {i + 1}: {', '.join(names)}" for i, names in enumerate(self.sweeps)]
        lines += [f"on its own: {name}" for name in self.others]
        cost = self.cost
        lines.append(
            f"passes over the data: {cost.forward:.2f} forward, {cost.backward:.2f} backward; "
            f"{cost.memory / 2**20:.1f} MiB kept beside the model"
        )
        return "\n".join(lines)


def functions(measures: Iterable[str | MeasureFunction] | None) -> dict[str, MeasureFunction]:
    """Names or functions to functions by name; None means every measure of the catalogue.

    Raises:
        UnknownName: suggesting the nearest.
    """
    if isinstance(measures, str):
        measures = [measures]
    out: dict[str, MeasureFunction] = {}
    for entry in catalog.MEASURES if measures is None else measures:
        if callable(entry):
            name = getattr(entry, "__name__", repr(entry))
            keywords = getattr(entry, "keywords", None)  # functools.partial
            if keywords is not None:
                name = f"{entry.func.__name__}({', '.join(f'{k}={v}' for k, v in keywords.items())})"  # type: ignore[attr-defined]
            out[name] = entry
        else:
            out[entry] = catalog.measure(entry).load()
    if not out:
        raise UsageError("got no measures; name at least one, or pass None for all")
    return out


def measure(minimum: Minimum, measures: Iterable[str | MeasureFunction] | None = None) -> MeasureTable:
    """Measure a minimum.

    Args:
        minimum: the network, its data and its loss.
        measures: names from `flatminima list`, or functions (``functools.partial`` gives them options); None: all.

    Returns:
        A table with one Estimate a measure; a measure without a meaning here is undefined, with the reason.

    Raises:
        UnknownName: a name not in the catalogue.
        DataError, ModelError, NumericalError: bad data or weights, named.
    """
    todo = functions(measures)
    before, started = replace(minimum.passes), time.perf_counter()
    results: dict[str, Estimate] = {}
    for _ in range(_ROUNDS):
        missing = _try(minimum, todo, results)
        if not missing:
            break
        minimum.compute(missing)
    else:
        raise UsageError(f"measures still ask for new statistics after {_ROUNDS} rounds: {sorted(todo)}")
    n = len(minimum.samples)
    return MeasureTable(
        {name: results[name] for name in functions(measures)},
        samples=n,
        parameters=len(minimum.parameters),
        forward_passes=(minimum.passes.forward - before.forward) / n,
        backward_passes=(minimum.passes.backward - before.backward) / n,
        seconds=time.perf_counter() - started,
        loss=minimum.loss.name,
        data=minimum.samples.fingerprint,
        notes=notes(minimum),
    )


def plan(minimum: Minimum, measures: Iterable[str | MeasureFunction] | None = None) -> Plan:
    """What `measure` would do first: sweeps, passes, memory. Computes nothing."""
    missing = _try(minimum, functions(measures), {})
    folds = [key for key in missing if isinstance(key, Fold)]
    others = [key for key in missing if not isinstance(key, Fold)]
    cost = Cost()
    for ride in rides(folds):
        parts = [fold.cost(minimum) for fold in ride.folds]
        forward = max(part.forward for part in parts)
        backward = _shared_backward(ride.folds, minimum)
        cost += Cost(forward, backward, sum(part.memory for part in parts))
    for key in others:
        cost += key.cost(minimum)
    sweeps = tuple(tuple(sorted(repr(f) for f in ride.folds)) for ride in rides(folds))
    return Plan(sweeps, tuple(repr(key) for key in others), cost)


def _shared_backward(folds: Iterable[Fold[Any, Any]], minimum: Minimum) -> float:
    """Folds that read the same gradients share the backward pass; others add up."""
    by_reads: dict[Any, float] = {}
    from flatminima.statistic import Reads

    columns = Reads.COLUMNS | Reads.INPUTS
    for fold in folds:
        kind: Any = fold
        if fold.reads & columns:
            kind = columns
        elif fold.reads & Reads.LAYERS:
            kind = Reads.LAYERS
        by_reads[kind] = max(by_reads.get(kind, 0.0), fold.cost(minimum).backward)
    return sum(by_reads.values())


def _try(minimum: Minimum, todo: dict[str, MeasureFunction], results: dict[str, Estimate]) -> list[Statistic[Any]]:
    """Run each measure that can; collect what the others miss."""
    missing: dict[Statistic[Any], None] = {}
    for name, function in list(todo.items()):
        try:
            results[name] = function(_Known(minimum))
            del todo[name]
        except _Missing as request:
            missing.update(dict.fromkeys(request.keys))
        except Undefined as reason:  # a user's own function without our decorator
            results[name] = Estimate.missing(reason.reason)
            del todo[name]
    return list(missing)


def notes(minimum: Minimum) -> tuple[str, ...]:
    """What a reader must know of how the network was measured."""
    out = ["measured in eval mode: BatchNorm with running statistics, no dropout"]
    if minimum.parameters.frozen:
        out.append(f"{minimum.parameters.frozen} frozen parameters left out")
    dtypes = {str(p.dtype).removeprefix("torch.") for p in minimum.parameters.tensors}
    out.append(f"weights in {', '.join(sorted(dtypes))}; sums in float64")
    if "_audit" in vars(minimum):
        if not minimum.follows_layers:
            out.append("per-sample gradients by one backward pass a sample (no layer rule fits this network)")
        elif any(u.rule is None for u in minimum.units):
            names = sorted({type(u.module).__name__ for u in minimum.units if u.rule is None})
            out.append(f"vmapped gradients for {', '.join(names)}")
    return tuple(out)
