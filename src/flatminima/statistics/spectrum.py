"""Spectral density of the curvature by stochastic Lanczos quadrature, and what the samples and probes leave open.

m Lanczos steps from a random vector give nodes and weights that integrate polynomials of degree 2m - 1 exactly under
its spectral measure; over random vectors that measure is the density of all eigenvalues. What a group of samples adds
is kept in the same small space, so that any spectral function tr f(C) has an error bar for the draw of the samples too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flatminima.core.statistic import Cost, Statistic
from flatminima.errors import UsageError
from flatminima.statistics.curvature import Curvature, Products, check_curvature
from flatminima.statistics.hessian import GROUPS, group_edges, rademacher
from flatminima.statistics.lanczos import lanczos

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

_Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Spectrum:
    """Quadrature of the spectral density, one row a probe.

    Attributes:
        nodes (probes, m) float64: Ritz values; rows that ended early are filled up with weight 0.
        weights (probes, m) float64: sum to 1 in each row.
        reactions (probes, groups, m) float64: d (node's share) by the curvature of each group of samples.
        sizes (groups,): samples of each group.
        population: samples there are.
        parameters: eigenvalues there are, W.
        rounding: eps of the products' precision times the largest |node|.
    """

    nodes: Tensor
    weights: Tensor
    reactions: Tensor
    sizes: Tensor
    population: int
    parameters: int
    rounding: float = 0.0

    def trace(self, f: _Function) -> Tensor:
        """Estimates of tr f(C), one a probe: W times the quadrature's sum, (probes,).

        Examples:
            >>> one = torch.ones(1, 1, dtype=torch.float64)
            >>> Spectrum(2 * one, one, one.unsqueeze(0), torch.tensor([5]), 5, 3).trace(torch.square).tolist()
            [12.0]
        """
        return self.parameters * (self.weights * f(self.nodes)).sum(1)

    def responses(self, slope: _Function) -> Tensor:
        """d tr f(C) by the curvature C_g of each group, mean over probes, for slope = f', (groups,)."""
        moved = (self.reactions * slope(self.nodes).unsqueeze(1)).sum(2)
        return self.parameters * moved.mean(0)

    def variances(self, f: _Function, slope: _Function) -> tuple[float, float]:
        """Variances of the mean of `trace`: of the probes, and to first order of the samples; nan where unseen.

        The samples' is (1 - s/n) B / G, B the variance between the groups' responses, s of n samples (Cochran 1977).
        """
        traces, groups = self.trace(f), len(self.sizes)
        probes = float(traces.var()) / len(traces) if len(traces) > 1 else math.nan
        left_out = 1 - float(self.sizes.sum()) / self.population
        if left_out == 0:
            return probes, 0.0
        return probes, left_out * float(self.responses(slope).var()) / groups if groups > 1 else math.nan

    def density(self, grid: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """Density (points,) of eigenvalues smoothed by a Gaussian of this width, and its standard error over probes.

        Args:
            grid (points,): where.
            width: standard deviation of the Gaussian, positive.

        Raises:
            UsageError: a width that is not positive.

        Source:
            Ghorbani, Krishnan & Xiao 2019, arXiv 1901.10159, Algorithm 2.
        """
        if not width > 0:
            raise UsageError(f"got width={width!r}; a Gaussian's width is positive")
        scaled = (grid.double() - self.nodes.unsqueeze(2)) / width  # (probes, m, points)
        bells = (-0.5 * scaled.square()).exp() / (width * math.sqrt(2 * math.pi))
        each = (self.weights.unsqueeze(2) * bells).sum(1)
        spread = each.std(0) / math.sqrt(len(each)) if len(each) > 1 else torch.full_like(each[0], math.nan)
        return each.mean(0), spread


@dataclass(frozen=True)
class SpectralDensity(Statistic[Spectrum]):
    """Stochastic Lanczos quadrature of the curvature of the mean loss over `samples` random samples.

    Args:
        probes: random vectors of +-1 entries.
        steps: of Lanczos for each; steps x W numbers are kept.
        samples: of the data, drawn by seed; None: all.
        seed: of samples and probes.
        curvature: ``"hessian"`` or ``"gauss_newton"``.

    Raises:
        UsageError: a count below 1, an unknown curvature.

    Source:
        Golub & Meurant 1994; Ubaru, Chen & Saad 2017; for networks Ghorbani, Krishnan & Xiao 2019, arXiv 1901.10159.
    """

    probes: int = 4
    steps: int = 30
    samples: int | None = 500
    seed: int = 0
    curvature: Curvature = "hessian"

    def __post_init__(self) -> None:
        check_curvature(self.curvature)
        if self.probes < 1 or self.steps < 1:
            raise UsageError(f"got probes={self.probes}, steps={self.steps}; both must be at least 1")

    def compute(self, minimum: Minimum) -> Spectrum:
        indices = minimum.samples.order(self.seed)[: self.samples]
        parts = [indices[a:b] for a, b in itertools.pairwise(group_edges(len(indices), GROUPS))]
        with minimum.open():
            products = Products(minimum, indices, self.curvature)
            rows = [self._row(products, parts, k) for k in range(self.probes)]
        nodes, weights, reactions = (pad_sequence(list(row), True) for row in zip(*rows, strict=True))
        return Spectrum(
            nodes,
            weights,
            reactions.transpose(1, 2),
            torch.tensor([len(part) for part in parts]),
            len(minimum.samples),
            products.size,
            torch.finfo(products.precision).eps * float(nodes.abs().max()),
        )

    def _row(self, products: Products, parts: list[Tensor], k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes (m,), weights (m,) and reactions (m, groups) of probe k."""
        like = torch.empty(products.size, dtype=torch.float64, device=products.minimum.device)
        probe = rademacher(like, self.seed, k) / math.sqrt(products.size)
        found = lanczos(products, probe, self.steps, products.precision)
        values, vectors = found.eigh()
        images = (Products(products.minimum, part, self.curvature)(probe) for part in parts)  # C_g v, (W,) each
        inside = torch.stack([(found.basis @ image.to(found.basis.dtype)).double() for image in images], 1).cpu()
        return values, vectors[0].square(), vectors[0].unsqueeze(1) * (vectors.T @ inside)

    def cost(self, minimum: Minimum) -> Cost:
        n = len(minimum.samples)
        share = min(self.samples or n, n) / n
        products = self.probes * (self.steps + 1)
        return Cost(2 * share, share * (2 + 2 * products), 8 * self.steps * len(minimum.parameters))
