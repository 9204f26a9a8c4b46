"""Distributions of the weights around a minimum, with their divergence from the prior and their draws, by shape.

A posterior may take any shape from the data that it was trained on; only the prior may not. What decides is that the
divergence is that of the very distribution that is drawn from. `family` gives the shapes that the minimum's geometry
suggests, each over (prior's scale, eta): eta weighs the curvature against the prior, 0 leaves Q as wide as P, and more
narrows it where the loss is curved.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatminima import bounds
from flatminima.catalog.choices import POSTERIORS
from flatminima.core.minimum import Minimum
from flatminima.core.perturbation import Explicit, Gaussian, Relative, Uniform, generator
from flatminima.errors import UnknownName, UsageError
from flatminima.statistics import FisherDiagonal, FisherFactor, GaussNewtonDiagonal, GaussNewtonFactor

_ROUNDING = 1e-12  # of the terms of a divergence in float64
_NEGLIGIBLE = 1e-10  # of the largest eigenvalue; below it vectors would not be orthogonal in float64


@dataclass(frozen=True, eq=False)
class Posterior(ABC):
    """Q, the law of w + u for fixed weights w.

    Attributes:
        distance: w - w_P (W,) float64, from the prior's centre.
        scale: of the prior: standard deviation s of every weight, or half-width of its box.
    """

    distance: Tensor
    scale: float

    @property
    @abstractmethod
    def kl(self) -> float:
        """KL(Q || P) in nats, exact, in float64; inf where P's support does not contain Q's."""

    @abstractmethod
    def draw(self, weights: Tensor, seed: int, index: int) -> Tensor:
        """u (W,) for flat weights (W,), in their dtype and on their device, from (seed, index) alone."""

    def draws(self, weights: Tensor, seed: int, indices: range) -> Tensor:
        """(len(indices), W): `draw` of each index, to rounding."""
        return torch.stack([self.draw(weights, seed, index) for index in indices])


@dataclass(frozen=True, eq=False)
class DiagonalGaussian(Posterior):
    """Q = N(w, diag sigma^2) against P = N(w_P, s^2 I).

    Examples:
        >>> q = DiagonalGaussian(torch.tensor([3.0, 4.0]).double(), 1.0, torch.ones(2))
        >>> q.kl  # ||w - w_P||^2 / (2 s^2)
        12.5
    """

    sigma: Tensor  # (W,)

    @property
    def kl(self) -> float:
        return float(bounds.kl_diag_gaussian(_array(self.distance), _array(self.sigma), 0.0, self.scale))

    def draw(self, weights: Tensor, seed: int, index: int) -> Tensor:
        return Gaussian(Explicit(self.sigma)).draw(weights, seed, index)


@dataclass(frozen=True, eq=False)
class UniformBox(Posterior):
    """Q = U(w_i +- sigma_i) against P = U(w_P,i +- tau), tau the prior's scale (W1 Lemma 3).

    KL = sum_i ln(tau / sigma_i) where every |w_i - w_P,i| + sigma_i <= tau, else inf.
    """

    sigma: Tensor  # (W,) half-widths

    @property
    def kl(self) -> float:
        return float(bounds.kl_uniform(self.scale, _array(self.sigma), _array(self.distance)))

    def draw(self, weights: Tensor, seed: int, index: int) -> Tensor:
        return Uniform(Explicit(self.sigma)).draw(weights, seed, index)


@dataclass(frozen=True, eq=False)
class TruncatedBox(Posterior):
    """Q = N(w, diag sigma^2) given |u_i| < kappa_i, against P = N(w_P, s^2 I) given |w_i - w_P,i| < box (W1 App. B).

    KL = sum_i -ln Z_i + ln(s / sigma_i) + (d_i^2 + s_i^2) / (2 s^2) - s_i^2 / (2 sigma_i^2) + ln Z_P, with d = w - w_P,
    Z_i = erf(kappa_i / (sqrt 2 sigma_i)), Z_P = erf(box / (sqrt 2 s)) and s_i^2 = E u_i^2. No factor 2 (KL + 1) and no
    condition on Z_i as in W1 (12), whose closed form drops them (errata W-f, W-g).
    """

    sigma: Tensor  # (W,)
    kappa: Tensor  # (W,) half-widths
    box: float = math.inf  # half-width of the prior

    @property
    def kl(self) -> float:
        distance, sigma, kappa = _array(self.distance), _array(self.sigma), _array(self.kappa)
        if bool((abs(distance) + kappa > self.box).any()):
            return math.inf
        open_prior = float(bounds.kl_truncated_gaussian(distance, sigma, kappa, self.scale**2))
        cut = len(distance) * math.log(math.erf(self.box / (math.sqrt(2) * self.scale)))
        terms = abs(np.log(self.scale / sigma)) + (distance**2 + sigma**2) / (2 * self.scale**2) + 0.5
        return _without_rounding(open_prior + cut, abs(open_prior) + abs(cut) + float(terms.sum()))

    def draw(self, weights: Tensor, seed: int, index: int) -> Tensor:
        # inverse distribution function: no rejection loop whose length varies
        uniform = torch.rand(weights.numel(), generator=generator(seed, index), dtype=torch.float64).mul_(2).sub_(1)
        sigma, kappa = self.sigma.double(), self.kappa.double()
        inside = torch.erf(kappa / (math.sqrt(2) * sigma))
        noise = math.sqrt(2) * sigma * torch.erfinv(inside * uniform)
        return torch.minimum(torch.maximum(noise, -kappa), kappa).to(weights)


@dataclass(frozen=True, eq=False)
class LowRankGaussian(Posterior):
    """Q = N(w, (eta F + I / s^2)^-1) against P = N(w_P, s^2 I), F = V diag(lambda) V^T of low rank.

    With a_k = eta s^2 lambda_k: KL = [sum_k (ln(1 + a_k) - a_k / (1 + a_k)) + ||w - w_P||^2 / s^2] / 2, and a draw is
    u = s (z - V diag(1 - (1 + a_k)^-1/2) V^T z), z ~ N(0, I): narrowed in the span, the prior's width outside of it.
    Neither needs a W x W matrix. Source: ours, in place of Jia & Su's Theorem 1 (erratum J-l).
    """

    spectrum: EigenDecomposition
    eta: float

    @property
    def kl(self) -> float:
        squared = float(self.distance.double().square().sum())
        return float(bounds.fisher_laplace_kl(self._values(), squared, self.scale, self.eta))

    def draw(self, weights: Tensor, seed: int, index: int) -> Tensor:
        return self.draws(weights, seed, range(index, index + 1))[0]

    def draws(self, weights: Tensor, seed: int, indices: range) -> Tensor:
        # several at once read the eigenvectors once: 3.5 times quicker, measured with 300 of 79,510 weights
        z = torch.stack([torch.randn(weights.numel(), generator=generator(seed, index)) for index in indices])
        return self.narrowed(z.to(self.spectrum.vectors)).to(weights)

    def narrowed(self, z: Tensor) -> Tensor:
        """u (..., W) from standard normal z (..., W): the symmetric square root of the covariance times z."""
        values, vectors = self.spectrum.values, self.spectrum.vectors
        if not len(values):
            return self.scale * z
        shrink = -torch.expm1(-0.5 * torch.log1p(self.eta * self.scale**2 * values))  # 1 - (1 + a)^-1/2
        return self.scale * (z - (shrink.to(z) * (z @ vectors.T)) @ vectors)

    def _values(self) -> list[float]:
        return self.spectrum.values.tolist() or [0.0]  # a network without curvature: the prior's own width


@dataclass(frozen=True, eq=False)
class EigenDecomposition:
    """Non-zero eigenvalues (k,) float64 and eigenvectors (k, W), one a row, of F = B^T B."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, factor: Tensor, share: float = _NEGLIGIBLE) -> EigenDecomposition:
        """Build from rows B (R, W), by the R x R Gram matrix: B B^T = U diag(lambda) U^T and V = B^T U / sqrt(lambda).

        Args:
            factor: B, with F = B^T B.
            share: eigenvalues below this share of the largest are dropped, from divergence and draws alike; what is
                left is another F, and a posterior may be shaped by any.

        Raises:
            UsageError: NaN or Inf in B.

        Examples:
            >>> EigenDecomposition.of(torch.tensor([[0.0, 2.0]])).values
            tensor([4.], dtype=torch.float64)
        """
        if not bool(torch.isfinite(factor).all()):
            raise UsageError("got NaN or Inf in the gradients that shape the posterior: check the weights and the loss")
        rows = factor.double()
        values, basis = torch.linalg.eigh(rows @ rows.T)
        kept = values > share * values[-1].clamp_min(0)
        values, basis = values[kept], basis[:, kept]
        vectors = (basis / values.sqrt()).T @ rows
        return cls(values, vectors.to(factor.dtype))


def _without_rounding(kl: float, terms: float) -> float:
    """A sum that is 0 or more: what rounding leaves below it is 0, and more than that stays what it is.

    Args:
        terms: the sum of their sizes.
    """
    return 0.0 if -_ROUNDING * terms <= kl < 0 else kl


def _array(t: Tensor) -> NDArray[np.float64]:
    return t.detach().double().cpu().numpy()


_FloatArray = NDArray[np.float64]
CurvatureKind = Literal["gauss_newton", "fisher"]

_ETAS = tuple(10.0**k for k in (-3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1))  # times n: a Laplace posterior's own is 1
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
    curvature: CurvatureKind = "gauss_newton",
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
    if name not in POSTERIORS:
        raise UnknownName("posterior", name, POSTERIORS)
    if curvature not in get_args(CurvatureKind):
        raise UsageError(f"got curvature={curvature!r}; expected one of {', '.join(get_args(CurvatureKind))}")
    if name == "gaussian":
        ones = torch.ones(len(distance))
        return Family(name, lambda s, width: DiagonalGaussian(distance, s, s * width * ones), _WIDTHS, {})
    etas = tuple(len(minimum.samples) * e for e in _ETAS)
    details: dict[str, str | float] = {"curvature": curvature}
    if name == "fisher_laplace":
        samples = 100 if curvature_samples is None else curvature_samples
        kind = FisherFactor if curvature == "fisher" else GaussNewtonFactor
        spectrum = EigenDecomposition.of(minimum[kind(samples, seed)], _FLAT)
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


def _laplace(distance: Tensor, h: _FloatArray, s: float, eta: float) -> DiagonalGaussian:
    return DiagonalGaussian(distance, s, _single(bounds.diagonal_laplace_sigma(h, s, eta)))


def _uniform(
    distance: Tensor, h: _FloatArray, kappa: _FloatArray | None, rho: float, tau: float, eta: float
) -> UniformBox:
    """sigma_i = min((eta (h_i/3 + rho sqrt(m) kappa_i/9))^-1/2, kappa_i), W1 (9), inside of the prior's box."""
    room = (tau - distance.abs().numpy()) * _INSIDE
    least = np.finfo(np.float32).tiny  # where there is no room, KL is inf
    around = np.maximum(room, least) if kappa is None else kappa
    return UniformBox(distance, tau, _single(bounds.uniform_sigma(h, rho, around, eta)))


def _truncated(
    distance: Tensor, h: _FloatArray, kappa: _FloatArray | None, rho: float, box: float, s: float, eta: float
) -> TruncatedBox:
    """sigma_i = (eta (h_i + rho sqrt(m) kappa_i/3) + 1/s^2)^-1/2 (W1 App. E), cut at kappa_i."""
    around = np.full(len(h), _TRUNCATED_AT * s) if kappa is None else kappa
    if math.isfinite(box) and kappa is None:
        around = np.maximum(np.minimum(around, (box - distance.abs().numpy()) * _INSIDE), np.finfo(np.float32).tiny)
    sigma = bounds.truncated_gaussian_sigma(h, rho, around, s**2, eta)
    return TruncatedBox(distance, s, _single(sigma), torch.from_numpy(around), box)


def _single(sigma: _FloatArray) -> Tensor:
    """As it is drawn with, so that the divergence is of the same numbers."""
    return torch.from_numpy(np.asarray(sigma)).float()
