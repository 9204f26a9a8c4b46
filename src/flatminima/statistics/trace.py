"""The trace of the curvature by other means than Hutchinson's: sketches of each group, or exactly, column by column."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.layer_gradient import LayerGradient
from flatminima.core.statistic import Cost, Fold, Reads, Statistic
from flatminima.errors import UsageError
from flatminima.statistics.curvature import Curvature, Products, check_curvature
from flatminima.statistics.hessian import group_edges
from flatminima.statistics.moments import Moments
from flatminima.statistics.piecewise_linear import refuse_unless_piecewise_linear
from flatminima.statistics.sketch import hutch_pp_blocks, xtrace_blocks

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

Sketch = Literal["hutch++", "xtrace"]


@dataclass(frozen=True)
class GroupTraces:
    """Traces of the mean curvature of each group of samples.

    Attributes:
        values (G,) float64.
        variances (G,) float64: of each value given its samples; None where no trustworthy one is known.
        sizes (G,): samples of each group.
        population: samples there are.
        layers (P, G) float64: the share of each parameter's block in `values`; None: not known.
        layer_variances (P, G) float64: of these, as `variances`.
        names: of the P parameters.
        moments: in place of the last three, where groups are single samples.
    """

    values: Tensor
    variances: Tensor | None
    sizes: Tensor
    population: int
    layers: Tensor | None = None
    layer_variances: Tensor | None = None
    names: tuple[str, ...] = ()
    moments: Moments | None = None


@dataclass(frozen=True)
class SketchedTraces(Statistic[GroupTraces]):
    """Traces of groups of samples by Hutch++ or XTrace, each group with a sketch of its own.

    Args:
        method: ``"hutch++"`` or ``"xtrace"``.
        products: with each group's curvature, at least 6.
        samples: of the data, drawn by seed; None: all.
        groups: of (nearly) equal size.
        seed: of samples and probes.
        curvature: ``"hessian"`` or ``"gauss_newton"``.

    Raises:
        UsageError: an unknown method or curvature, too few products.
    """

    method: Sketch = "xtrace"
    products: int = 12
    samples: int | None = 2000
    groups: int = 20
    seed: int = 0
    curvature: Curvature = "hessian"

    def __post_init__(self) -> None:
        check_curvature(self.curvature)
        if self.method not in get_args(Sketch):
            raise UsageError(f"got method={self.method!r}; expected one of {', '.join(get_args(Sketch))}")

    def compute(self, minimum: Minimum) -> GroupTraces:
        n = len(minimum.samples)
        order = minimum.samples.order(self.seed)[: self.samples]
        edges = group_edges(len(order), self.groups)
        sketch = hutch_pp_blocks if self.method == "hutch++" else xtrace_blocks
        parts = [p.numel() for p in minimum.parameters.tensors]
        found = []
        with minimum.open():
            for g, (start, stop) in enumerate(itertools.pairwise(edges)):
                products = Products(minimum, order[start:stop], self.curvature)
                found.append(torch.stack(sketch(products, parts, self.products, self.seed, g)))
        means, variances = torch.stack(found, 2).unbind(0)  # (1 + P, G) each: the whole, then its blocks
        seen = variances if self.method == "hutch++" else None
        return GroupTraces(
            means[0],
            None if seen is None else seen[0],
            torch.tensor(edges).diff(),
            n,
            means[1:],
            None if seen is None else seen[1:],
            minimum.parameters.names,
        )

    def cost(self, minimum: Minimum) -> Cost:
        n = len(minimum.samples)
        share = min(self.samples or n, n) / n
        return Cost(share, share * (1 + 2 * self.products), 24 * self.products * len(minimum.parameters))


@dataclass(frozen=True)
class ExactTraces(Fold["_Traces", GroupTraces]):
    """tr J_i^T (d2 loss / d output2) J_i of each sample, exact, in one backward pass a class; groups of one sample.

    Args:
        samples: of the data, drawn by seed; None: all.
        seed: of the draw.
        curvature: ``"gauss_newton"``, or ``"hessian"`` where it has the same diagonal: piecewise-linear networks.

    Raises:
        Undefined: for the Hessian of a network that is not piecewise linear in each weight.
    """

    samples: int | None = None
    seed: int = 0
    curvature: Curvature = "gauss_newton"

    reads = Reads.OUTPUTS | Reads.COLUMNS

    def __post_init__(self) -> None:
        check_curvature(self.curvature)

    @property
    def order_seed(self) -> int:
        return self.seed

    def limit(self, minimum: Minimum) -> int:
        n = len(minimum.samples)
        return n if self.samples is None else min(self.samples, n)

    def init(self, minimum: Minimum) -> _Traces:
        if self.curvature == "hessian":
            refuse_unless_piecewise_linear(minimum)
        names = minimum.parameters.names
        zeros = torch.zeros(self.limit(minimum), dtype=torch.float64)
        return _Traces(zeros, {}, Moments.of(names, {}, 0), len(minimum.samples))

    def receive(self, state: _Traces, layer: LayerGradient, batch: Batch) -> None:
        for name, products in layer.grams(len(batch)).items():
            found = products.reshape(-1)
            state.now[name] = found if name not in state.now else state.now[name] + found

    def update(self, state: _Traces, batch: Batch) -> _Traces:
        part = state.values[batch.start : batch.start + len(batch)]
        own = {name: found[: len(part)].cpu() for name, found in state.now.items()}
        for found in own.values():
            part += found
        state.layers += Moments.of(state.layers.names, own, len(part))
        state.now = {}
        return state

    def merge(self, left: _Traces, right: _Traces) -> _Traces:
        return _Traces(left.values + right.values, {}, left.layers + right.layers, left.population)

    def finish(self, state: _Traces) -> GroupTraces:
        sizes, zeros = torch.ones(len(state.values), dtype=torch.int64), torch.zeros_like(state.values)
        return GroupTraces(state.values, zeros, sizes, state.population, moments=state.layers)


@dataclass
class _Traces:
    values: Tensor  # at their positions in the order
    now: dict[str, Tensor]  # of the batch whose gradients arrive now, by parameter
    layers: Moments
    population: int
