"""Flatness as the noise that the weights take, and the PAC-Bayes complexity at that noise (Jiang et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatminima.core.statistic import Statistics
from flatminima.estimate import Estimate
from flatminima.measures._initial import flat_initial
from flatminima.measures._measure import at_least_one, catalogued_measure, seed_of, until
from flatminima.statistics import Level, NoiseLevel, SampleCount, Weights

_EPSILON = 1e-3  # Jiang et al.: noise of weights that are 0
_DIFFERENCE = 1e-4  # in ln sigma, of a derivative


@catalogued_measure
def noise_flatness(
    minimum: Statistics,
    *,
    kind: Literal["random", "worst"] = "random",
    magnitude: bool = False,
    epsilon: float = _EPSILON,
    rise: Literal["error", "loss"] = "error",
    target: float = 0.1,
    draws: int = 20,
    samples: int = 500,
    rtol: float | None = None,
    seed: int | None = None,
) -> Estimate:
    """``ln(1 / sigma^2)``, sigma the noise of the weights at which the expected training error has risen by 0.1.

    Args:
        minimum: a Minimum.
        kind: "random": u_i ~ N(0, sigma^2). "worst": the largest box |u_i| <= sigma in whose corners, as a gradient
            search finds them, the error stays that low.
        magnitude: noise in proportion to the weights: variance ``sigma^2 w_i^2 + epsilon^2``, box
            ``sigma |w_i| + epsilon``.
        epsilon: of it.
        rise: of the 0-1 "error" (the paper) or the "loss".
        target: the rise.
        draws: of the noise.
        samples: of the data that each draw looks at.
        rtol: raise `draws` until the 95% interval is value (1 +- rtol).
        seed: of draws and samples; None: the Minimum's.

    Returns:
        Estimate; stderr over draws, for kind="worst" over the parts of the data that search apart (none where each draw
        looks at all the data); details: n, error_of, sigma, slope (of the mean rise by ln sigma),
        evaluations. Undefined: targets that are not classes, an error too high to rise by 0.1, no noise that raises
        it so far.

    Raises:
        UsageError: an option outside its range.

    Source:
        Jiang et al. 2020, arXiv 1912.02178, appendix C: pacbayes-flatness, sharpness-flatness (1 / sigma^2,
        1 / alpha^2) and their magnitude-aware forms.
    """

    def estimate(draws: int) -> Estimate:
        level = minimum[_key(minimum, kind, magnitude, epsilon, rise, target, draws, samples, seed)]
        error = None if level.error is None else 2 * level.error
        return Estimate(-2 * level.log_sigma, error, _details(level, draws, kind))

    at_least_one(draws=draws)
    return until(rtol, draws, estimate)


@catalogued_measure
def noise_complexity(
    minimum: Statistics,
    *,
    initial: nn.Module | Mapping[str, Tensor] | Tensor | None = None,
    kind: Literal["random", "worst"] = "random",
    magnitude: bool = False,
    epsilon: float = _EPSILON,
    rise: Literal["error", "loss"] = "error",
    target: float = 0.1,
    draws: int = 20,
    samples: int = 500,
    seed: int | None = None,
) -> Estimate:
    """PAC-Bayes complexity ``||w - w0||^2 / (4 sigma^2) + ln(n / sigma) + 10`` at the sigma of `noise_flatness`.

    With magnitude=True ``1/4 sum_i ln((e^2 + (s^2 + 1) ||w - w0||^2 / W) / (e^2 + s^2 |w_i - w0_i|^2)) + ln(n / s)
    + 10``, e = epsilon. For kind="worst" the noise whose largest entry is alpha with high probability replaces sigma:
    ``1 / sigma^2 -> ln(2 W) / alpha^2``, and ``s^2 + 1 -> a^2 + 4 ln(2 W n)`` and s = a otherwise.

    Args:
        minimum: a Minimum.
        initial: w0 as the untrained model, its state dict, or a flat vector (W,); None: the origin.
        kind, magnitude, epsilon, rise, target, draws, samples: of the search, as for `noise_flatness`.
        seed: of draws and samples; None: the Minimum's.

    Returns:
        Estimate; stderr over draws as for `noise_flatness`; details: n, error_of, sigma, slope, evaluations,
        distance (||w - w0||).
        Undefined: as `noise_flatness`.

    Raises:
        UsageError: an option outside its range, initial weights that do not fit.

    Source:
        Jiang et al. 2020, arXiv 1912.02178, appendix C, eq. 48, 49 (pacbayes-init, -orig), 56, 57 (-mag-init,
        -mag-orig), and the sharpness forms, as far as they are defined. A score: sigma depends on the data.
    """
    key = _key(minimum, kind, magnitude, epsilon, rise, target, draws, samples, seed)
    values: Any = minimum[key, Weights(), SampleCount()]
    level, weights, n = values
    moved = weights.values.clone()
    if initial is not None:
        moved -= flat_initial(initial, weights)
    if magnitude:
        complexity = _in_proportion(moved.square(), epsilon, n, worst=kind == "worst")
    else:
        complexity = _isotropic(float(moved.square().sum()), len(moved), n, worst=kind == "worst")
    value = complexity(level.log_sigma)
    step = _DIFFERENCE
    slope = (complexity(level.log_sigma + step) - complexity(level.log_sigma - step)) / (2 * step)
    error = None if level.error is None else abs(slope) * level.error
    return Estimate(value, error, {**_details(level, draws, kind), "distance": float(moved.norm())})


def _key(
    minimum: Statistics, kind: Any, magnitude: bool, epsilon: float, rise: Any, target: float, draws: int,
    samples: int, seed: int | None,
) -> NoiseLevel:  # fmt: skip
    at_least_one(draws=draws, samples=samples)
    used = epsilon if magnitude else None
    return NoiseLevel(kind, used, rise, target, draws, samples, seed_of(minimum, seed))


def _details(level: Level, draws: int, kind: str) -> dict[str, Any]:
    over = {("random", True): "draws", ("worst", True): "exact", ("worst", False): "data"}
    return {
        "n": draws,
        "error_of": over.get((kind, level.whole), "both"),
        "sigma": math.exp(level.log_sigma),
        "slope": level.slope,
        "evaluations": level.evaluations,
    }


def _isotropic(squared: float, count: int, n: int, worst: bool) -> Callable[[float], float]:
    """The complexity as a function of ln sigma."""
    factor = math.log(2 * count) if worst else 1.0
    return lambda t: factor * squared / 4 * math.exp(-2 * t) + math.log(n) - t + 10


def _in_proportion(squares: Tensor, epsilon: float, n: int, worst: bool) -> Callable[[float], float]:
    count, mean = len(squares), float(squares.mean())
    extra = 4 * math.log(2 * count * n) if worst else 1.0

    def complexity(t: float) -> float:
        s = math.exp(2 * t)
        ratio = (epsilon**2 + (s + extra) * mean) / (epsilon**2 + s * squares)
        return float(torch.log(ratio).sum()) / 4 + math.log(n) - t + 10

    return complexity
