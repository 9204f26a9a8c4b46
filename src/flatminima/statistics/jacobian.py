"""Spectral norms of the softmax output's Jacobian by the input, a backward pass a class or a Krylov space a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.losses import Loss, has_softmax_columns
from flatminima.core.parameters import frozen, gradients
from flatminima.core.perturbation import generator
from flatminima.core.statistic import Cost, Fold, Reads
from flatminima.errors import Undefined

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

MANY_CLASSES = 64  # above, products need fewer passes than classes do, and no memory for C gradients of every input
TOLERANCE = 1e-4  # of a Ritz value's residual, relative; the value's own error goes with its square
PRODUCT_COST = 3  # backward passes of one product: J^T u, and J v by differentiating J^T u by u
USUAL_PRODUCTS = 12
_LEAST_NORM = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class InputJacobian(Fold[Tensor, Tensor]):
    """||d softmax(f(x)) / dx||_2 of `samples` random samples, (samples,) float64.

    Up to 64 classes: row c of the softmax's Jacobian is sqrt(p_c) times the Gauss-Newton column sqrt(p_c)(e_c - p)
    sent back, so the passes are shared with the Gauss-Newton diagonal; the norm comes from the C x C Gram matrix of the
    rows. Above: the largest eigenvalue of J J^T by Lanczos, all samples of a batch at once, until every residual is
    1e-4 of its value; the number of passes does not grow with the classes.
    """

    samples: int = 1000
    seed: int = 0

    reads = Reads.OUTPUTS | Reads.INPUTS

    def reads_at(self, minimum: Minimum) -> Reads:
        shared = minimum.output_size <= MANY_CLASSES and has_softmax_columns(minimum.loss)
        return self.reads if shared else Reads.OUTPUTS

    @property
    def order_seed(self) -> int:
        return self.seed

    def limit(self, minimum: Minimum) -> int:
        return min(self.samples, len(minimum.samples))

    def init(self, minimum: Minimum) -> Tensor:
        if not minimum.loss.labels:
            raise Undefined("the Jacobian of the class probabilities needs a classifier (cross-entropy)")
        return torch.zeros(self.limit(minimum), dtype=torch.float64)

    def update(self, state: Tensor, batch: Batch) -> Tensor:
        minimum = batch.minimum
        if self.reads_at(minimum) & Reads.INPUTS:
            norms = _from_columns(batch.input_columns, batch.outputs)
        else:
            start = torch.randn(len(state), minimum.output_size, generator=generator(self.seed, 0), dtype=torch.float64)
            start = start[batch.start : batch.start + len(batch)]
            extra = len(batch) - len(start)  # a batch may reach beyond the limit
            start = torch.cat([start, start.new_ones(extra, start.shape[1])]).to(minimum.device)
            norms = _by_products(batch, start)
        stop = min(batch.start + len(batch), len(state))
        state[batch.start : stop] = norms[: stop - batch.start].cpu()
        return state

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right

    def finish(self, state: Tensor) -> Tensor:
        return state

    def cost(self, minimum: Minimum) -> Cost:
        if self.reads_at(minimum) & Reads.INPUTS:
            return super().cost(minimum)
        share = self.limit(minimum) / len(minimum.samples)
        return Cost(forward=2 * share, backward=share * (1 + PRODUCT_COST * USUAL_PRODUCTS))


def _from_columns(columns: Tensor, outputs: Tensor) -> Tensor:
    """Norms (b,) from the Gauss-Newton columns' input gradients (C, b, D).

    Columns are scaled before they are multiplied, and the likeliest class's row is minus the sum of the others': of a
    class that is nearly certain, either would leave float32's range.
    """
    p = outputs.double().softmax(1)  # (b, C)
    size = columns.abs().amax(2, keepdim=True)
    columns = columns / size.clamp_min(torch.finfo(columns.dtype).tiny)
    weight = p.sqrt() * size.squeeze(2).T.double()
    gram = torch.einsum("cbd,kbd->bck", columns, columns).double() * weight.unsqueeze(2) * weight.unsqueeze(1)
    likeliest = torch.nn.functional.one_hot(p.argmax(1), p.shape[1]).double()
    swap = torch.diag_embed(1 - likeliest) - likeliest.unsqueeze(2) * (1 - likeliest).unsqueeze(1)
    gram = swap @ gram @ swap.mT
    largest: Tensor = torch.linalg.eigvalsh(gram)[:, -1]
    return largest.clamp_min(0).sqrt()


def _by_products(batch: Batch, start: Tensor) -> Tensor:
    """Norms (b,)."""
    minimum, inputs = batch.minimum, batch.open_inputs()
    with frozen(minimum.parameters):
        return norms_of_softmax(minimum, minimum.forward(batch.inputs), inputs, start)


def norms_of_softmax(minimum: Minimum, logits: Tensor, inputs: list[Tensor], start: Tensor) -> Tensor:
    """||d softmax(f) / dx||_2 (b,) of logits (b, C) with a graph to the inputs; `start` (b, C) float64, random."""
    if not logits.requires_grad:
        return torch.zeros(len(logits), dtype=torch.float64)
    p = logits.detach().double().softmax(1)
    surest = p.argmax(1, keepdim=True)

    def softmax_jacobian(u: Tensor) -> Tensor:
        moved: Tensor = p * (u - (p * u).sum(1, keepdim=True))
        moved.scatter_(1, surest, 0.0)  # rows sum to zero; where p is nearly 1, u - (p * u).sum() would cancel
        return torch.scatter(moved, 1, surest, -moved.sum(1, keepdim=True))

    if logits.shape[1] > MANY_CLASSES:
        try:
            return _largest(_gram_of_jacobian(minimum, logits, inputs, softmax_jacobian), start).clamp_min(0).sqrt()
        except NotImplementedError:  # no second derivative: a backward pass a class after all
            pass
    factor = Loss.of("cross_entropy").columns(logits.detach(), surest.squeeze(1))
    minimum.passes.backward += len(factor) * len(logits)
    return _from_columns(torch.stack([_send_back(logits, inputs, column) for column in factor]), logits.detach())


def norms_of_logits(minimum: Minimum, logits: Tensor, inputs: list[Tensor], start: Tensor) -> Tensor:
    """||d f / dx||_2 (b,), as `norms_of_softmax`."""
    if not logits.requires_grad:
        return torch.zeros(len(logits), dtype=torch.float64)
    if logits.shape[1] > MANY_CLASSES:
        try:
            return _largest(_gram_of_jacobian(minimum, logits, inputs, lambda u: u), start).clamp_min(0).sqrt()
        except NotImplementedError:
            pass
    minimum.passes.backward += logits.shape[1] * len(logits)
    seeds = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    rows = torch.stack([_send_back(logits, inputs, seed.expand_as(logits)) for seed in seeds], 1).double()
    largest: Tensor = torch.linalg.eigvalsh(rows @ rows.mT)[:, -1]
    return largest.clamp_min(0).sqrt()


def _gram_of_jacobian(
    minimum: Minimum, output: Tensor, leaves: list[Tensor], outer: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """u -> J J^T u for each sample, (b, C) float64, with J = A d output / d input and A = A^T given by `outer`."""
    passes = minimum.passes
    cotangent = torch.zeros_like(output).requires_grad_()
    sent = _send_back(output, leaves, cotangent, create_graph=True)  # (b, D), linear in the cotangent
    passes.backward += len(output)

    def product(u: Tensor) -> Tensor:
        passes.backward += PRODUCT_COST * len(output)
        u, inner = _unit(outer(u))
        back, length = _unit(_send_back(output, leaves, u.to(output.dtype)).double())
        if not sent.requires_grad:
            return torch.zeros_like(u)
        ahead: Tensor
        (ahead,) = gradients(sent, [cotangent], back.to(sent.dtype), retain_graph=True)
        return outer(ahead.double()) * inner * length

    return product


def _largest(product: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Largest eigenvalue (b,) of a positive semi-definite matrix a row, by Lanczos with full reorthogonalisation."""
    basis: list[Tensor] = [_unit(start)[0]]
    diagonal: list[Tensor] = []
    off: list[Tensor] = []
    while True:
        found = product(basis[-1])
        known = torch.stack(basis, 1)  # (b, m, C)
        diagonal.append((found * basis[-1]).sum(1))
        for _ in range(2):
            found = found - torch.einsum("bm,bmc->bc", torch.einsum("bmc,bc->bm", known, found), known)
        following, length = _unit(found)
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, off))
        value: Tensor = values[:, -1]
        residual = length.squeeze(1) * vectors[:, -1, -1].abs()
        if bool((residual <= TOLERANCE * value).all()) or len(basis) == start.shape[1]:
            return value
        off.append(length.squeeze(1))
        basis.append(following)


def _tridiagonal(diagonal: list[Tensor], off: list[Tensor]) -> Tensor:
    """(b, m, m)."""
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    if off:
        beside = torch.stack(off, 1)
        matrix = matrix + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    return matrix


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1, or 0 where there is nothing, and their lengths (b, 1)."""
    length = rows.norm(dim=1, keepdim=True)
    return rows / length.clamp_min(_LEAST_NORM), length


def _send_back(output: Tensor, leaves: list[Tensor], seed: Tensor, create_graph: bool = False) -> Tensor:
    """d output / d input against the seed, (b, D)."""
    grads = torch.autograd.grad(output, leaves, seed, retain_graph=True, create_graph=create_graph, allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]
    return torch.cat([g.reshape(len(output), -1) for g in found], 1)
