"""Diagonals made of squared gradients: the empirical Fisher's and the Gauss-Newton matrix's.

For piecewise-linear networks in eval mode the Gauss-Newton diagonal *is* the Hessian's almost everywhere, exact in one
backward pass a class. The empirical Fisher's ranks but does not calibrate: at an interpolating minimum it is off
by orders of magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.layer_gradient import LayerGradient, Unit, outer_squares
from flatminima.core.statistic import Cost, Fold, Reads, Statistic
from flatminima.errors import UsageError
from flatminima.statistics.curvature import Curvature, Products, check_curvature
from flatminima.statistics.piecewise_linear import refuse_unless_piecewise_linear
from flatminima.statistics.sketch import xdiag

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


@dataclass
class _Sum:
    total: dict[str, Tensor]
    sizes: dict[str, int]
    stop: int
    count: int = 0
    waiting: dict[str, tuple[Unit, Tensor, Tensor, Tensor]] = field(default_factory=dict)  # layer, a, sum of e^2, top

    @classmethod
    def empty(cls, minimum: Minimum, stop: int) -> _Sum:
        return cls({}, {name: p.numel() for name, p in minimum.parameters}, stop)

    def inside(self, batch: Batch) -> Tensor:
        """1.0 for the rows that belong to the fold's share of the data, (batch,) float64."""
        inside = torch.arange(batch.start, batch.start + len(batch)) < self.stop
        return inside.double().to(batch.outputs.device)

    def add(self, layer: LayerGradient, weights: Tensor) -> None:
        """One layer under one column; what is linear in the squared output gradient waits for the other columns."""
        factors = layer.factors()
        if factors is None:
            self._count(layer.squares(weights))
            return
        unit, a, e = factors
        top = weights.max().clamp_min(torch.finfo(torch.float64).tiny)  # as in LayerGradient.squares
        squares = e.square() * (weights / top).to(e.dtype).unsqueeze(1)
        if layer.name in self.waiting:
            squares += self.waiting[layer.name][2]
        self.waiting[layer.name] = unit, a, squares, top

    def flush(self) -> None:
        """All columns of a batch have arrived."""
        for unit, a, squares, top in self.waiting.values():
            self._count({name: top * found for name, found in outer_squares(unit, a, squares).items()})
        self.waiting.clear()

    def _count(self, found: dict[str, Tensor]) -> None:
        for name, squares in found.items():
            if name in self.total:
                self.total[name] += squares
            else:
                self.total[name] = squares

    def flat(self) -> Tensor:
        """The mean, (W,) float64 on the CPU; the sums are let go of one by one."""
        mean = torch.zeros(sum(self.sizes.values()), dtype=torch.float64)
        for name, part in zip(self.sizes, mean.split(list(self.sizes.values())), strict=True):
            if name in self.total:
                part.copy_(self.total.pop(name).reshape(-1))
        return mean.div_(self.count)


@dataclass(frozen=True)
class _Diagonal(Fold[_Sum, Tensor]):
    """Mean over samples of squared per-sample gradients, (W,) float64.

    Args:
        samples: how many, drawn by `seed`; None: all.
        seed: of the draw.
    """

    samples: int | None = None
    seed: int = 0

    @property
    def order_seed(self) -> int | None:
        return None if self.samples is None else self.seed

    def limit(self, minimum: Minimum) -> int:
        n = len(minimum.samples)
        return n if self.samples is None else min(self.samples, n)

    def init(self, minimum: Minimum) -> _Sum:
        return _Sum.empty(minimum, self.limit(minimum))

    def update(self, state: _Sum, batch: Batch) -> _Sum:
        state.flush()
        state.count += int(state.inside(batch).sum())
        return state

    def merge(self, left: _Sum, right: _Sum) -> _Sum:
        names = left.total.keys() | right.total.keys()
        total = {n: left.total.get(n, 0) + right.total.get(n, 0) for n in names}
        return _Sum(total, left.sizes, left.stop, left.count + right.count)  # type: ignore[arg-type]

    def finish(self, state: _Sum) -> Tensor:
        return state.flat()


@dataclass(frozen=True)
class FisherDiagonal(_Diagonal):
    """Empirical Fisher diagonal, (1/n) sum_i g_i^2, g_i the gradient of sample i's loss."""

    reads = Reads.OUTPUTS | Reads.LAYERS

    def receive(self, state: _Sum, layer: LayerGradient, batch: Batch) -> None:
        state.add(layer, state.inside(batch) * (2 * batch.log_norms).exp())


@dataclass(frozen=True)
class GaussNewtonDiagonal(_Diagonal):
    """diag of (1/n) sum_i J_i^T (d2 loss / d output2) J_i, J_i the Jacobian of sample i's output."""

    reads = Reads.OUTPUTS | Reads.COLUMNS

    def receive(self, state: _Sum, layer: LayerGradient, batch: Batch) -> None:
        state.add(layer, state.inside(batch))


@dataclass(frozen=True)
class DrawnGaussNewtonDiagonal(_Diagonal):
    """`GaussNewtonDiagonal` from random combinations of each sample's columns: unbiased, one backward pass each.

    A combination is B s with signs s independent over the output's entries, so that its square's mean is the diagonal:
    no matrix of the output's size is formed, and the cost does not grow with a vocabulary.

    Args:
        columns: how many combinations a sample.
        samples: how many, drawn by `seed`; None: all.
        seed: of the draws.

    Raises:
        UsageError: no columns.
    """

    columns: int = 4

    reads = Reads.OUTPUTS | Reads.DRAWN

    def __post_init__(self) -> None:
        if self.columns < 1:
            raise UsageError(f"got columns={self.columns}; at least 1 combination of columns is needed")

    @property
    def order_seed(self) -> int:
        return self.seed  # the signs of a sample depend on its place

    @property
    def drawn(self) -> tuple[int, int]:
        return self.columns, self.seed

    def receive(self, state: _Sum, layer: LayerGradient, batch: Batch) -> None:
        state.add(layer, state.inside(batch))


@dataclass(frozen=True)
class PiecewiseLinearDiagonal(_Diagonal):
    """The Hessian's exact diagonal where it is Gauss-Newton's: networks piecewise linear in each weight.

    Raises:
        Undefined: any other network, naming the operation or the weight used twice.
    """

    reads = Reads.OUTPUTS | Reads.COLUMNS

    def init(self, minimum: Minimum) -> _Sum:
        refuse_unless_piecewise_linear(minimum)
        return _Sum.empty(minimum, self.limit(minimum))

    def receive(self, state: _Sum, layer: LayerGradient, batch: Batch) -> None:
        state.add(layer, state.inside(batch))


@dataclass(frozen=True)
class SketchedDiagonal(Statistic[Tensor]):
    """The curvature's diagonal (W,) float64 by XDiag: unbiased, and far closer than Hutchinson's where few eigenvalues
    are large.

    Args:
        products: at least 6; three vectors a product's half are kept.
        samples: of the data, drawn by `seed`; None: all.
        seed: of samples and probes.
        curvature: ``"hessian"`` or ``"gauss_newton"``.

    Raises:
        UsageError: an unknown curvature, too few products.
    """

    products: int = 20
    samples: int | None = None
    seed: int = 0
    curvature: Curvature = "hessian"

    def __post_init__(self) -> None:
        check_curvature(self.curvature)

    def compute(self, minimum: Minimum) -> Tensor:
        indices = minimum.samples.order(self.seed)[: self.samples]
        with minimum.open():
            products = Products(minimum, indices, self.curvature)
            return xdiag(products, products.size, self.products, self.seed)[0]

    def cost(self, minimum: Minimum) -> Cost:
        n = len(minimum.samples)
        share = min(self.samples or n, n) / n
        return Cost(share, share * (1 + 2 * self.products), 24 * self.products * len(minimum.parameters))


@dataclass(frozen=True)
class BatchGradientSquares(Fold["list[Tensor]", Tensor]):
    """Mean over mini-batches of B samples of the squared mini-batch gradient, (W,) float64.

    What an exponential average of squared gradients converges to (W1 sec. 6). Its expectation is
    (mean gradient)^2 + Var / B: about the Fisher diagonal / B, so it is confounded with B (erratum W-n).
    """

    batch: int = 128
    seed: int = 0

    reads = Reads.GRAPH

    @property
    def order_seed(self) -> int:
        return self.seed

    @property
    def multiple(self) -> int:
        return self.batch

    def limit(self, minimum: Minimum) -> int:
        n = len(minimum.samples)
        return max(n // self.batch, 1) * min(self.batch, n)

    def init(self, minimum: Minimum) -> list[Tensor]:
        zeros = torch.zeros(len(minimum.parameters), dtype=torch.float64, device=minimum.device)
        return [zeros, torch.zeros((), dtype=torch.float64)]

    def update(self, state: list[Tensor], batch: Batch) -> list[Tensor]:
        for part in batch.indices.split(self.batch):
            gradient = batch.minimum.batch(part).gradient()
            state[0] += (gradient.double() / len(part)).square()
            state[1] += 1
        return state

    def merge(self, left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
        return [a + b for a, b in zip(left, right, strict=True)]

    def finish(self, state: list[Tensor]) -> Tensor:
        return (state[0] / state[1]).cpu()
