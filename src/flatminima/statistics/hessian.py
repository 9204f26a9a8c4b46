"""Diagonal and trace of the mean loss's Hessian or Gauss-Newton matrix, from probes or a product a parameter.

Note: one probe a group of samples is worth as much as one probe for all of them, at a fraction of the cost.
Traces add over samples, so each group has probes of its own, and their spread shows the error of both draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.perturbation import generator
from flatminima.core.statistic import Cost, Fold, Needs, Reads
from flatminima.errors import Undefined, UsageError
from flatminima.statistics.curvature import Curvature, Graph, check_curvature

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

GROUPS = 20  # parts of the samples whose spread is the standard error
_PRODUCT_COST = 2.0  # forward-backward passes of one product, its share of the graph included
_EXACT_LIMIT = 3_000  # parameters up to which a product per coordinate is reasonable


@dataclass(frozen=True)
class ProbedHessian:
    """Hutchinson's estimates.

    Attributes:
        diagonal (W,) float64: mean over samples and probes of v * (C v).
        traces (groups, probes) float64: v^T C_g v of each probe, C_g the mean over group g.
        layers (P, groups, probes) float64: the share of each parameter in it; None: not known.
        names: of the P parameters.
        sizes (groups,): samples of each.
        population: samples there are.
    """

    diagonal: Tensor
    traces: Tensor
    sizes: Tensor
    population: int
    layers: Tensor | None = None
    names: tuple[str, ...] = ()


@dataclass
class _Sums:
    diagonal: Tensor
    layers: Tensor  # v^T C v by parameter, summed over samples
    counts: Tensor  # samples of each group
    population: int
    names: tuple[str, ...]
    parts: tuple[int, ...]  # entries of each parameter


@dataclass(frozen=True)
class HessianProbes(Fold[_Sums, ProbedHessian]):
    """Hutchinson's diagonal and trace from Rademacher probes: E[v * Cv] = diag C, E[v^T C v] = tr C.

    Args:
        probes: how many v a group.
        samples: of the data, drawn by `seed`; None: all.
        seed: of probes and samples; probe k of group g is generator(seed, g * probes + k)'s draw.
        curvature: C, ``"hessian"`` or ``"gauss_newton"``.
        groups: parts of the samples, each with probes of its own; 1: the same probes for all samples.

    Raises:
        UsageError: an unknown curvature, or a count below 1.

    Source:
        Hutchinson 1990; the diagonal: Bekas, Kokiopoulou & Saad 2007.
    """

    probes: int = 10
    samples: int | None = None
    seed: int = 0
    curvature: Curvature = "hessian"
    groups: int = 1

    reads = Reads.GRAPH

    @property
    def needs(self) -> Needs:
        return Needs.PRODUCTS if self.curvature == "hessian" else Needs.GAUSS_NEWTON

    def __post_init__(self) -> None:
        check_curvature(self.curvature)
        if self.probes < 1 or self.groups < 1:
            raise UsageError(f"got probes={self.probes}, groups={self.groups}; both must be at least 1")

    @property
    def order_seed(self) -> int | None:
        return None if self.samples is None and self.groups == 1 else self.seed

    def limit(self, minimum: Minimum) -> int:
        n = len(minimum.samples)
        return n if self.samples is None else min(self.samples, n)

    def init(self, minimum: Minimum) -> _Sums:
        groups = len(group_edges(self.limit(minimum), self.groups)) - 1
        parameters = minimum.parameters
        zeros = torch.zeros(len(parameters), dtype=torch.float64, device=minimum.device)
        return _Sums(
            zeros,
            torch.zeros(len(parameters.names), groups, self.probes, dtype=torch.float64),
            torch.zeros(groups, dtype=torch.float64),
            len(minimum.samples),
            parameters.names,
            tuple(p.numel() for p in parameters.tensors),
        )

    def update(self, state: _Sums, batch: Batch) -> _Sums:
        for g, part in self._parts(batch):
            graph = Graph(part, self.curvature)
            for k in range(self.probes):
                probe = rademacher(graph.zeros(), self.seed, g * self.probes + k)
                found = probe.double() * graph.product(probe)
                state.diagonal += found
                state.layers[:, g, k] += torch.stack([own.sum() for own in found.split(state.parts)]).cpu()
            state.counts[g] += len(part)
        return state

    def _parts(self, batch: Batch) -> Iterator[tuple[int, Batch]]:
        """The batch cut where a group ends; what lies beyond the last is left out."""
        edges = group_edges(self.limit(batch.minimum), self.groups)
        stop = batch.start + len(batch)
        for g, (one, two) in enumerate(itertools.pairwise(edges)):
            start, end = max(one, batch.start), min(two, stop)
            if (start, end) == (batch.start, stop):
                yield g, batch
            elif start < end:
                yield g, batch.minimum.batch(batch.indices[start - batch.start : end - batch.start], start)

    def merge(self, left: _Sums, right: _Sums) -> _Sums:
        return _Sums(
            left.diagonal + right.diagonal, left.layers + right.layers, left.counts + right.counts, left.population,
            left.names, left.parts,
        )  # fmt: skip

    def finish(self, state: _Sums) -> ProbedHessian:
        count = float(state.counts.sum()) * self.probes
        layers = state.layers / state.counts.unsqueeze(1)
        return ProbedHessian(
            state.diagonal.cpu() / count, layers.sum(0), state.counts.long(), state.population, layers, state.names
        )

    def without_sweep(self, minimum: Minimum) -> ProbedHessian:
        """Compute from products of the network's own; the diagonal is this process's part."""
        order = torch.arange(len(minimum.samples)) if self.order_seed is None else minimum.samples.order(self.seed)
        edges = group_edges(self.limit(minimum), self.groups)
        traces = torch.zeros(len(edges) - 1, self.probes, dtype=torch.float64)
        sizes = torch.tensor([b - a for a, b in itertools.pairwise(edges)])
        diagonal: Tensor | None = None
        for g, (start, stop) in enumerate(itertools.pairwise(edges)):
            products = minimum.own_products(order[start:stop], self.curvature)
            space = products.space
            for k in range(self.probes):
                probe = space.part(signs(space.size, self.seed, g * self.probes + k))
                found = probe.to(minimum.device).double() * products(probe.to(minimum.device, products.precision))
                traces[g, k] = float(space.total(found.sum()))
                part = found * (stop - start)
                diagonal = part if diagonal is None else diagonal.add_(part)
        assert diagonal is not None
        return ProbedHessian(diagonal.cpu() / (float(sizes.sum()) * self.probes), traces, sizes, len(minimum.samples))

    def cost(self, minimum: Minimum) -> Cost:
        share = self.limit(minimum) / len(minimum.samples)
        return Cost(share, share * (1 + _PRODUCT_COST * self.probes), 16 * len(minimum.parameters))


def group_edges(samples: int, groups: int) -> list[int]:
    """Begin and end of groups of (nearly) equal size; no group is empty.

    Examples:
        >>> group_edges(7, 3), group_edges(2, 9)
        ([0, 2, 4, 7], [0, 1, 2])
    """
    groups = min(groups, samples)
    return [samples * g // groups for g in range(groups + 1)]


@dataclass(frozen=True)
class HessianDiagonal(Fold["list[Tensor]", Tensor]):
    """The exact diagonal (W,) float64, one product a parameter; for small networks.

    Raises:
        Undefined: more than 3,000 parameters.
    """

    reads = Reads.GRAPH

    def init(self, minimum: Minimum) -> list[Tensor]:
        size = len(minimum.parameters)
        if size > _EXACT_LIMIT:
            raise Undefined(
                f"an exact Hessian diagonal of {size} parameters takes as many products (limit {_EXACT_LIMIT}): "
                "use 'gauss_newton' or 'hutchinson'"
            )
        zeros = torch.zeros(size, dtype=torch.float64, device=minimum.device)
        return [zeros, torch.zeros((), dtype=torch.float64)]

    def update(self, state: list[Tensor], batch: Batch) -> list[Tensor]:
        graph = Graph(batch)
        for i in range(len(state[0])):
            basis = graph.zeros()
            basis[i] = 1.0
            state[0][i] += graph.product(basis)[i]
        state[1] += len(batch)
        return state

    def merge(self, left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
        return [a + b for a, b in zip(left, right, strict=True)]

    def finish(self, state: list[Tensor]) -> Tensor:
        return (state[0] / state[1]).cpu()

    def cost(self, minimum: Minimum) -> Cost:
        return Cost(1.0, 1.0 + _PRODUCT_COST * len(minimum.parameters))


def rademacher(like: Tensor, seed: int, index: int) -> Tensor:
    """Entries +-1, the same on every device."""
    return signs(like.numel(), seed, index).reshape(like.shape).to(like)


def signs(size: int, seed: int, index: int) -> Tensor:
    """Entries +-1 (size,) int8."""
    return torch.randint(0, 2, (size,), generator=generator(seed, index), dtype=torch.int8).mul_(2).sub_(1)
