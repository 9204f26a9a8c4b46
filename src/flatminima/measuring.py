"""`measure()` and `plan()`: many measures, few sweeps.

Rounds: each measure is tried on what is known; the statistics that it finds missing are collected and computed
together; then it is tried again. Leaving this file out would change the cost of a table, never a number in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial, update_wrapper
from itertools import count
from textwrap import fill
from typing import Any

import torch

from flatminima import budgets, catalog
from flatminima.catalog.rows import BetterDirection
from flatminima.core.ambient import neutral
from flatminima.core.minimum import Minimum
from flatminima.core.statistic import Cost, Fold, Reads, Statistic, Statistics
from flatminima.core.sweep import shared_passes
from flatminima.display import html
from flatminima.errors import Absent, DataError, ModelError, NumericalError, StaleMinimum, UsageError
from flatminima.estimate import Estimate
from flatminima.table import MeasureTable

MeasureFunction = Callable[[Statistics], Estimate]
_ROUNDS = 16  # measures need one or two, with `rtol` several; more means that one asks for something new forever


class _Missing(BaseException):  # a request, and no error that a measure may catch
    def __init__(self, keys: Sequence[Statistic[Any]]) -> None:
        self.keys = keys


@dataclass
class _Known:
    """Statistics that refuse to compute: what is absent is reported instead."""

    minimum: Minimum

    @property
    def seed(self) -> int:
        return self.minimum.seed

    @property
    def output_size(self) -> int:
        return self.minimum.output_size

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        missing = [k for k in keys if k not in self.minimum]
        if missing:
            raise _Missing(missing)
        return self.minimum[key]


@dataclass(frozen=True)
class Plan:
    """The cost of measuring, before any of it is done.

    Attributes:
        sweeps: the statistics that share each pass over the data, by name.
        others: statistics with loops of their own.
        cost: passes over the data and bytes kept (more can follow from what is found).
    """

    sweeps: tuple[tuple[str, ...], ...]
    others: tuple[str, ...]
    cost: Cost

    def _repr_html_(self) -> str:
        return html("plan", self)

    def __str__(self) -> str:
        lines: list[str] = []
        for i, names in enumerate(self.sweeps):
            lines += [f"sweep {i + 1}, one pass over the data:", *(_wrapped(name) for name in names)]
        if self.others:
            lines += ["on their own:", *(_wrapped(name) for name in self.others)]
        cost = self.cost
        lines.append(
            f"passes over the data: {cost.forward:.2f} forward, {cost.backward:.2f} backward; "
            f"{cost.memory / 2**20:.1f} MiB kept beside the model"
        )
        return "\n".join(lines)


def _wrapped(text: str) -> str:
    return fill(text, 80, initial_indent="  ", subsequent_indent="      ")


def positions(minimum: Minimum) -> int:
    """Labelled positions that a sample has at most: tokens of a sequence, pixels of an image; 1 for one label each."""
    with neutral():
        _, targets = minimum.samples.take(torch.arange(1))
    return 1 if targets.is_floating_point() or targets.dtype == torch.bool else max(1, targets.numel())


def functions(
    measures: Iterable[str | MeasureFunction] | None, budget: str = "default", positions: int = 1, population: int = 1
) -> dict[str, MeasureFunction]:
    """Names or functions to functions by name; None means every measure of the budget.

    Where a sample has many labelled `positions`, counts of samples among `population` of them are counts of positions.

    Raises:
        UnknownName: suggesting the nearest, of a measure or budget.
        UsageError: no measures, or something that is neither a name nor a function.
    """
    if isinstance(measures, str) or callable(measures):
        measures = [measures]
    out: dict[str, MeasureFunction] = {}
    for entry in budgets.names(budget) if measures is None else measures:
        if isinstance(entry, str):
            function = _within(budget, catalog.measure_row(entry).name, positions, population)
            out[_free(entry, function, out)] = function
        elif callable(entry):
            out[_free(_name(entry), entry, out)] = entry
        else:
            raise UsageError(f"got {entry!r} among the measures; expected a name or a function")
    if not out:
        raise UsageError("got no measures; name at least one, or pass None for all")
    return out


@cache
def _within(budget: str, name: str, positions: int, population: int) -> MeasureFunction:
    """A measure of the catalogue with the budget's counts; the same object every time, so that twice is once."""
    function: MeasureFunction = catalog.measure_row(name).load()
    options = budgets.for_sequences(budgets.options(budget, name), function, positions, population)
    return update_wrapper(partial(function, **options), function) if options else function


def _name(function: Any) -> str:
    """A function's name; a partial's with its options, another callable's type."""
    if isinstance(function, partial) and "__name__" not in vars(function):
        options = [*map(str, function.args), *(f"{k}={v}" for k, v in function.keywords.items())]
        return f"{_name(function.func)}({', '.join(options)})"
    return str(getattr(function, "__name__", type(function).__name__))


def _free(name: str, function: MeasureFunction, taken: dict[str, MeasureFunction]) -> str:
    """`name`, numbered where another function has it: no row of a table may replace another in silence."""
    numbered = (f"{name} #{i}" if i > 1 else name for i in count(1))
    return next(n for n in numbered if taken.get(n, function) is function)


def measure(
    minimum: Minimum, measures: Iterable[str | MeasureFunction] | None = None, *, budget: str = "default"
) -> MeasureTable:
    """Measure a minimum.

    Args:
        minimum: the network, its data and its loss.
        measures: names from `flatminima list`, or functions (``functools.partial`` gives them options); None: all of
            the budget's.
        budget: ``"fast"``, ``"default"`` or ``"thorough"``: how many draws and samples the named measures take, and
            which ones None means.

    Returns:
        A table with one Estimate a measure; a measure without a meaning here is undefined, with the reason.

    Raises:
        UnknownName: a name not in the catalogue.
        UsageError: no measures, or a function that does not return an Estimate.
        DataError, ModelError, NumericalError: bad data or weights, named.
    """
    chosen = functions(measures, budget, positions(minimum), len(minimum.samples))
    before, started = replace(minimum.passes), time.perf_counter()
    with neutral():
        results = _rounds(minimum, chosen)
    _refuse_if_nothing(results)
    n = len(minimum.samples)
    return MeasureTable(
        {name: results[name] for name in chosen},
        samples=n,
        parameters=len(minimum.parameters),
        forward_passes=(minimum.passes.forward - before.forward) / n,
        backward_passes=(minimum.passes.backward - before.backward) / n,
        seconds=time.perf_counter() - started + minimum.passes.earlier - before.earlier,
        loss=minimum.loss.name,
        data=minimum.samples.fingerprint,
        notes=notes(minimum),
    )


def finished(minimum: Minimum, measures: Iterable[str | MeasureFunction]) -> MeasureTable:
    """The measures whose statistics are known, computing nothing: what work that was stopped has come to.

    Args:
        minimum: the network, with what it knows.
        measures: as for `measure`; those that lack something are named in the notes.
    """
    chosen, results = functions(measures), dict[str, Estimate]()
    _try(minimum, dict(chosen), results)
    lacking = [name for name in chosen if name not in results]
    return MeasureTable(
        {name: results[name] for name in chosen if name in results},
        samples=len(minimum.samples),
        parameters=len(minimum.parameters),
        forward_passes=minimum.passes.forward / len(minimum.samples),
        backward_passes=minimum.passes.backward / len(minimum.samples),
        seconds=0.0,
        loss=minimum.loss.name,
        data=minimum.samples.fingerprint,
        notes=(*notes(minimum), f"stopped before its end; not measured: {', '.join(lacking) or 'nothing'}"),
    )


def _rounds(minimum: Minimum, chosen: dict[str, MeasureFunction]) -> dict[str, Estimate]:
    """The measures' values; begun anew where the way that per-sample gradients are made turns out to be wrong."""
    while True:
        generation = minimum.following.generation
        todo, results = dict(chosen), dict[str, Estimate]()
        for _ in range(_ROUNDS):
            missing = _try(minimum, todo, results)
            if not missing:
                break
            minimum.compute(missing, tolerant=True)
        else:
            raise UsageError(
                f"{', '.join(todo)} still asked for new statistics after {_ROUNDS} rounds; "
                "a measure asks for the same ones every time, all that it can at once"
            )
        minimum.forget_errors()
        if minimum.following.generation == generation:
            return results


def _refuse_if_nothing(results: dict[str, Estimate]) -> None:
    """Where bad data or weights are why every measure failed, that is the answer, and not a table.

    Raises:
        DataError, ModelError, NumericalError, UsageError: the one reason of all.
    """
    reasons = {(estimate.code, estimate.undefined) for estimate in results.values()}
    if len(reasons) != 1:
        return
    ((code, reason),) = reasons
    error = {kind.__name__: kind for kind in (DataError, ModelError, NumericalError, UsageError)}.get(code or "")
    if error is not None and reason is not None:
        raise error(reason.removeprefix(f"{code}: "))


def plan(minimum: Minimum, measures: Iterable[str | MeasureFunction] | None = None, *, budget: str = "default") -> Plan:
    """Plan what `measure` would do first: sweeps, passes, memory. Computes nothing.

    Args:
        minimum: the network, its data and its loss.
        measures, budget: as for `measure`.

    Returns:
        A Plan of what is not yet known; `cost` counts a Hessian product as backward passes.

    Raises:
        UnknownName, UsageError: as `measure`.
    """
    missing = absent(minimum, measures, budget=budget)
    folds = [key for key in missing if isinstance(key, Fold)]
    others = [key for key in missing if not isinstance(key, Fold)]
    cost = Cost()
    passes = shared_passes(folds)
    for shared in passes:
        cost += _cost_together(shared.folds, minimum)
    for key in others:
        cost += key.cost(minimum)
    sweeps = tuple(tuple(sorted(repr(f) for f in shared.folds)) for shared in passes)
    return Plan(sweeps, tuple(repr(key) for key in others), cost)


def absent(
    minimum: Minimum, measures: Iterable[str | MeasureFunction] | None = None, *, budget: str = "default"
) -> list[Statistic[Any]]:
    """The statistics that `measure` would ask for first and that are not known; computes nothing.

    Raises:
        UnknownName, UsageError: as `measure`.
    """
    return _try(minimum, functions(measures, budget, positions(minimum), len(minimum.samples)), {})


def _cost_together(folds: Iterable[Fold[Any, Any]], minimum: Minimum) -> Cost:
    """Folds that read the same gradients share their passes; those with graphs of their own add theirs."""
    forward = 0.0
    backward: dict[Any, float] = {}
    graphs = Cost()
    memory = 0
    columns = Reads.COLUMNS | Reads.INPUTS
    for fold in folds:
        cost = fold.cost(minimum)
        memory += cost.memory
        reads = fold.reads_at(minimum)
        if reads & Reads.GRAPH:
            graphs += cost
            continue
        forward = max(forward, cost.forward)
        kind = columns if reads & columns else reads & (Reads.LAYERS | Reads.DRAWN)
        backward[kind] = max(backward.get(kind, 0.0), cost.backward)
    return Cost(forward + graphs.forward, sum(backward.values()) + graphs.backward, memory)


def _try(minimum: Minimum, todo: dict[str, MeasureFunction], results: dict[str, Estimate]) -> list[Statistic[Any]]:
    """Run each measure that can; collect what the others miss."""
    missing: dict[Statistic[Any], None] = {}
    for name, function in list(todo.items()):
        try:
            result = function(_Known(minimum))
        except _Missing as request:
            missing.update(dict.fromkeys(request.keys))
        except StaleMinimum:
            raise
        except Exception as error:  # this measure's alone: the others have nothing to do with it
            absent = Absent.of(error)
            results[name] = Estimate.missing(absent.reason, code=absent.code, direction=_direction(name))
            del todo[name]
        else:
            results[name] = _estimate(name, result)
            del todo[name]
    return list(missing)


def _direction(name: str) -> BetterDirection:
    """Which way is better, as the catalogue says; "lower" for a function that it does not know."""
    entry = catalog.MEASURES.get(name)
    return entry.direction if entry is not None else "lower"


def _estimate(name: str, result: Any) -> Estimate:
    if not isinstance(result, Estimate):
        raise UsageError(f"measure {name!r} returned {type(result).__name__}; expected an Estimate")
    return result


def notes(minimum: Minimum) -> tuple[str, ...]:
    """Notes for a reader on how the network was measured."""
    out = ["measured in eval mode: BatchNorm with running statistics, no dropout"]
    if minimum.parameters.frozen:
        out.append(f"{minimum.parameters.frozen} frozen parameters left out")
    dtypes = {str(p.dtype).removeprefix("torch.") for p in minimum.parameters.tensors}
    if positions(minimum) >= budgets.WORTH:
        out.append(f"a sample is a sequence: where a part of the data is looked at, {budgets.WORTH} positions are one")
    out.append(f"weights in {', '.join(sorted(dtypes))}; sums in float64")
    out += minimum.loss.notes
    if minimum.halvings:
        out.append(f"batches halved to {minimum.batch_size} samples, because memory ran out")
    out += [absent.reason for absent in minimum.examined.values() if absent is not None and absent.code == "unproven"]
    out += minimum.remarks
    following = minimum.following
    if following.tried:
        if minimum.passes.checks:
            share = minimum.passes.checks / len(minimum.samples)
            out.append(f"per-sample gradients checked against autograd, parameter by parameter ({share:.1f} passes)")
        if not following.by_layers:
            out.append(f"per-sample gradients by one backward pass a sample: {following.reason}")
        elif any(u.rule is None for u in minimum.units):
            names = sorted({type(u.module).__name__ for u in minimum.units if u.rule is None})
            out.append(f"vmapped gradients for {', '.join(names)}")
    return tuple(out)
