"""Noise that the weights take before the network errs on more samples: Jiang et al.'s sigma, found by search.

The draws are made once and only scaled, so that the rise is a smooth function of sigma and its root is found in a few
evaluations; each draw looks at a block of samples of its own. Note: sigma is a standard deviation, and a
popular program hands its square to the generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from scipy.optimize import brentq
from torch import Tensor

from flatminima import progress
from flatminima.core.perturbation import Gaussian, Relative, generator
from flatminima.core.statistic import Cost, Statistic
from flatminima.errors import Undefined, UsageError
from flatminima.statistics.loss_ascent import at_the_weights
from flatminima.statistics.outputs import Outputs, OutputSummary, margins

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

_Kind = Literal["random", "worst"]
Rise = Literal["error", "loss"]

_LEAST = 1e-4  # of the weights: noise that the precision must tell from none
_START = math.log(0.01)
_LOWEST, _HIGHEST = math.log(1e-8), math.log(1e4)  # ln sigma that is looked at
_PRECISION = 1e-3  # of ln sigma
_SLOPE_STEPS = (0.1, 0.2, 0.4, 0.8)  # in ln sigma; the error rate moves in steps of one sample
_ASCENT_STEPS = 5  # gradients to the worst corner, as in `worst_case`
_TYPICAL = 12  # evaluations


@dataclass(frozen=True)
class Level:
    """The noise at which the mean rise reaches the target.

    Attributes:
        log_sigma: ln of the standard deviation (half-width of the box for "worst").
        error: standard error of log_sigma over draws; None for one draw.
        slope: d rise / d ln sigma there.  evaluations: of the mean rise.
        whole: whether each draw saw all the data.
    """

    log_sigma: float
    error: float | None
    slope: float
    evaluations: int
    whole: bool = False


@dataclass(frozen=True)
class NoiseLevel(Statistic[Level]):
    """Search for the noise that raises the error or loss by `target`.

    Args:
        kind: "random": Gaussian noise, standard deviation sigma. "worst": the worst of a few corners of the box
            |u_i| <= sigma that gradients point to.
        epsilon: None: the same for all weights. Else in proportion to the weights: variance sigma^2 w_i^2 + epsilon^2
            ("worst": |u_i| <= sigma |w_i| + epsilon).
        rise: of the 0-1 "error" or the "loss".
        target: the rise.
        draws: of the noise ("worst": blocks of samples).  samples: that each looks at.
        seed: of draws and samples.
    """

    kind: _Kind = "random"
    epsilon: float | None = None
    rise: Rise = "error"
    target: float = 0.1
    draws: int = 20
    samples: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("random", "worst") or self.rise not in ("error", "loss"):
            raise UsageError(f"got kind={self.kind!r}, rise={self.rise!r}; 'random' or 'worst', 'error' or 'loss'")
        if not 0 < self.target < math.inf or (self.rise == "error" and self.target >= 1):
            raise UsageError(f"got target={self.target!r}; a rise is positive, of the error below 1")
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise UsageError(f"got epsilon={self.epsilon!r}; it is finite and positive")
        if self.draws < 1 or self.samples < 1:
            raise UsageError(f"got draws={self.draws}, samples={self.samples}; both must be at least 1")

    def compute(self, minimum: Minimum) -> Level:
        minimum = minimum.resolving(Gaussian(Relative(_LEAST, 1.0, 0.0)), self.seed)
        evaluate = self._rises(minimum)
        count = 0

        def rises(log_sigma: float) -> Tensor:
            nonlocal count
            count += 1
            progress.report("noise level", count, _TYPICAL)
            return evaluate(log_sigma)

        def excess(log_sigma: float) -> float:
            mean = float(rises(log_sigma).mean())
            return min(mean if math.isfinite(mean) else math.inf, 10 * self.target) - self.target

        with minimum.open():
            root = _root(excess)
            slope = _slope(lambda t: float(rises(t).mean()), root)
            last = rises(root)
            spread = float(last.std()) / math.sqrt(len(last)) if len(last) > 1 else math.nan
        error = spread / slope if math.isfinite(spread) else None
        return Level(root, error, slope, count, self.samples >= len(minimum.samples))

    def _rises(self, minimum: Minimum) -> Callable[[float], Tensor]:
        """Rises (draws,) at ln sigma."""
        before = self._before(minimum)
        n = len(minimum.samples)
        block = min(self.samples, n)
        order = minimum.samples.order(self.seed)
        draws = 1 if self.kind == "worst" and block == n else self.draws  # the search draws nothing but samples
        blocks = [order[(torch.arange(block) + k * block) % n] for k in range(draws)]
        weights = minimum.parameters.flat()
        slope = at_the_weights(minimum, order)[1] if self.kind == "worst" else None

        def rises(log_sigma: float) -> Tensor:
            scale = self._scale(weights, math.exp(log_sigma))
            out = torch.zeros(draws, dtype=torch.float64)
            try:
                for k, indices in enumerate(blocks):
                    if slope is not None:
                        out[k] = self._worst(minimum, (indices, blocks[k - 1]), weights, scale, slope, before)
                        continue
                    noise = torch.randn(len(weights), generator=generator(self.seed, k))
                    minimum.parameters.assign(weights + noise.to(weights) * scale)
                    out[k] = self._mean(minimum, indices) - float(before[indices].mean())
            finally:
                minimum.parameters.assign(weights)
            return out

        return rises

    def _before(self, minimum: Minimum) -> Tensor:
        outputs: OutputSummary = minimum[Outputs()]
        if self.rise == "loss":
            return outputs.losses
        wrong = outputs.errors
        if wrong is None:
            raise Undefined("targets are not one class a sample: there is no error rate, only a loss (rise='loss')")
        errors = wrong.double()
        if float(errors.mean()) + self.target > 1:
            raise Undefined(f"the error is {float(errors.mean()):.3g} already: it cannot rise by {self.target}")
        return errors

    def _scale(self, weights: Tensor, sigma: float) -> Tensor:
        if self.epsilon is None:
            return torch.full_like(weights, sigma)
        if self.kind == "worst":
            return sigma * weights.abs() + self.epsilon
        return (sigma**2 * weights.square() + self.epsilon**2).sqrt()

    def _worst(
        self,
        minimum: Minimum,
        blocks: tuple[Tensor, Tensor],
        weights: Tensor,
        scale: Tensor,
        slope: Tensor,
        before: Tensor,
    ) -> float:
        """Rise at the highest corner that the gradients of the first block point to, the mean of both blocks.

        The search has all the data's gradient at w, not to follow the block's sampling noise, and the other block holds
        the optimism of the first against it; see `around`.
        """
        own, other = blocks
        minimum.parameters.assign(weights)
        tilt = slope - minimum.mean_gradient(own)[1]
        gradient, highest, best = slope, -math.inf, weights
        for _ in range(_ASCENT_STEPS):
            if not bool(gradient.any()):
                break
            corner = weights + scale * gradient.to(weights.dtype).sign()
            minimum.parameters.assign(corner)
            found = self._mean(minimum, own)
            if found > highest:
                highest, best = found, corner
            gradient = minimum.mean_gradient(own)[1] + tilt
        if highest == -math.inf:
            raise Undefined("the gradient is exactly 0: no corner is the worst")
        rise = highest - float(before[own].mean())
        if other is own:
            return rise
        minimum.parameters.assign(best)
        return (rise + self._mean(minimum, other) - float(before[other].mean())) / 2

    def _mean(self, minimum: Minimum, indices: Tensor) -> float:
        total = 0.0
        with torch.no_grad():
            for part in indices.split(minimum.batch_size):
                batch = minimum.batch(part)
                outputs = minimum.forward(batch.inputs)
                if self.rise == "error":
                    total += float((~(margins(outputs, batch.targets) > 0)).sum())
                else:
                    total += float(minimum.loss(outputs, batch.targets).double().sum())
        return total / len(indices)

    def cost(self, minimum: Minimum) -> Cost:
        looked = self.draws * min(self.samples, len(minimum.samples)) / len(minimum.samples) * _TYPICAL
        worst = self.kind == "worst"
        return Cost(1 + looked * (2 * _ASCENT_STEPS if worst else 1), looked * _ASCENT_STEPS if worst else 0.0)


def _root(excess: Callable[[float], float]) -> float:
    """Where the rise passes the target, going up from little noise."""
    step, low, high = math.log(2.0), _START, _START
    if excess(_START) < 0:
        while excess(high := high + step) < 0:
            low = high
            if high > _HIGHEST:
                raise Undefined("no noise raises it that far: the network does not depend on the weights enough")
    else:
        while excess(low := low - step) >= 0:
            high = low
            if low < _LOWEST:
                raise Undefined("any noise raises it further: nothing is left of the network at the smallest")
    return float(brentq(excess, low, high, xtol=_PRECISION))


def _slope(mean: Callable[[float], float], root: float) -> float:
    for step in _SLOPE_STEPS:
        slope = (mean(root + step) - mean(root - step)) / (2 * step)
        if slope > 0 and math.isfinite(slope):
            return slope
    raise Undefined("the rise does not grow with the noise where it reaches the target: there is no such level")
