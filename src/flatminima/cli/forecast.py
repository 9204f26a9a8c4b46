"""The cost of `flatminima measure`, its audit and pictures too: passes counted, seconds by a short timing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from flatminima.cli import explain
from flatminima.core.minimum import Minimum
from flatminima.core.statistic import Cost
from flatminima.io import json_text
from flatminima.rescaling import FACTORS, rescalings
from flatminima.rounds import Plan, plan

if TYPE_CHECKING:
    from flatminima.rounds import MeasureFunction

_PRODUCTS = 12  # until two eigenvectors have converged, typically
_REPEATS = 2  # of a timed batch, after one that pays for warming up
_ROWS = 256  # samples that are timed at most


@dataclass(frozen=True)
class Forecast:
    """Costs by what they are for, in passes over all the samples.

    Attributes:
        plan: of the measures.
        parts: name -> Cost.
        forward, backward: seconds of a pass over all the samples, as timed.
        tables: networks that the audit makes anew. admission: seconds of making one.
    """

    plan: Plan
    parts: dict[str, Cost]
    forward: float
    backward: float
    tables: int = 0
    admission: float = 0.0

    def seconds_of(self, cost: Cost) -> float:
        """Seconds."""
        return cost.forward * self.forward + cost.backward * self.backward

    @property
    def seconds(self) -> float:
        """Seconds of all parts."""
        return sum(map(self.seconds_of, self.parts.values())) + self.tables * self.admission


def forecast(minimum: Minimum, wanted: Sequence[MeasureFunction], *, audited: bool, explained: bool) -> Forecast:
    """Costs of measuring `wanted`, with the audit and the pictures where these are asked for.

    Args:
        minimum: the network.
        wanted: measures with their options, those that only the page wants at the end.
        audited, explained: as the command's options.
    """
    found = plan(minimum, wanted)
    parts, tables, admission = {"measures": found.cost}, 0, 0.0
    if audited or explained:
        seen = minimum if audited else explain.part(minimum)
        share = len(seen.samples) / len(minimum.samples)
        tables = len(FACTORS) * len(rescalings(seen))
        admission = _seconds(lambda: Minimum(seen.model, seen.samples, seen.loss, batch_size=seen.batch_size))
        own = plan(seen, wanted[: len(wanted) - len(explain.MEASURES)] if explained else wanted).cost
        parts["audit"] = Cost(tables * share * own.forward, tables * share * own.backward)
    if explained:
        parts["landscapes"] = explain.cost(minimum, _PRODUCTS)
    return Forecast(found, parts, *_timed(minimum), tables, admission)


def _timed(minimum: Minimum) -> tuple[float, float]:
    """Seconds of a forward pass over all the samples, and of a backward pass, from one batch of them."""
    rows = torch.arange(min(minimum.batch_size, len(minimum.samples), _ROWS))
    with minimum.open():
        batch = minimum.batch(rows)

        def forward() -> None:
            with torch.no_grad():
                minimum.loss(minimum.forward(batch.inputs), batch.targets)

        ahead, both = _seconds(forward), _seconds(batch.gradient)
    whole = len(minimum.samples) / len(rows)
    return ahead * whole, max(both - ahead, ahead) * whole


def _seconds(work: Callable[[], Any]) -> float:
    """The shortest of a few runs: others on the machine only make it longer."""
    found = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def plan_text(minimum: Minimum, wanted: list[MeasureFunction], audited: bool, explained: bool, as_json: bool) -> str:
    """The plan, with the time that a short timing suggests."""
    found = forecast(minimum, wanted, audited=audited, explained=explained)
    samples = len(minimum.samples)
    if as_json:
        parts = {name: asdict(cost) | {"seconds": found.seconds_of(cost)} for name, cost in found.parts.items()}
        document = asdict(found.plan) | {"schema": 1, "seconds": found.seconds, "samples": samples, "parts": parts}
        return json_text(document)
    lines = [str(found.plan)]
    for name, cost in list(found.parts.items())[1:]:
        lines.append(f"{name}: {cost.forward:.2f} forward, {cost.backward:.2f} backward passes more")
    about = f"about {found.seconds:.0f} s" if found.seconds >= 1 else "less than a second"
    return "\n".join([*lines, f"{about} on {samples} samples; nothing was measured"])
