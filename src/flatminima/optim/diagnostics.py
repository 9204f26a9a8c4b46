"""The parts of PertOPT's noise. At the published eta the curvature may never be felt; these numbers tell."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatminima.optim.kernels import kappa, width
from flatminima.optim.rounding import PerturbationWarning, is_narrow, judge, of_uniform

__all__ = ["Census", "Diagnostics", "PerturbationWarning", "choose_eta", "threshold", "warn"]

_SAMPLE = 1 << 16  # coordinates a quantile is read from; its standard error is then below 0.002
MOSTLY = 0.5  # a share above this is worth a warning


@dataclass(frozen=True)
class Diagnostics:
    """The noise of the coming step.

    Args:
        step: t of the paper; 0 draws no noise.
        kappa_bound: share of coordinates whose sigma is kappa = gamma |w| / ln(1 + epoch) + eps.
        curvature_bound: share whose sigma comes from the curvature.
        gated: share whose sigma is 0 because |gradient| >= beta2.
        relative_noise: sqrt(E ||d||^2) / ||w||, where d is what rounding to the weights' dtype leaves of u.
        arrived: 1 - E ||d - u||^2 / E ||u||^2 over weights of 16 bits: 0 where all noise is rounded away there.
    """

    step: int
    kappa_bound: float
    curvature_bound: float
    gated: float
    relative_noise: float
    arrived: float = 1.0


class Census:
    """Sums and counts over blocks; divided once."""

    def __init__(self) -> None:
        self._n = 0
        self.narrow: set[torch.dtype] = set()  # dtypes of few bits that were met
        self._sums: list[Tensor] = []

    def add(self, w: Tensor, previous: Tensor, h: Tensor, drift: Tensor, numbers: tuple[Any, ...]) -> None:
        """One block. `numbers`: gamma, eps, scale, pull."""
        sigma = width(previous, h, drift, *numbers)
        bound = kappa(previous, drift.dtype, *numbers[:2])
        is_open = torch.isfinite(drift)
        counts = [(~is_open).sum(), (is_open & (sigma >= bound)).sum()]
        wanted = kept = sigma.double().square()
        missed = wanted.new_zeros(())
        if is_narrow(w.dtype):
            self.narrow.add(w.dtype)
            kept, missed = of_uniform(w, sigma)
        else:
            wanted = missed
        squares = [kept.sum() / 3, w.double().square().sum(), missed.sum(), wanted.sum()]
        self._sums.append(torch.stack([t.double().cpu() for t in (*counts, *squares)]))
        self._n += len(w)

    def finish(self, step: int) -> Diagnostics:
        """The shares."""
        if not self._n:
            return Diagnostics(step, 0.0, 0.0, 0.0, 0.0)
        gated, bound, noise, weight, missed, wanted = torch.stack(self._sums).sum(0).tolist()
        ratio = math.sqrt(noise / weight) if weight > 0 else (math.inf if noise > 0 else 0.0)
        return Diagnostics(
            step, bound / self._n, (self._n - gated - bound) / self._n, gated / self._n, ratio,
            1.0 - missed / wanted if wanted > 0 else 1.0,
        )  # fmt: skip


def warn(found: Diagnostics, dtypes: set[torch.dtype], already: set[str], *, refuse: bool) -> None:
    """Once each; where all noise is rounded away, refuse."""
    if dtypes and "rounding" not in already:
        length = found.arrived if refuse else 1.0
        if judge("PertOPT's noise", found.arrived, length, dtypes, "raise gamma or eps"):
            already.add("rounding")
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
