"""The cost of `flatminima measure`, its audit and pictures: passes counted, seconds by trials on few samples."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flatminima.cli import explain
from flatminima.cli.trial_runs import Clock, Trials
from flatminima.core.minimum import Minimum
from flatminima.core.statistic import Cost
from flatminima.io import json_text
from flatminima.measuring import Plan, absent, plan
from flatminima.rescaling import FACTORS, rescalings

if TYPE_CHECKING:
    from flatminima.measuring import MeasureFunction

_PRODUCTS = 12  # until two eigenvectors have converged, typically
_ADMITTING = 8  # passes over a batch by which the two Minimums of a table see whether samples act on each other
_STEPS = (3, 23)  # points of two lines that are tried: their difference is the price of a point


@dataclass(frozen=True)
class Part:
    """Cost of one part of the command: passes over all the samples, and seconds."""

    cost: Cost
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """Costs by what they are for.

    Attributes:
        plan: of the measures.
        parts: name -> passes and seconds.
        tables: networks that the audit makes anew.
    """

    plan: Plan
    parts: dict[str, Part]
    tables: int = 0

    @property
    def seconds(self) -> float:
        """Seconds of all parts."""
        return sum(part.seconds for part in self.parts.values())


def forecast(
    minimum: Minimum,
    wanted: Sequence[MeasureFunction],
    *,
    audited: bool,
    explained: bool,
    clock: Clock = time.perf_counter,
) -> Forecast:
    """Costs of measuring `wanted`, with the audit and the pictures where these are asked for.

    Args:
        minimum: the network.
        wanted: measures with their options, those that only the page wants at the end.
        audited, explained: as the command's options.
        clock: seconds.
    """
    trials = Trials.of(minimum, clock)
    found = plan(minimum, wanted)
    parts, tables = {"measures": Part(found.cost, trials.statistics(absent(minimum, wanted)))}, 0
    if audited or explained:
        seen = minimum if audited else explain.part(minimum)
        own = wanted[: len(wanted) - len(explain.MEASURES)] if explained else wanted
        tables = len(FACTORS) * len(rescalings(seen))
        parts["audit"] = _audit(seen, own, tables, len(seen.samples) / len(minimum.samples), clock)
    if explained:
        parts["landscapes"] = _landscapes(trials)
    return Forecast(found, parts, tables)


def _audit(seen: Minimum, wanted: Sequence[MeasureFunction], tables: int, share: float, clock: Clock) -> Part:
    """As many tables of networks that are made anew, each on a share of the samples."""
    if not tables:
        return Part(Cost(), 0.0)
    cost = plan(seen, wanted).cost
    started = clock()
    Minimum(seen.model, seen.samples, seen.loss, batch_size=seen.batch_size)
    admission, n = clock() - started, len(seen.samples)
    looked = _ADMITTING * min(seen.batch_size, n) / n
    seconds = admission + Trials.of(seen, clock).statistics(absent(seen, wanted))
    return Part(Cost(tables * share * (cost.forward + looked), tables * share * cost.backward), tables * seconds)


def _landscapes(trials: Trials) -> Part:
    """Points and Hessian products, and the figures."""
    from flatminima.landscape import Landscape, directions, landscape
    from flatminima.statistics import Products

    cost, drawn = explain.cost(trials.minimum, _PRODUCTS), list[Landscape]()

    def points(few: Minimum, steps: int) -> None:
        drawn.append(landscape(few, directions(few, "filter", 1), steps=steps, samples=None))

    def product(few: Minimum) -> None:
        products = Products(few, torch.arange(len(few.samples)))
        products(torch.ones(products.size))

    # a line's beginning costs what many of its points do, and is made once a picture
    short, long = (trials.scaled(partial(points, steps=k), Cost()) for k in _STEPS)
    share = cost.forward * len(trials.minimum.samples) / len(trials.few.samples) / (_STEPS[1] - _STEPS[0])
    seconds = max(long - short, 0.0) * share + trials.scaled(product, Cost(0.0, cost.backward))
    if drawn:
        with tempfile.TemporaryDirectory() as folder:
            figures: dict[str, Any] = {"landscape-trial": drawn[-1]}
            explain.write(figures, Path(folder))  # the first also pays for matplotlib
            started = trials.clock()
            explain.write(figures, Path(folder))
            seconds += len(explain.PICTURES) * (trials.clock() - started)
    return Part(cost, seconds)


def plan_text(minimum: Minimum, wanted: list[MeasureFunction], audited: bool, explained: bool, as_json: bool) -> str:
    """The plan, with the time that trials on few samples suggest."""
    found = forecast(minimum, wanted, audited=audited, explained=explained)
    samples = len(minimum.samples)
    if as_json:
        parts = {name: asdict(part.cost) | {"seconds": part.seconds} for name, part in found.parts.items()}
        document = asdict(found.plan) | {"schema": 1, "seconds": found.seconds, "samples": samples, "parts": parts}
        return json_text(document)
    lines = [str(found.plan)]
    for name, part in list(found.parts.items())[1:]:
        cost = part.cost
        lines.append(f"{name}: {cost.forward:.2f} forward, {cost.backward:.2f} backward passes more")
    about = f"about {found.seconds:.0f} s" if found.seconds >= 1 else "less than a second"
    return "\n".join([*lines, f"{about} on {samples} samples; nothing was measured"])
