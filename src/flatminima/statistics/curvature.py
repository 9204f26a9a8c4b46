"""Products with the Hessian and the Gauss-Newton matrix of the mean loss, as a function and as scipy's LinearOperator.

The graph of a batch is made once and kept while it fits in memory: a product then costs one and a half to three
forward-backward passes, where making the graph anew costs half as much again. The loss's own derivatives come from
`core.losses`, without cancellation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, get_args

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.chance import refusing_chance
from flatminima.core.identity import dense_parts
from flatminima.core.parameters import dense, gradients
from flatminima.core.space import Space
from flatminima.errors import NumericalError, Undefined, UsageError
from flatminima.statistics.second_derivatives import refuse_unseen, refuse_wrong

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

Curvature = Literal["hessian", "gauss_newton"]

KEEP = 1 << 30  # bytes of graphs kept between products on the CPU; on a GPU, half of what is free
_PRODUCT_COST = 2  # backward passes that a product counts for


def check_curvature(curvature: str) -> None:
    """Refuse a name that is no curvature.

    Raises:
        UsageError: naming the two there are.
    """
    if curvature not in get_args(Curvature):
        raise UsageError(f"got curvature={curvature!r}; expected one of {', '.join(get_args(Curvature))}")


class Products:
    """v -> C v, C the Hessian or Gauss-Newton matrix of the mean loss over the samples at `indices`.

    Args:
        minimum: model, data and loss; opened by every product, or once by the caller around many.
        indices: of samples; None: all.
        curvature: ``"hessian"`` or ``"gauss_newton"`` (J^T (d2 loss / d output2) J).
        keep: bytes of graphs to keep between products; None: 1 GiB, or half of a GPU's free memory. The graph of data
            that fits one batch is always kept.

    Raises:
        UsageError: an unknown curvature.
        Undefined: no second derivative; for Gauss-Newton, a loss that is not convex in the output.

    Examples:
        >>> from flatminima.core.minimum import Minimum
        >>> x, y = torch.eye(2).double(), torch.zeros(2, 1).double()
        >>> m = Minimum(torch.nn.Linear(2, 1, bias=False).double(), (x, y), "mse")
        >>> Products(m)(torch.tensor([1.0, 0.0])).tolist()
        [1.0, 0.0]
    """

    def __init__(
        self,
        minimum: Minimum,
        indices: Tensor | None = None,
        curvature: Curvature = "hessian",
        keep: int | None = None,
    ) -> None:
        check_curvature(curvature)
        self.minimum, self.curvature = minimum, curvature
        chosen = torch.arange(len(minimum.samples)) if indices is None else indices
        self.count, self.size = len(chosen), len(minimum.parameters)
        self.space = Space.whole(self.size)
        parts = chosen.split(minimum.batch_size)
        self.parts = parts if minimum.ranks is None else parts[minimum.ranks.rank :: minimum.ranks.size]
        self.spent = 0
        self._keep = keep
        self._kept: dict[int, Graph] = {}
        self._versions: tuple[int, ...] = ()
        self._room = 0.0  # graphs that fit

    def __call__(self, vector: Tensor) -> Tensor:
        """C v (W,) float64 for v (W,), on the model's device.

        Raises:
            NumericalError: a product that is not finite.
        """
        self.spent += 1
        vector = vector.reshape(-1).to(self.minimum.device)
        ranks = self.minimum.ranks
        total = self._product(vector) if ranks is None else ranks.total(lambda: self._product(vector))
        if not math.isfinite(float(total.sum())):  # one pass; sums of what float32 can hold stay finite in float64
            raise NumericalError(f"a {self.curvature} product is not finite: the curvature overflows here")
        return total.div_(self.count)

    def _product(self, vector: Tensor) -> Tensor:
        """Sum over this process's samples."""
        total: Tensor | None = None
        with self.minimum.open():
            for graph in self._graphs():
                found = graph.product(vector)
                total = found if total is None else total.add_(found)
        return torch.zeros_like(vector, dtype=torch.float64) if total is None else total

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """Mean loss and its gradient (W,) float64, of the graphs that the products use: of a kept one, free.

        Raises:
            UsageError: of Gauss-Newton products, whose graphs hold no gradient.
        """
        if self.curvature != "hessian":
            raise UsageError("got curvature='gauss_newton', whose graphs hold no gradient; ask Hessian products")
        ranks = self.minimum.ranks
        total = self._value_and_gradient() if ranks is None else ranks.total(self._value_and_gradient)
        total /= self.count
        return float(total[-1]), total[:-1]

    def _value_and_gradient(self) -> Tensor:
        """(W + 1,) float64: summed over this process's samples, the loss last."""
        total = torch.zeros(self.size + 1, dtype=torch.float64, device=self.minimum.device)
        with self.minimum.open():
            for graph in self._graphs():
                total[:-1] += graph.gradient()
                total[-1] += graph.losses.double().sum()
        return total

    @property
    def precision(self) -> torch.dtype:
        """The dtype in which the network computes: vectors need no more."""
        doubles = any(p.dtype == torch.float64 for p in self.minimum.parameters.tensors)
        return torch.float64 if doubles else torch.float32

    def _graphs(self) -> Iterator[Graph]:
        refuse_wrong(self.minimum, self.curvature)  # before: weights may be written meanwhile, and put back
        now = tuple(p._version for p in self.minimum.parameters.tensors)  # a write, even undone, spoils the graphs
        if now != self._versions:
            self._kept.clear()
            self._versions = now
        for i, part in enumerate(self.parts):
            if i in self._kept:
                yield self._kept[i]
                continue
            batch = self.minimum.batch(part)
            if len(self.parts) > 1 and not self._room:
                graph, size = _weighed(batch, self.curvature)
                self._room = self._limit() / max(size, 1)
            else:
                graph = Graph(batch, self.curvature)
            if len(self.parts) == 1 or len(self._kept) + 1 <= self._room:
                self._kept[i] = graph
            yield graph

    def _limit(self) -> float:
        if self._keep is not None:
            return self._keep
        device = self.minimum.device
        return KEEP if device.type != "cuda" else torch.cuda.mem_get_info(device)[0] / 2


def products_of(minimum: Minimum, indices: Tensor, curvature: Curvature = "hessian", keep: int | None = None) -> Any:
    """`Products`, or those that the Minimum makes in a way of its own: a function with `size`, `space`, `precision`."""
    own = minimum.own_products(indices, curvature)
    return Products(minimum, indices, curvature, keep) if own is None else own


def curvature_operator(
    minimum: Minimum, indices: Tensor | None = None, curvature: Curvature = "hessian", keep: int | None = None
) -> LinearOperator:
    """`Products` as a symmetric LinearOperator (W, W) float64, for any of scipy's solvers.

    Examples:
        >>> from flatminima.core.minimum import Minimum
        >>> x, y = torch.eye(2).double(), torch.zeros(2, 1).double()
        >>> m = Minimum(torch.nn.Linear(2, 1, bias=False).double(), (x, y), "mse")
        >>> (curvature_operator(m, curvature="gauss_newton") @ np.eye(2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    products = Products(minimum, indices, curvature, keep)

    def product(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = products(torch.from_numpy(np.array(vector, dtype=np.float64)))
        return np.asarray(found.cpu().numpy())

    return LinearOperator((products.size, products.size), matvec=product, rmatvec=product, dtype=np.float64)


class Graph:
    """Products with the curvature of one batch's summed loss; differentiated once a product.

    Args:
        batch: of samples. curvature: of their summed loss.
        examine: check that torch's second derivatives of what the batch uses are right, if no batch before used it.

    Raises:
        Undefined: they are not, or there are none.
    """

    def __init__(self, batch: Batch, curvature: Curvature = "hessian", *, examine: bool = True) -> None:
        minimum = batch.minimum
        if examine:
            refuse_wrong(minimum, curvature)
        self.minimum, self.count = minimum, len(batch)
        self.tensors = minimum.parameters.tensors
        with refusing_chance(minimum, lambda: [batch.indices], closely=minimum.chance.closely):
            output = minimum.forward(batch.inputs)
        if examine and output.requires_grad and refuse_unseen(batch, output, curvature):
            output = minimum.forward(batch.inputs)
        losses = batch._receive(output, differentiable=curvature == "hessian" and output.requires_grad)
        if not output.requires_grad:
            raise Undefined("the network's output does not depend on a trainable parameter")
        minimum.passes.backward += len(batch)
        self.cotangent: Tensor | None = None
        self.output, self.losses = output, batch.losses
        if curvature == "hessian":
            seed = minimum.loss.residual(output, batch.targets, losses)
            self.gradients = self._back([output], [seed], create_graph=True)
        else:
            minimum.loss.refuse_concave(output.detach(), batch.targets)
            leaf = output.detach().requires_grad_()
            self.at = leaf, minimum.loss.residual(leaf, batch.targets)
            self.cotangent = torch.zeros_like(output).requires_grad_()
            self.gradients = self._back([output], [self.cotangent], create_graph=True)  # J^T u, linear in u

    def zeros(self) -> Tensor:
        """(W,) in the precision of the products."""
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.tensors) else torch.float32
        return torch.zeros(len(self.minimum.parameters), dtype=dtype, device=self.output.device)

    def product(self, vector: Tensor) -> Tensor:
        """(W,) float64."""
        self.minimum.passes.backward += _PRODUCT_COST * self.count
        split = self.minimum.parameters.split(vector)  # a gradient a parameter: joining them costs as much as a layer
        pairs = [(g, _own(v, g)) for g, v in zip(self.gradients, split, strict=True) if _differentiable(g)]
        if not pairs:  # a loss linear in the parameters
            return torch.zeros_like(vector, dtype=torch.float64)
        ends, seeds = [g for g, _ in pairs], [v for _, v in pairs]
        try:
            if self.cotangent is None:
                return self._flat(self._back(ends, seeds))
            (tangent,) = torch.autograd.grad(ends, self.cotangent, seeds, retain_graph=True)  # J v
            return self._flat(self._back([self.output], [self._by_loss(tangent)]))
        except NotImplementedError as error:
            raise Undefined(f"the network has no second derivative: {str(error).splitlines()[0]}") from None

    def gradient(self) -> Tensor:
        """Gradient of the summed loss, (W,) float64, for a Hessian graph."""
        return self._flat(self.gradients).detach()

    def jacobian_product(self, vector: Tensor) -> Tensor:
        """J v in the output's shape, for a Gauss-Newton graph."""
        split = self.minimum.parameters.split(vector)
        pairs = [(g, _own(v, g)) for g, v in zip(self.gradients, split, strict=True) if _differentiable(g)]
        if not pairs or self.cotangent is None:
            return torch.zeros_like(self.output)
        (tangent,) = torch.autograd.grad(
            [g for g, _ in pairs], self.cotangent, [v for _, v in pairs], retain_graph=True
        )
        return tangent

    def _by_loss(self, tangent: Tensor) -> Tensor:
        """(d2 loss / d output2) u."""
        leaf, gradient = self.at
        if not gradient.requires_grad:
            return torch.zeros_like(tangent)
        return gradients(gradient, [leaf], tangent.to(gradient.dtype), retain_graph=True)[0]

    def _back(self, ends: list[Tensor], seeds: list[Tensor], create_graph: bool = False) -> tuple[Tensor | None, ...]:
        """d ends / d w against `seeds`, one a parameter, None where nothing depends on it; the graph is kept."""
        grads = torch.autograd.grad(
            ends, self.tensors, seeds, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
        return tuple(g if g is None else dense(g) for g in grads)

    def _flat(self, parts: tuple[Tensor | None, ...]) -> Tensor:
        pairs = zip(parts, self.tensors, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs]).double()


def _own(part: Tensor, like: Tensor) -> Tensor:
    """A part of a vector in memory of its own: where it begins in the vector, `view_as_complex` may not take it."""
    return part.to(like.dtype, copy=True, memory_format=torch.contiguous_format)


def _differentiable(gradient: Tensor | None) -> TypeGuard[Tensor]:
    return gradient is not None and gradient.requires_grad


def _weighed(batch: Batch, curvature: Curvature) -> tuple[Graph, int]:
    """A graph and the bytes of what it keeps."""
    refuse_wrong(batch.minimum, curvature)  # whose own graphs do not count
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        for part in dense_parts(tensor):
            storage = part.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would make a reference cycle of outputs

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = Graph(batch, curvature)
    return graph, sum(sizes.values())
