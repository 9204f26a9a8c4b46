"""Disagreement of the samples' gradients: noise scale, variance, and signal over noise of each parameter."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flatminima.core.statistic import Statistics
from flatminima.errors import Undefined
from flatminima.estimate import Estimate
from flatminima.measures._layers import of_moments, with_layers
from flatminima.measures._measure import at_least_one, catalogued_measure, seed_of, until
from flatminima.measures._subset import SUBSET, of_subset
from flatminima.statistics import FisherDiagonal, Gram, GramMatrices, MeanGradient

_ROUNDING = 1e-12  # of the second moment; a variance below it is what float64 and cancellation leave, however precise
_ROUNDINGS = 100.0  # of float32 that sums of thousands of gradients lose: 20 were seen
_COARSE = 4.0  # of half precision, whose sums are made in float32: 1 was seen


@catalogued_measure
def gradient_noise_scale(
    minimum: Statistics,
    *,
    subset: int | None = None,
    trials: int = 100,
    rtol: float | None = None,
    seed: int | None = None,
) -> Estimate:
    """``B = tr(Sigma) / ||G||^2``, G the mean of the samples' gradients and Sigma their covariance.

    The batch size at which noise and signal of a step are equal, for an identity Hessian. G is that of all the data,
    so nothing but the trace is sampled.

    Args:
        minimum: a Minimum.
        subset, trials: subset * trials samples for the trace, shared with the Fisher measures; subset None: 100, or all
            the samples where there are fewer.
        rtol: raise `trials` until the 95% interval is value (1 +- rtol).
        seed: of the samples; None: the Minimum's.

    Returns:
        Estimate; stderr over samples; details: n, variance (tr Sigma), squared_gradient (||G||^2).
        Undefined: the mean gradient is 0 to rounding, one sample.

    Raises:
        UsageError, DataError: an option outside its range, fewer samples than the `subset` that was given.

    Source:
        McCandlish, Kaplan, Amodei et al. 2018, arXiv 1812.06162, eq. 2.9 (B_simple).
    """

    def estimate(trials: int) -> Estimate:
        gram, gradient = _gradients(minimum, subset, trials, seed)
        signal = float(gradient.square().sum())
        variance = Estimate.mean(gram.squared_norms() - signal)
        if variance.value is None:
            return variance
        if signal <= _ROUNDING * (variance.value + signal):
            raise Undefined(
                f"the mean gradient is 0 to rounding (||G||^2 = {signal:.2g}): the noise is infinitely more"
            )
        stderr = None if variance.stderr is None else math.hypot(variance.stderr, _rounding(minimum) * signal) / signal
        details = {"n": variance.details["n"], "variance": variance.value, "squared_gradient": signal}
        details |= of_subset(gram, subset)
        return Estimate(max(variance.value, 0.0) / signal, stderr, details)

    return until(rtol, trials, estimate)


@catalogued_measure
def gradient_variance(
    minimum: Statistics,
    *,
    subset: int | None = None,
    trials: int = 100,
    rtol: float | None = None,
    seed: int | None = None,
) -> Estimate:
    """``tr(Sigma) = mean_i ||g_i||^2 - ||G||^2``, the variance of the samples' gradients (Jiang et al. 2020).

    Args:
        minimum: a Minimum.
        subset, trials: subset * trials samples for the first term, shared with the Fisher measures; subset None: 100,
            or all the samples where there are fewer.
        rtol: raise `trials` until the 95% interval is value (1 +- rtol).
        seed: of the samples; None: the Minimum's.

    Returns:
        Estimate; stderr over samples, at least what rounding leaves; details: n, subset, squared_gradient (||G||^2 of
        all the data), layers and layer_stderrs (of each parameter, by name; they add up to the value). Undefined: a
        gradient overflows, one sample.

    Raises:
        UsageError, DataError: an option outside its range, fewer samples than the `subset` that was given.

    Source:
        Jiang et al. 2020, arXiv 1912.02178, appendix C, gradient noise at the end of training.
    """

    def estimate(trials: int) -> Estimate:
        gram, gradient = _gradients(minimum, subset, trials, seed)
        signal = float(gradient.square().sum())
        variance = Estimate.mean(gram.squared_norms() - signal)
        if variance.value is None:
            return variance
        stderr = None if variance.stderr is None else math.hypot(variance.stderr, _rounding(minimum) * signal)
        details = {"n": variance.details["n"], "squared_gradient": signal} | of_subset(gram, subset)
        parts = of_moments(gram.layers)
        if parts:
            shares = zip(parts.items(), gradient.split(list(gram.sizes)), strict=True)
            parts = {k: Estimate(float(e) - float(own.square().sum()), e.stderr) for (k, e), own in shares}
        return with_layers(Estimate(max(variance.value, 0.0), stderr, details), parts)

    return until(rtol, trials, estimate)


def _rounding(minimum: Statistics) -> float:
    """What the network's precision leaves of a square, relative; float64's for numbers handed over by `Fixed`."""
    double = torch.finfo(torch.float64).eps
    eps = float(getattr(minimum, "eps", double))
    return (_ROUNDINGS if eps <= torch.finfo(torch.float32).eps else _COARSE) * eps


def _gradients(minimum: Statistics, subset: int | None, trials: int, seed: int | None) -> tuple[GramMatrices, Tensor]:
    """Gram matrices of the samples' gradients, and G (W,) of all the data."""
    at_least_one(subset=subset, trials=trials)
    size = SUBSET if subset is None else subset
    gram, gradient = minimum[Gram(size, trials, seed_of(minimum, seed)), MeanGradient()]
    if gram.trials * gram.subset == 1:
        raise Undefined("one sample was looked at: a single gradient has no variance")
    return gram, gradient


@catalogued_measure
def gradient_signal_to_noise(minimum: Statistics) -> Estimate:
    """``mean_j G_j^2 / Var(g_j)``: signal over noise of the samples' gradients, averaged over parameters j.

    Args:
        minimum: a Minimum.

    Returns:
        Estimate (higher is better), exact for the data; details: parameters (looked at), constant (left out: their
        gradient is the same for every sample to the rounding of the network's precision, as of dead units).
        Undefined: all are constant, fewer than two samples, a squared gradient overflows.

    Source:
        Liu, Bai, Jiang, Chen & Wang 2020, "Understanding why neural networks generalize well through GSNR of
        parameters", ICLR, arXiv 2001.07384, eq. 1.
    """
    second, gradient = minimum[FisherDiagonal(), MeanGradient()]
    signal = gradient.square()
    overflowed = int((~(second + signal).isfinite()).sum())
    if overflowed:  # no number is larger than its NaN: it would be left out
        raise Undefined(f"{overflowed} of {len(second)} squared gradients are not finite")
    variance = second - signal
    varies = variance > max(_ROUNDING, _rounding(minimum)) * second
    count = int(varies.sum())
    if count == 0:
        raise Undefined("every parameter has the same gradient for all samples: there is no noise")
    ratio = (signal[varies] / variance[varies]).to(torch.float64)
    return Estimate(float(ratio.mean()), details={"parameters": count, "constant": len(second) - count})
