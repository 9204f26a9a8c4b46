"""`Perturbation`: the noise u around the weights w, one concept for sharpness, bounds and certificates.

A draw is made from (seed, index) alone, so any draw can be made again, on any device or rank, without being stored.
The generator runs on the CPU in float32 whatever the model's device, so that draws agree everywhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatminima.core.parameters import Parameters
from flatminima.errors import UsageError

_RESOLVED = 0.01  # of a step's length, lost where w + u is rounded
_BLOCK = 1 << 22  # weights at a time


@dataclass(frozen=True)
class Relative:
    """Scale by recipe: sigma_i = alpha (slope |w_i| + offset). Hashes by value.

    Neyshabur et al. 2017 use slope 10, offset 1 for expected sharpness and slope 1, offset 1 for worst-case sharpness;
    Wang et al. use kappa_i = gamma |w_i| + epsilon, i.e. alpha=1, slope=gamma, offset=epsilon.
    """

    alpha: float
    slope: float = 1.0
    offset: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"got {name}={value!r}; a scale is finite and not negative")

    def of(self, weights: Tensor) -> Tensor:
        """sigma (W,) for flat weights (W,)."""
        return weights.abs().mul_(self.slope).add_(self.offset).mul_(self.alpha)  # of large models no second vector


@dataclass(frozen=True, eq=False)
class Explicit:
    """Scale by tensor (W,), positive and finite; hashes by identity."""

    sigma: Tensor

    def __post_init__(self) -> None:
        if not bool((torch.isfinite(self.sigma) & (self.sigma >= 0)).all()):
            raise UsageError("got a scale with NaN, Inf or negative entries; sigma_i must be finite and >= 0")

    def of(self, weights: Tensor) -> Tensor:
        if self.sigma.shape != weights.shape:
            raise UsageError(
                f"got a scale of shape {tuple(self.sigma.shape)} for {weights.numel()} trainable parameters; "
                "give one sigma a parameter, flat"
            )
        return self.sigma.to(weights)


_Scale = Relative | Explicit


@dataclass(frozen=True)
class Perturbation(ABC):
    """Independent zero-mean noise u_i with scale sigma_i."""

    scale: _Scale

    @abstractmethod
    def standard(self, size: int, generator: torch.Generator) -> Tensor:
        """Noise of scale 1, (size,) float32."""

    @property
    @abstractmethod
    def second_moment(self) -> float:
        """E u_i^2 / sigma_i^2."""

    def draw(self, weights: Tensor, seed: int, index: int) -> Tensor:
        """u (W,) for flat weights (W,), in their dtype and on their device."""
        return self.scaled(self.standard(weights.numel(), generator(seed, index)), weights)

    def scaled(self, noise: Tensor, weights: Tensor) -> Tensor:
        """u for noise of scale 1."""
        return noise.to(weights).mul_(self.scale.of(weights))

    def _moved(self, parameters: Parameters, weights: Tensor, seed: int, index: int, sign: float) -> Tensor:
        """w + sign u for flat weights w."""
        noise = parameters.part(self.standard(len(parameters), generator(seed, index)))
        return self.scaled(noise, weights).mul_(sign).add_(weights)

    @contextmanager
    def applied(self, parameters: Parameters, seed: int, index: int, sign: float = 1.0) -> Iterator[None]:
        """Weights w + sign u within the block, w bit for bit afterwards, also on an exception."""
        weights = parameters.flat()
        try:
            parameters.assign(self._moved(parameters, weights, seed, index, sign))
            yield
        finally:
            parameters.assign(weights)


def resolved(weights: Tensor, step: Tensor) -> bool:
    """Whether w + step, rounded to the weights' precision, is away from w by what it should be, to one per cent."""
    size, error = 0.0, 0.0
    for w, u in zip(weights.split(_BLOCK), step.split(_BLOCK), strict=True):
        wanted = w.double() + u.double()
        size += float(u.double().square().sum())
        error += float((wanted.to(w.dtype).double() - wanted).square().sum())
    return error <= _RESOLVED**2 * size


@dataclass(frozen=True)
class Uniform(Perturbation):
    """u_i ~ U(-sigma_i, sigma_i); E u_i^2 = sigma_i^2 / 3."""

    def standard(self, size: int, generator: torch.Generator) -> Tensor:
        return torch.rand(size, generator=generator).mul_(2.0).sub_(1.0)

    @property
    def second_moment(self) -> float:
        return 1.0 / 3.0


@dataclass(frozen=True)
class OneCoordinate(Perturbation):
    """u_i ~ U(-sigma_i, sigma_i) for one coordinate i, 0 for the others."""

    coordinate: int = 0

    def standard(self, size: int, generator: torch.Generator) -> Tensor:
        noise = torch.zeros(size)
        noise[self.coordinate] = torch.rand(1, generator=generator).mul_(2.0).sub_(1.0)
        return noise

    @property
    def second_moment(self) -> float:
        return 1.0 / 3.0


@dataclass(frozen=True)
class Gaussian(Perturbation):
    """u_i ~ N(0, sigma_i^2)."""

    def standard(self, size: int, generator: torch.Generator) -> Tensor:
        return torch.randn(size, generator=generator)

    @property
    def second_moment(self) -> float:
        return 1.0


@dataclass(frozen=True)
class TruncatedGaussian(Perturbation):
    """u_i ~ N(0, sigma_i^2) given |u_i| < bound * sigma_i.

    E u_i^2 = sigma_i^2 (1 - 2 a phi(a) / Z), Z = erf(a / sqrt 2), a = bound (W1 App. B, exact form of the sheet).
    """

    bound: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise UsageError(f"got bound={self.bound!r}; truncation needs a positive number of sigmas")

    def standard(self, size: int, generator: torch.Generator) -> Tensor:
        # inverse distribution function in float64: |u| <= bound exactly, no rejection loop whose length varies
        z = math.erf(self.bound / math.sqrt(2.0))
        uniform = torch.rand(size, generator=generator, dtype=torch.float64).mul_(2.0).sub_(1.0)
        return (math.sqrt(2.0) * torch.erfinv(z * uniform)).clamp_(-self.bound, self.bound).float()

    @property
    def second_moment(self) -> float:
        a = self.bound
        density = math.exp(-a * a / 2.0) / math.sqrt(2.0 * math.pi)
        return 1.0 - 2.0 * a * density / math.erf(a / math.sqrt(2.0))


def generator(seed: int, index: int) -> torch.Generator:
    """A CPU generator for draw `index` of `seed`; neighbouring pairs give unrelated streams (splitmix64)."""
    return torch.Generator().manual_seed(mix(seed, index))


def mix(seed: int, index: int) -> int:
    """Two integers to one 63-bit seed by splitmix64's finaliser (Steele, Lea, Flood 2014)."""
    mask = (1 << 64) - 1
    z = ((seed & mask) * 0x9E3779B97F4A7C15 + (index + 1) * 0xD1B54A32D192ED03) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1


def describe(perturbation: Perturbation) -> dict[str, Any]:
    """Describe it for the details of an Estimate."""
    scale = perturbation.scale
    sizes = dict(vars(scale)) if isinstance(scale, Relative) else {"tensor": int(scale.sigma.numel())}
    return {"distribution": type(perturbation).__name__, "scale": sizes}
