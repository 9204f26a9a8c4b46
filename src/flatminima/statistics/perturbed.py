"""Loss under random perturbations of the weights, each draw paired with the unperturbed loss of the same samples.

Pairing removes the variance of the choice of samples (606 times less at small noise on an MLP, nothing on a ResNet at
large noise); antithetic pairs can help or hurt and are an option (benchmarks/bench_draws.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima import progress
from flatminima.core.perturbation import Perturbation
from flatminima.core.statistic import Cost, Needs, Statistic
from flatminima.errors import UsageError
from flatminima.statistics.loss_ascent import resolution_of
from flatminima.statistics.outputs import Outputs

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


@dataclass(frozen=True)
class LossRises:
    """Draws of L(w + u) - L(w).

    Attributes:
        values (draws,) float64.
        resolution: what rounding leaves of such a difference, eps of the coarsest dtype times the mean loss at w.
        whole: whether each draw saw all the data.
    """

    values: Tensor
    resolution: float = 0.0
    whole: bool = False


@dataclass(frozen=True)
class PerturbedLoss(Statistic[LossRises]):
    """Draws of L(w + u) - L(w), each on its own block of samples.

    Args:
        perturbation: distribution of u.
        draws: how many u (pairs +u, -u if antithetic).
        samples: of the data each draw sees; blocks follow each other through a random order of the data.
        antithetic: average the differences at +u and -u.
        seed: of draws and of the order.
    """

    perturbation: Perturbation
    draws: int = 100
    samples: int = 512
    antithetic: bool = False
    seed: int = 0

    @property
    def needs(self) -> Needs:
        return Needs.LOSSES

    def __post_init__(self) -> None:
        if self.draws < 1 or self.samples < 1:
            raise UsageError(f"got draws={self.draws}, samples={self.samples}; both must be at least 1")

    def compute(self, minimum: Minimum) -> LossRises:
        return self._drawn(minimum.resolving(self.perturbation, self.seed))

    def _drawn(self, minimum: Minimum) -> LossRises:
        n = len(minimum.samples)
        block = min(self.samples, n)
        order = minimum.samples.order(self.seed)
        everything = Outputs() in minimum or self.draws * block >= n
        base = minimum[Outputs()].losses if everything else None
        ranks = minimum.ranks
        if ranks is None:
            found = self._differences(minimum, range(self.draws), order, base)
        else:
            mine = range(ranks.rank, self.draws, ranks.size)
            found = ranks.total(lambda: self._differences(minimum, mine, order, base))
        differences, before = found
        return LossRises(differences, resolution_of(minimum, float(before.mean())), block == n)

    def _differences(self, minimum: Minimum, draws: range, order: Tensor, base: Tensor | None) -> Tensor:
        """Differences and losses at w (2, draws), of the draws that are this process's; 0 for the others."""
        n = len(minimum.samples)
        block = min(self.samples, n)
        out = torch.zeros(2, self.draws, dtype=torch.float64)
        signs = (1.0, -1.0) if self.antithetic else (1.0,)
        with minimum.open(), torch.no_grad():
            for k in draws:
                indices = order[(torch.arange(block) + k * block) % n]
                out[1, k] = minimum.mean_loss(indices) if base is None else float(base[indices].mean())
                for sign in signs:
                    with self.perturbation.applied(minimum.parameters, self.seed, k, sign):
                        out[0, k] += (minimum.mean_loss(indices) - out[1, k]) / len(signs)
                progress.report("expected sharpness", k + 1, self.draws)
        return out

    def cost(self, minimum: Minimum) -> Cost:
        n = len(minimum.samples)
        passes = self.draws * (1 + self.antithetic) * min(self.samples, n) / n
        return Cost(forward=passes, memory=4 * len(minimum.parameters))
