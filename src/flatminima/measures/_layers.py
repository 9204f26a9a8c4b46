"""Contribution of each parameter to a measure that is a sum over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flatminima.estimate import Estimate
from flatminima.statistics import Moments


def with_layers(whole: Estimate, parts: Mapping[str, Estimate]) -> Estimate:
    """The estimate with details["layers"] and details["layer_stderrs"], by parameter name.

    Args:
        whole: of all parameters together.
        parts: of each; none where they are not known, and the details then say nothing.
    """
    if whole.value is None or not parts:
        return whole
    return whole.with_details(
        layers={name: part.value for name, part in parts.items()},
        layer_stderrs={name: part.stderr for name, part in parts.items()},
    )


def of_moments(found: Moments | None, population: int | None = None) -> dict[str, Estimate]:
    """The mean over samples of each parameter's number, by name.

    Args:
        found: count, mean and spread; None: not known.
        population: samples there are, where the mean is of all of them, and its stderr^2 = (1 - count / population)
            s^2 / count; None: where it is of the distribution that they came from.
    """
    if found is None or not bool((found.mean.isfinite() & found.squares.isfinite()).all()):
        return {}
    left = 1.0 if population is None else 1 - found.count / population
    rest = [None] * len(found.names) if found.count < 2 else (left * found.squares / (found.count - 1) / found.count)
    return {
        name: Estimate(float(mean), None if square is None else float(square) ** 0.5)
        for name, mean, square in zip(found.names, found.mean, rest, strict=True)
    }


def without_error(found: Estimate) -> Estimate:
    """The same value, of which nothing was drawn: no standard error, of no parameter either."""
    details = {key: value for key, value in found.details.items() if key not in ("layer_stderrs", "n")}
    return replace(found, stderr=None, details=details)
