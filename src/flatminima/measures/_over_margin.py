"""Options and margin that the norms over margins share."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from flatminima.core.statistic import Statistic, Statistics
from flatminima.errors import Undefined, UsageError
from flatminima.measures.margin import margin
from flatminima.statistics import FeedForward, FeedForwardNetwork, Margins, Outputs

Normalise = Literal["capacity", "figure"]
Product = Literal["capacity", "figure", "balanced"]


def check_options(normalise: str, fraction: float, known: tuple[str, ...] = get_args(Normalise)) -> None:
    """Refuse what no norm over a margin knows.

    Raises:
        UsageError: an unknown normalisation, a fraction outside (0, 1].
    """
    if normalise not in known:
        raise UsageError(f"got normalise={normalise!r}; expected {' or '.join(map(repr, known))}")
    if not 0 < fraction <= 1:
        raise UsageError(f"got fraction={fraction!r}; it must lie in (0, 1]")


def network_and_margin(
    minimum: Statistics, fraction: float, over_margin: bool
) -> tuple[FeedForwardNetwork, float | None]:
    """The network, and ln of its margin where that is asked for."""
    (network,), log_margin = with_margin(minimum, fraction, over_margin, FeedForward())
    return network, log_margin


def with_margin(
    minimum: Statistics, fraction: float, over_margin: bool, *keys: Statistic[Any]
) -> tuple[tuple[Any, ...], float | None]:
    """The statistics in one request, and ln of the margin or None."""
    everything: Any = minimum
    if not over_margin:
        return everything[keys], None
    *values, _, _ = everything[(*keys, Margins(), Outputs())]
    gamma = margin(minimum, fraction=fraction)
    if gamma.value is None:
        raise Undefined(str(gamma.undefined))
    if gamma.value <= 0:
        raise Undefined(f"the margin is not positive ({gamma.value:.3g} at {fraction:.0%}): the capacity is infinite")
    return tuple(values), math.log(gamma.value)


def log_factors(network: FeedForwardNetwork) -> dict[str, float]:
    """ln |c| of each number that multiplies activations, in order.

    Raises:
        Undefined: a number is 0.
    """
    zero = next((name for name, value in network.factors if value == 0), None)
    if zero is not None:
        raise Undefined(f"activations are multiplied by 0 ({zero!r}): the product of norms is 0")
    return {f"{i}: {name}": math.log(abs(value)) for i, (name, value) in enumerate(network.factors)}
