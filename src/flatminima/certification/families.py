"""The shapes that a posterior may take from a minimum's geometry, each a family over (prior's scale, eta).

eta weighs the curvature against the prior: 0 leaves Q as wide as P, and more narrows it where the loss is curved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatminima import bounds
from flatminima.certification.posteriors import (
    DiagonalGaussian,
    LowRankGaussian,
    Posterior,
    Spectrum,
    TruncatedBox,
    UniformBox,
)
from flatminima.core.minimum import Minimum
from flatminima.core.perturbation import Relative
from flatminima.errors import UnknownName, UsageError
from flatminima.statistics import FisherDiagonal, FisherFactor, GaussNewtonDiagonal, GaussNewtonFactor

FloatArray = NDArray[np.float64]
Name = Literal["gaussian", "diagonal_laplace", "fisher_laplace", "uniform", "truncated_gaussian"]
NAMES: tuple[str, ...] = get_args(Name)
Curvature = Literal["gauss_newton", "fisher"]

ETAS = tuple(10.0**k for k in (-3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1))  # times n: a Laplace posterior's own is 1
_WIDTHS = tuple(2.0 ** (-k / 2) for k in range(7))  # of the isotropic posterior, in prior's standard deviations
_INSIDE = 1 - 1e-6  # a box that touches the prior's would cross it in float32
_FLAT = 1e-5  # of the steepest direction: at any useful eta, flatter ones keep the prior's width to 0.1%
_TRUNCATED_AT = 3.0  # prior's standard deviations


@dataclass(frozen=True)
class Family:
    """Posteriors of one shape.

    Attributes:
        name: as the caller knows it.
        at: (prior's scale, eta) -> posterior.
        etas: worth trying; the choice may depend on the samples.
        details: what the shape was made from.
    """

    name: str
    at: Callable[[float, float], Posterior]
    etas: tuple[float, ...]
    details: dict[str, str | float]


def family(
    name: str,
    minimum: Minimum,
    distance: Tensor,
    *,
    curvature: Curvature = "gauss_newton",
    curvature_samples: int | None = None,
    kappa: Relative | None = None,
    rho: float = 0.0,
    box: float = math.inf,
    seed: int = 0,
) -> Family:
    """The family `name` at a minimum.

    Args:
        name: gaussian, diagonal_laplace, fisher_laplace, uniform or truncated_gaussian.
        distance: w - w_P (W,) float64.
        curvature: "gauss_newton" (for the cross-entropy, the Fisher matrix of the network's own labels) or "fisher"
            (the empirical one, of the given labels, which vanishes where every label is fitted).
        curvature_samples: of how many samples; None for all, of fisher_laplace for 100.
        kappa: half-widths of the neighbourhood of uniform and truncated_gaussian, W1's gamma |w| + epsilon as
            Relative(1, gamma, epsilon); by default the largest that the prior's box holds, and three prior's standard
            deviations.
        rho: Lipschitz constant of the Hessian in these two shapes.
        box: half-width of the prior of truncated_gaussian; inf for a whole Gaussian.
        seed: of the samples of the curvature.

    Raises:
        UnknownName: no such family. UsageError: a curvature that does not exist.
    """
    if name not in NAMES:
        raise UnknownName("posterior", name, NAMES)
    if curvature not in get_args(Curvature):
        raise UsageError(f"got curvature={curvature!r}; expected one of {', '.join(get_args(Curvature))}")
    if name == "gaussian":
        ones = torch.ones(len(distance))
        return Family(name, lambda s, width: DiagonalGaussian(distance, s, s * width * ones), _WIDTHS, {})
    etas = tuple(len(minimum.samples) * e for e in ETAS)
    details: dict[str, str | float] = {"curvature": curvature}
    if name == "fisher_laplace":
        samples = 100 if curvature_samples is None else curvature_samples
        kind = FisherFactor if curvature == "fisher" else GaussNewtonFactor
        spectrum = Spectrum.of(minimum[kind(samples, seed)], _FLAT)
        details |= {"directions": float(len(spectrum.values)), "curvature_samples": float(samples)}
        return Family(name, lambda s, eta: LowRankGaussian(distance, s, spectrum, eta), etas, details)
    diagonal = FisherDiagonal if curvature == "fisher" else GaussNewtonDiagonal
    h = minimum[diagonal(curvature_samples, seed)].numpy()
    if name == "diagonal_laplace":
        return Family(name, lambda s, eta: _laplace(distance, h, s, eta), etas, details)
    weights = minimum.parameters.flat(torch.float64).cpu()
    around = None if kappa is None else kappa.of(weights).numpy()
    details |= {"rho": rho, "kappa": "the prior's own" if kappa is None else f"{kappa}"}
    if name == "uniform":
        return Family(name, lambda tau, eta: _uniform(distance, h, around, rho, tau, eta), etas, details)
    return Family(name, lambda s, eta: _truncated(distance, h, around, rho, box, s, eta), etas, details)


def _laplace(distance: Tensor, h: FloatArray, s: float, eta: float) -> DiagonalGaussian:
    return DiagonalGaussian(distance, s, _single(bounds.diagonal_laplace_sigma(h, s, eta)))


def _uniform(
    distance: Tensor, h: FloatArray, kappa: FloatArray | None, rho: float, tau: float, eta: float
) -> UniformBox:
    """sigma_i = min((eta (h_i/3 + rho sqrt(m) kappa_i/9))^-1/2, kappa_i), W1 (9), inside of the prior's box."""
    room = (tau - distance.abs().numpy()) * _INSIDE
    least = np.finfo(np.float32).tiny  # where there is no room, KL is inf
    around = np.maximum(room, least) if kappa is None else kappa
    return UniformBox(distance, tau, _single(bounds.uniform_sigma(h, rho, around, eta)))


def _truncated(
    distance: Tensor, h: FloatArray, kappa: FloatArray | None, rho: float, box: float, s: float, eta: float
) -> TruncatedBox:
    """sigma_i = (eta (h_i + rho sqrt(m) kappa_i/3) + 1/s^2)^-1/2 (W1 App. E), cut at kappa_i."""
    around = np.full(len(h), _TRUNCATED_AT * s) if kappa is None else kappa
    if math.isfinite(box) and kappa is None:
        around = np.maximum(np.minimum(around, (box - distance.abs().numpy()) * _INSIDE), np.finfo(np.float32).tiny)
    sigma = bounds.truncated_gaussian_sigma(h, rho, around, s**2, eta)
    return TruncatedBox(distance, s, _single(sigma), torch.from_numpy(around), box)


def _single(sigma: FloatArray) -> Tensor:
    """As it is drawn with, so that the divergence is of the same numbers."""
    return torch.from_numpy(np.asarray(sigma)).float()
