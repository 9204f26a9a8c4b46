"""Gram matrices of per-sample gradients on disjoint random subsets: one forward, one backward pass, no Jacobian.

The matrices are kept for unit-norm output gradients beside the logarithms of the norms, because at an interpolating
minimum the norms underflow while the directions are well conditioned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.layer_gradient import LayerGradient
from flatminima.core.statistic import Cost, Fold, Reads
from flatminima.errors import DataError, Undefined
from flatminima.statistics.moments import Moments

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


@dataclass(frozen=True)
class GramMatrices:
    """G_t = J_t J_t^T = diag(s) G^ diag(s), s = exp(log_norms), for T disjoint subsets of n samples.

    Attributes:
        normalized (T, n, n) float64: G^, inner products for unit-norm output gradients.
        log_norms (T, n) float64: ln of the output gradients' norms.
        parameters: W, the length of each gradient.
        sizes: of the parameters that make it up, in order.
        layers: moments of ||g_i||^2 by parameter; None: not known.
    """

    normalized: Tensor
    log_norms: Tensor
    parameters: int
    sizes: tuple[int, ...] = ()
    layers: Moments | None = None

    @property
    def trials(self) -> int:
        return len(self.normalized)

    @property
    def subset(self) -> int:
        return self.normalized.shape[1]

    def matrices(self) -> Tensor:
        """G_t (T, n, n) float64; entries may underflow to 0 at an interpolating minimum."""
        scale = self.log_norms.unsqueeze(2) + self.log_norms.unsqueeze(1)
        return self.normalized * scale.exp()

    def squared_norms(self) -> Tensor:
        """||g_i||^2 (T, n) float64."""
        return self.normalized.diagonal(dim1=1, dim2=2) * (2 * self.log_norms).exp()

    def log_determinants(self) -> LogDeterminants:
        """ln det G_t by row normalisation and float64 Cholesky, with how far to trust it.

        Raises:
            Undefined: fewer parameters than samples, a matrix that is not finite, or a zero gradient in every subset.
        """
        if self.parameters < self.subset:
            raise Undefined(
                f"{self.parameters} parameters cannot give {self.subset} independent gradients: the determinant is 0"
            )
        overflowed = int((~self.normalized.isfinite()).flatten(1).any(1).sum())
        if overflowed:
            raise Undefined(f"{overflowed} of {len(self.normalized)} Gram matrices are not finite")
        diagonal = self.normalized.diagonal(dim1=1, dim2=2)
        none = (diagonal <= 0) | ~torch.isfinite(self.log_norms)  # (T, n): samples without a gradient
        whole = ~none.any(1)
        if not bool(whole.any()):
            raise Undefined(f"{int(none.sum())} samples have a zero gradient: the determinant is 0")
        diagonal = torch.where(none, 1.0, diagonal)
        scale = torch.where(none, 0.0, diagonal.rsqrt())
        correlation = self.normalized * scale.unsqueeze(2) * scale.unsqueeze(1)
        eigenvalues = torch.linalg.eigvalsh(correlation)  # (T, n), ascending
        factor, info = torch.linalg.cholesky_ex(correlation)
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        log_det += 2 * self.log_norms.sum(1) + diagonal.log().sum(1)
        positive = eigenvalues.clamp_min(0)
        share = positive / positive.sum(1, keepdim=True)
        rank = torch.special.entr(share).sum(1).exp()  # exponential of the spectrum's entropy
        condition = eigenvalues[:, -1] / eigenvalues[:, 0].clamp_min(torch.finfo(torch.float64).tiny)
        return LogDeterminants(log_det, condition, rank, (info == 0) & whole, self.subset)


@dataclass(frozen=True)
class LogDeterminants:
    """ln det of T Gram matrices; `condition` and `effective_rank` (T,) are of the row-normalised matrices.

    `positive` (T,): whether a matrix has a determinant at all.
    """

    values: Tensor
    condition: Tensor
    effective_rank: Tensor
    positive: Tensor
    subset: int

    def singular(self) -> Tensor:
        """(T,): matrices whose determinant is 0 to rounding: what is left of a small pivot there is noise."""
        eps = torch.finfo(torch.float64).eps
        return ~self.positive | (self.condition * self.subset * eps > 1)


@dataclass
class _State:
    normalized: Tensor
    log_norms: Tensor
    layers: Moments
    sizes: tuple[int, ...]
    current: dict[str, Tensor] = field(default_factory=dict)  # diagonals of the batch whose gradients arrive now
    total: Tensor | None = None


@dataclass(frozen=True)
class Gram(Fold[_State, GramMatrices]):
    """Gram matrices of the gradients of the loss on disjoint subsets (Jia & Su 2020, eq. 4: xi_t = J_t J_t^T).

    Args:
        subset: N', samples a matrix; where the data has fewer, one matrix of them all.
        trials: T, matrices at most; fewer where the data has fewer than T N' samples.
        seed: of the random order of the samples.

    Raises:
        DataError: a count below 1.
    """

    subset: int = 100
    trials: int = 100
    seed: int = 0

    reads = Reads.OUTPUTS | Reads.LAYERS

    def __post_init__(self) -> None:
        if self.subset < 1 or self.trials < 1:
            raise DataError(f"got subset={self.subset}, trials={self.trials}; both must be at least 1")

    @property
    def order_seed(self) -> int:
        return self.seed

    @property
    def multiple(self) -> int:
        return self.subset

    def limit(self, minimum: Minimum) -> int:
        size = self._size(minimum)
        return min(self.trials, len(minimum.samples) // size) * size

    def _size(self, minimum: Minimum) -> int:
        """Samples a matrix."""
        return min(self.subset, len(minimum.samples))

    def init(self, minimum: Minimum) -> _State:
        size = self._size(minimum)
        trials = self.limit(minimum) // size
        zeros = torch.zeros(trials, size, size, dtype=torch.float64, device=minimum.device)
        layers = Moments.of(minimum.parameters.names, {}, 0)
        sizes = tuple(p.numel() for p in minimum.parameters.tensors)
        return _State(zeros, zeros.new_zeros(trials, size), layers, sizes)

    def receive(self, state: _State, layer: LayerGradient, batch: Batch) -> None:
        grams = layer.grams(len(batch) // self._size(batch.minimum))
        for name, products in grams.items():
            own = products.diagonal(dim1=1, dim2=2)
            state.current[name] = state.current[name] + own if name in state.current else own.clone()
            state.total = products if state.total is None else state.total.add_(products)

    def update(self, state: _State, batch: Batch) -> _State:
        size = self._size(batch.minimum)
        first, groups = batch.start // size, len(batch) // size
        if state.total is not None:
            state.normalized[first : first + groups] = state.total
        state.log_norms[first : first + groups] = batch.log_norms.view(groups, size)
        scale = (2 * batch.log_norms).exp()
        squares = {name: own.flatten() * scale.to(own) for name, own in state.current.items()}
        state.layers += Moments.of(state.layers.names, squares, len(batch))
        state.total, state.current = None, {}
        return state

    def merge(self, left: _State, right: _State) -> _State:
        """Parts hold different subsets; what a part has not seen is zero."""
        layers = left.layers + right.layers
        return _State(left.normalized + right.normalized, left.log_norms + right.log_norms, layers, left.sizes)

    def finish(self, state: _State) -> GramMatrices:
        return GramMatrices(
            state.normalized.cpu(), state.log_norms.cpu(), sum(state.sizes), state.sizes, state.layers
        )  # fmt: skip

    def cost(self, minimum: Minimum) -> Cost:
        share = self.limit(minimum) / len(minimum.samples)
        return Cost(share, share, 8 * self.limit(minimum) * self._size(minimum))
