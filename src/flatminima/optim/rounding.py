"""Displacements in weights of few bits: a part below half of their spacing is rounded away, and the rest arrives.

In bfloat16 a weight's neighbours are 1/256 to 1/128 of it apart. Without a look, noise and ascents would vanish there,
and what trains is the base optimizer under another name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from flatminima.errors import UsageError

_FINE = 64  # spacings: of a wider noise the rounding takes less than 1e-4
_MOSTLY = 0.5  # a share that arrives, below which a warning tells
_NOTHING = 1e-2  # of the squared length: a tenth of the length, in the weights that are nearly 0


class PerturbationWarning(UserWarning):
    """The noise does something that nobody wants."""


def is_narrow(dtype: torch.dtype) -> bool:
    """Whether displacements of use may fall between its numbers: 16 bits, not 32, where the smallest is 1e-7 of w."""
    return torch.finfo(dtype).bits < 32


def of_uniform(w: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """3 E d^2 and 3 E (d - u)^2 of each coordinate, float64, where d = round(w + u) - w and u ~ U(-sigma, sigma).

    Closed forms on the grid around w: with s = sigma / spacing, integrals of round(x)^2 and of (round(x) - x)^2.
    """
    spacing = _spacing(w, sigma.dtype)
    s = sigma / spacing
    whole, nearest = s.floor(), (s + 0.5).floor()
    rest = s - whole
    rest = torch.where(rest <= 0.5, rest**3 / 3, 1 / 12 - (1 - rest) ** 3 / 3)
    kept = nearest * (nearest - 1) * (2 * nearest - 1) / 6 + nearest**2 * (s - nearest + 0.5)
    unit = 3 * spacing.double().square() / s.double().clamp_min(1e-300)
    fine = s > _FINE
    wide = sigma.double().square()
    return torch.where(fine, wide, unit * kept), torch.where(
        fine, spacing.double().square() / 4, unit * (whole / 12 + rest)
    )


def of_steps(moved: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """||d||^2, ||d - e||^2 and ||e||^2 over (weights, what they were, e that was added), (3,) float64."""
    sums = torch.zeros(3, dtype=torch.float64)
    for w, original, e in moved:
        d = w.to(e.dtype) - original.to(e.dtype)
        squares = [torch.linalg.vector_norm(t).double().square() for t in (d, d - e, e)]
        sums = sums.to(w.device) + torch.stack(squares)
    return sums


def judge(what: str, arrived: float, length: float, dtypes: Iterable[torch.dtype], remedy: str) -> bool:
    """Warn where most of a displacement does not arrive, and refuse where nothing does; whether it was warned.

    Args:
        what: of whom, and remedy: what else helps, for the message.
        arrived: 1 - (what is missing / what was wanted), both squared. length: of what is there / wanted, squared.
    """
    name = str(min(dtypes, key=lambda dtype: torch.finfo(dtype).bits)).removeprefix("torch.")
    todo = f"keep float32 weights and compute in autocast, or {remedy}"
    if length < _NOTHING:
        raise UsageError(f"{what} is rounded away in {name} weights, and the base optimizer would train alone: {todo}")
    if arrived < _MOSTLY:
        warnings.warn(
            f"{max(arrived, 0.0):.0%} of {what} is left after rounding in {name} weights: {todo}",
            PerturbationWarning,
            stacklevel=5,
        )
    return arrived < _MOSTLY


def _spacing(w: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance to the next number of w's own dtype."""
    info = torch.finfo(w.dtype)
    exponent = torch.frexp(w.to(dtype)).exponent - 1
    spacing = torch.ldexp(torch.full_like(exponent, info.eps, dtype=dtype), exponent)
    return torch.where(w == 0, 0.0, spacing).clamp_min(max(info.tiny * info.eps, torch.finfo(dtype).tiny))
