"""The parts of PertOPT's noise. At the published eta the curvature may never be felt; these numbers tell."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatminima.optim.kernels import kappa, width

_SAMPLE = 1 << 16  # coordinates a quantile is read from; its standard error is then below 0.002
MOSTLY = 0.5  # a share above this is worth a warning


class PerturbationWarning(UserWarning):
    """The noise does something that nobody wants."""


@dataclass(frozen=True)
class Diagnostics:
    """The noise of the coming step.

    Args:
        step: t of the paper; 0 draws no noise.
        kappa_bound: share of coordinates whose sigma is kappa = gamma |w| / ln(1 + epoch) + eps.
        curvature_bound: share whose sigma comes from the curvature.
        gated: share whose sigma is 0 because |gradient| >= beta2.
        relative_noise: sqrt(E ||u||^2) / ||w||.
    """

    step: int
    kappa_bound: float
    curvature_bound: float
    gated: float
    relative_noise: float


class Census:
    """Sums and counts over blocks; divided once."""

    def __init__(self) -> None:
        self._n = 0
        self._sums: list[Tensor] = []

    def add(self, w: Tensor, previous: Tensor, h: Tensor, drift: Tensor, numbers: tuple[Any, ...]) -> None:
        """One block. `numbers`: gamma, eps, scale, pull."""
        sigma = width(previous, h, drift, *numbers)
        bound = kappa(previous, drift.dtype, *numbers[:2])
        is_open = torch.isfinite(drift)
        counts = [(~is_open).sum(), (is_open & (sigma >= bound)).sum()]
        squares = [sigma.double().square().sum() / 3, w.double().square().sum()]
        self._sums.append(torch.stack([t.double().cpu() for t in (*counts, *squares)]))
        self._n += len(w)

    def finish(self, step: int) -> Diagnostics:
        """The shares."""
        if not self._n:
            return Diagnostics(step, 0.0, 0.0, 0.0, 0.0)
        gated, bound, noise, weight = torch.stack(self._sums).sum(0).tolist()
        ratio = math.sqrt(noise / weight) if weight > 0 else (math.inf if noise > 0 else 0.0)
        return Diagnostics(
            step, bound / self._n, (self._n - gated - bound) / self._n, gated / self._n, ratio
        )  # fmt: skip


def warn(found: Diagnostics, already: set[str]) -> None:
    """Once each."""
    if 1 < found.relative_noise < math.inf and "noise" not in already:
        already.add("noise")
        warnings.warn(
            f"at step {found.step} PertOPT's noise is {found.relative_noise:.2g} times as long as the weights, "
            "which destroys training: lower gamma",
            PerturbationWarning,
            stacklevel=4,
        )
    if found.gated > MOSTLY and "gate" not in already:
        already.add("gate")
        warnings.warn(
            f"at step {found.step} {found.gated:.0%} of the gradients are at least beta2 and get no noise: "
            "is the loss a sum, or still scaled? PertOPT's gate is in units of the mean loss",
            PerturbationWarning,
            stacklevel=4,
        )


def threshold(previous: Tensor, h: Tensor, drift: Tensor, gamma: Any, eps: Any, scale: Any, pull: Any) -> Tensor:
    """The eta above which each open coordinate of a sample is bound by its curvature, flat."""
    every = slice(None, None, max(1, len(h) // _SAMPLE))
    previous, h, drift = previous[every], h[every], drift[every]
    bound = kappa(previous, drift.dtype, gamma, eps)
    curvature = (drift * bound).mul_(pull).add_(h)
    found: Tensor = (scale / bound).square_().div_(curvature)
    return found[torch.isfinite(drift) & torch.isfinite(found)]


def choose_eta(thresholds: list[Tensor], share: float) -> float | None:
    """eta at which `share` of the coordinates is bound by curvature; None if nothing tells."""
    every = torch.cat([t.cpu().double() for t in thresholds]) if thresholds else torch.empty(0)
    if not len(every):
        return None
    every = every[:: max(1, len(every) // (8 * _SAMPLE))]
    rank = min(int(share * len(every)), len(every) - 1)
    found = float(every.sort().values[rank])
    return found if math.isfinite(found) and found > 0 else None
