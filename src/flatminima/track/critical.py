"""Critical sharpness: 2 over the smallest step along a direction that raises the loss, found by forward passes alone.

No second derivative is taken, so attention kernels without one, and weights in shards, are no obstacle. Of a quadratic
along the gradient it is g^T H g / g^T g. Where the loss falls for ever along the direction, as a cross-entropy may,
there is none, and it is not the largest eigenvalue then: show both. Source: arXiv 2601.16979.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from flatminima.errors import Undefined

_FACTOR = 2.0  # between steps while the root is not enclosed
_MOST = 24  # forward passes


@dataclass(frozen=True)
class Critical:
    """The step at which the loss is again what it was.

    Attributes:
        sharpness: 2 / step.
        step: where the loss along -direction comes back up.
        evaluations: forward passes, that of the start among them.
    """

    sharpness: float
    step: float
    evaluations: int


def critical(
    loss: Callable[[float], float], guess: float, tolerance: float = 0.02, start: float | None = None
) -> Critical:
    """Search for the step from a guess, the last one or the learning rate.

    Args:
        loss: step -> mean loss at w - step direction; `loss(0)` is at w.
        guess: of the step, positive.
        tolerance: of the step, relative.
        start: loss(0), where it is known.

    Raises:
        Undefined: a step of a thousandth of the guess raises the loss already; a million guesses do not; the passes ran
            out; the loss does not change at all.
    """
    count = 0
    known: dict[float, float] = {} if start is None else {0.0: start}

    def rise(step: float) -> float:
        nonlocal count
        if step not in known:
            count += 1
            known[step] = loss(step)
        return known[step] - known[0.0] if math.isfinite(known[step]) else math.inf

    if not known:
        known[0.0], count = loss(0.0), 1
    low, high = _enclose(rise, guess, lambda: count)
    step = _crossing(low, rise(low), high, rise(high))
    while True:
        if count >= _MOST:
            raise Undefined(
                f"the critical step is not within {tolerance:g} after {count} forward passes", "unconverged"
            )
        low, high = (low, step) if rise(step) > 0 else (step, high)
        better = _crossing(low, rise(low), high, rise(high))
        if abs(better - step) <= tolerance * step or high - low <= tolerance * low:
            return Critical(2.0 / better, better, count)
        step = better


def _enclose(rise: Callable[[float], float], guess: float, spent: Callable[[], int]) -> tuple[float, float]:
    """Steps below and above the smallest root, a factor of 2 apart."""
    if rise(guess) > 0:
        high = guess
        while spent() < _MOST:
            low = high / _FACTOR
            if rise(low) <= 0:
                if rise(low) == 0:
                    break
                return low, high
            high = low
        raise Undefined("no step along the direction lowers the probe's loss: its critical step is 0", "ascent")
    low = guess
    while spent() < _MOST:
        high = low * _FACTOR
        if rise(high) > 0:
            return low, high
        low = high
    raise Undefined(
        f"the probe's loss does not rise up to a step of {low:.3g}: along this direction there is no critical step",
        "no_rise",
    )


def _crossing(low: float, below: float, high: float, above: float) -> float:
    """The root between two steps, of which rise / step is linear for a quadratic; the middle where that misleads."""
    slope, other = below / low, above / high
    if math.isfinite(other) and other > slope:
        root = low - slope * (high - low) / (other - slope)
        if low <= root < high:
            return root
    return (low + high) / 2
