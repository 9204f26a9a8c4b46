"""Hessian products, diagonal and trace of the mean loss.

Per batch the gradient's graph is made once and differentiated for every probe: a product then costs about 1.3
forward-backward passes on ResNet-20 where making the graph anew costs 3.2 (performance-notes B).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from flatminima.batch import Batch
from flatminima.errors import Undefined
from flatminima.parameters import Parameters
from flatminima.perturbation import generator
from flatminima.statistic import Cost, Fold, Reads

if TYPE_CHECKING:
    from flatminima.minimum import Minimum

_PRODUCT_COST = 2.0  # forward-backward passes of one Hessian product, graph included
_EXACT_LIMIT = 3_000  # parameters up to which a product per coordinate is reasonable


@dataclass(frozen=True)
class ProbedHessian:
    """Hutchinson's estimates.

    Attributes:
        diagonal (W,) float64: mean over probes of v * (H v).
        traces (probes,) float64: v^T H v of each.
    """

    diagonal: Tensor
    traces: Tensor


class _Graph:
    """Products with the Hessian of the batch's summed loss."""

    def __init__(self, batch: Batch) -> None:
        self.parameters: Parameters = batch.minimum.parameters
        self.gradient = batch.graph()
        _refuse_wrong_kernels(self.gradient)
        self.constant = not self.gradient.requires_grad  # a loss linear in the parameters

    def product(self, vector: Tensor) -> Tensor:
        if self.constant:
            return torch.zeros_like(vector)
        tensors = self.parameters.tensors
        try:
            parts = torch.autograd.grad(
                self.gradient, tensors, vector, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        except NotImplementedError as error:
            raise Undefined(f"the network has no second derivative: {str(error).splitlines()[0]}") from None
        return torch.cat([p.reshape(-1) for p in parts])


def _refuse_wrong_kernels(gradient: Tensor) -> None:
    """torch's weight norm takes the norm as constant in its second derivative (gradgradcheck fails, torch 2.13)."""
    seen: set[Any] = set()
    nodes = [gradient.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith("WeightNormInterface"):
            raise Undefined(
                "torch's second derivative of weight_norm is wrong: make the weights plain first, with "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )
        nodes += [following for following, _ in node.next_functions]


@dataclass(frozen=True)
class HessianProbes(Fold["list[Tensor]", ProbedHessian]):
    """Hutchinson's diagonal and trace from Rademacher probes: E[v * Hv] = diag H, E[v^T H v] = tr H.

    Args:
        probes: how many v.
        samples: of the data, drawn by `seed`; None: all.
        seed: of probes and samples; probe k is generator(seed, k)'s draw.
    """

    probes: int = 10
    samples: int | None = None
    seed: int = 0

    reads = Reads.GRAPH

    @property
    def order_seed(self) -> int | None:
        return None if self.samples is None else self.seed

    def limit(self, minimum: Minimum) -> int:
        n = len(minimum.samples)
        return n if self.samples is None else min(self.samples, n)

    @property
    def multiple(self) -> int:
        return 1

    def init(self, minimum: Minimum) -> list[Tensor]:
        double = {"dtype": torch.float64, "device": minimum.device}
        size = len(minimum.parameters)
        return [torch.zeros(size, **double), torch.zeros(self.probes, **double), torch.zeros((), **double)]  # type: ignore[call-overload]

    def update(self, state: list[Tensor], batch: Batch) -> list[Tensor]:
        if self.samples is not None and batch.start + len(batch) > self.samples:
            batch = batch.minimum.batch(batch.indices[: self.samples - batch.start], batch.start)
        graph = _Graph(batch)
        for k in range(self.probes):
            probe = rademacher(graph.gradient, self.seed, k)
            found = (probe * graph.product(probe)).double()
            state[0] += found
            state[1][k] += found.sum()
        state[2] += len(batch)
        return state

    def merge(self, left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
        return [a + b for a, b in zip(left, right, strict=True)]

    def finish(self, state: list[Tensor]) -> ProbedHessian:
        count = state[2].cpu()
        return ProbedHessian(state[0].cpu() / (count * self.probes), state[1].cpu() / count)

    def cost(self, minimum: Minimum) -> Cost:
        share = self.limit(minimum) / len(minimum.samples)
        return Cost(share, share * (1 + _PRODUCT_COST * self.probes), 16 * len(minimum.parameters))


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
        graph = _Graph(batch)
        size = len(state[0])
        for i in range(size):
            basis = torch.zeros_like(graph.gradient)
            basis[i] = 1.0
            state[0][i] += graph.product(basis)[i].double()
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
    bits = torch.randint(0, 2, like.shape, generator=generator(seed, index), dtype=torch.int8)
    return bits.mul_(2).sub_(1).to(like)


def hessian_operator(minimum: Minimum, indices: Tensor | None = None) -> LinearOperator:
    """The Hessian of the mean loss as scipy's LinearOperator (W, W) float64, for any of scipy's solvers.

    Over the samples at `indices`; None: all.

    The gradient's graph is kept between products while all samples fit one batch.

    Example:
        >>> import torch
        >>> from flatminima.minimum import Minimum
        >>> x, y = torch.eye(2).double(), torch.zeros(2, 1).double()
        >>> m = Minimum(torch.nn.Linear(2, 1, bias=False).double(), (x, y), "mse")
        >>> hessian_operator(m).matvec(np.array([1.0, 0.0])).tolist()
        [1.0, 0.0]
    """
    chosen = torch.arange(len(minimum.samples)) if indices is None else indices
    n, size = len(chosen), len(minimum.parameters)
    kept: dict[tuple[int, ...], _Graph] = {}

    def product(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with minimum.open():
            total = torch.zeros(size, dtype=torch.float64, device=minimum.device)
            start = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1)).to(minimum.device)
            now = tuple(p._version for p in minimum.parameters.tensors)  # a write, even undone, spoils the graph
            for part in chosen.split(minimum.batch_size):
                graph = kept[now] if now in kept else _Graph(minimum.batch(part))
                if n <= minimum.batch_size and now not in kept:
                    kept.clear()
                    kept[now] = graph
                total += graph.product(start.to(graph.gradient.dtype)).double()
            return np.asarray((total / n).cpu().numpy())

    return LinearOperator((size, size), matvec=product, rmatvec=product, dtype=np.float64)
