"""Norms of a network's linear layers as the operators they are: a convolution with its strides, padding and image.

The 2-norm of a dense layer is its largest singular value, of a diagonal its largest entry. A convolution's is found by
Lanczos iteration with the convolution and its transpose, and is returned only with a small residual. The reshaped
kernel, which is often taken instead, is another matrix: its norm can be too small by a factor of the kernel's side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from flatminima.core.statistic import Statistic
from flatminima.errors import Undefined
from flatminima.statistics.feedforward import FeedForward
from flatminima.statistics.network_graph import FeedForwardNetwork, LinearLayer, Node, SampleOperator

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

_RESIDUAL = 1e-4  # ||A^T A v - s^2 v|| / s^2 allowed; a singular value is then within half of it, measured 2e-7
_DENSE = 64  # inputs up to which the operator is written out as a matrix


@dataclass(frozen=True)
class OperatorNorm:
    """Norms of one linear operator.

    Attributes:
        name: of the layer.
        two: largest singular value.  infinity: largest sum of absolute values of a row.
        residual: of `two`, ||A^T A v - s^2 v|| / s^2; 0 where it is exact.
    """

    name: str
    two: float
    infinity: float
    residual: float = 0.0


@dataclass(frozen=True)
class NetworkNorms:
    """Norms of all layers, and what they bound.

    Attributes:
        layers: in the order of `FeedForwardNetwork.layers`.
        log_lipschitz_2, log_lipschitz_inf: ln of a Lipschitz constant of the network in that norm, along its graph:
            products in a row, sums where branches are added, roots of sums of squares (largest) where concatenated.
    """

    layers: tuple[OperatorNorm, ...]
    log_lipschitz_2: float
    log_lipschitz_inf: float


@dataclass(frozen=True)
class OperatorNorms(Statistic[NetworkNorms]):
    """Operator norms of the linear layers of a piecewise-linear network, and its Lipschitz constants.

    Raises:
        Undefined: as `FeedForward`, or a norm that does not converge.
    """

    def compute(self, minimum: Minimum) -> NetworkNorms:
        return norms_of(minimum[FeedForward()])


def norms_of(network: FeedForwardNetwork) -> NetworkNorms:
    """The norms of the layers, each computed once, and the bounds along the graph."""
    known: dict[int, OperatorNorm] = {}
    inputs = {source for node in network.graph for source in node.sources if source < 0}

    def norm(layer: LinearLayer) -> OperatorNorm:
        if id(layer) not in known:
            known[id(layer)] = operator_norm(layer)
        return known[id(layer)]

    layers = tuple(norm(layer) for layer in network.layers)
    needed = _ancestors(network.graph)
    two = dict.fromkeys(inputs, 0.0)
    infinity = dict.fromkeys(inputs, 0.0)
    reads = {source: frozenset([source]) for source in inputs}
    for i, node in enumerate(network.graph):
        if i in needed:
            reads[i] = frozenset().union(*(reads[source] for source in node.sources))
            apart = len(reads[i]) == sum(len(reads[source]) for source in node.sources)
            found = norm(node.layer) if node.layer is not None else None
            own = (found.two, found.infinity) if found else (node.stretch_2, node.stretch_inf)
            two[i] = _combined(node, two, apart) + _log(own[0])
            infinity[i] = _combined_largest(node, infinity) + _log(own[1])
    last = len(network.graph) - 1
    return NetworkNorms(layers, two[last], infinity[last])


def _ancestors(graph: tuple[Node, ...]) -> set[int]:
    """What the output is made of: a branch that leads nowhere costs no norm."""
    needed = {len(graph) - 1}
    for i in range(len(graph) - 1, -1, -1):
        if i in needed:
            needed.update(graph[i].sources)
    return needed


def _combined(node: Node, logs: dict[int, float], apart: bool) -> float:
    """ln of the constant of a node's sources together in the 2-norm; `apart`: no input reaches two of them."""
    parts = np.array([logs[source] for source in node.sources])
    if len(parts) == 0:
        return -math.inf
    if node.kind == "cat" and apart:
        return float(parts.max())
    if node.kind == "cat" or apart:
        return float(np.logaddexp.reduce(2 * parts) / 2)
    return float(np.logaddexp.reduce(parts))


def _combined_largest(node: Node, logs: dict[int, float]) -> float:
    """The same for the largest entry."""
    parts = np.array([logs[source] for source in node.sources])
    if len(parts) == 0:
        return -math.inf
    return float(parts.max() if node.kind == "cat" else np.logaddexp.reduce(parts))


def operator_norm(layer: LinearLayer) -> OperatorNorm:
    """Both norms of a layer as it acts on one sample.

    Examples:
        >>> found = operator_norm(LinearLayer("a", torch.tensor([[3.0, -4.0]]).double()))
        >>> found.two, found.infinity
        (5.0, 7.0)
    """
    matrix = layer.matrix
    if layer.diagonal:
        top = float(matrix.abs().max())
        return OperatorNorm(layer.name, top, top)
    if layer.operator is None:
        two = float(torch.linalg.matrix_norm(matrix, 2))
        return OperatorNorm(layer.name, two, float(matrix.abs().sum(1).max()))
    with torch.no_grad():
        rows = layer.operator.act(matrix.abs(), torch.ones(layer.operator.shape, dtype=torch.float64))
    two, residual = _largest_singular_value(matrix, layer.operator)
    return OperatorNorm(layer.name, two, float(rows.max()), residual)


def _largest_singular_value(matrix: Tensor, operator: SampleOperator) -> tuple[float, float]:
    size = math.prod(operator.shape)

    def normal(vector: np.ndarray) -> np.ndarray:
        """A^T A v."""
        with torch.enable_grad():
            x = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float64)).view(operator.shape).requires_grad_()
            y = operator.act(matrix, x)
            (out,) = torch.autograd.grad(y, x, y.detach())
        return np.asarray(out.reshape(-1).numpy())

    if size <= _DENSE:
        with torch.no_grad():
            identity = torch.eye(size, dtype=torch.float64).view(size, *operator.shape[1:])
            return float(torch.linalg.matrix_norm(operator.act(matrix, identity).flatten(1), 2)), 0.0
    square_matrix = LinearOperator((size, size), matvec=normal, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(size)
    if not normal(start).any():
        return 0.0, 0.0
    try:
        values, vectors = eigsh(square_matrix, k=1, which="LA", v0=start, tol=_RESIDUAL / 10)
    except ArpackNoConvergence:
        raise Undefined("the operator norm of a layer did not converge") from None
    square = float(values[0])
    residual = float(np.linalg.norm(normal(vectors[:, 0]) - square * vectors[:, 0])) / square
    if residual > _RESIDUAL:
        raise Undefined(f"the operator norm of a layer has a residual of {residual:.2g}: it is not believed")
    return math.sqrt(square), residual


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
