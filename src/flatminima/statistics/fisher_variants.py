"""Variants of the Fisher log-determinant that its authors compute beside the paper's formula, and the full matrix.

Their code rescales every logit vector to one norm before it compares regularised minima, and leaves BatchNorm in
training mode on chunks of 10 samples, so that a sample's gradient runs through the statistics of its chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flatminima import progress
from flatminima.core.batch import Batch
from flatminima.core.guard import same_randomness
from flatminima.core.layer_gradient import LayerGradient
from flatminima.core.output import logits
from flatminima.core.parameters import copied, gradients
from flatminima.core.samples import call, map_tensors
from flatminima.core.statistic import Cost, Fold, Reads, Statistic
from flatminima.errors import Undefined, UsageError
from flatminima.statistics.gram import Gram, GramMatrices
from flatminima.statistics.hessian import group_edges
from flatminima.statistics.moments import Moments

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

T = TypeVar("T")

_LARGEST = 5_000  # parameters whose full matrix fits: 200 MB


@dataclass(frozen=True)
class RescaledLogits(Statistic[T]):
    """Another statistic's value where the network's output is ``norm f / ||f||`` (Jia & Su's code: norm 25).

    Raises:
        UsageError: a norm that is not positive and finite. Undefined: a network of one number a sample.
    """

    statistic: Statistic[T]
    norm: float = 25.0

    def __post_init__(self) -> None:
        if not 0 < self.norm < float("inf"):
            raise UsageError(f"got a logit norm of {self.norm!r}; it must be positive and finite")

    def compute(self, minimum: Minimum) -> T:
        with minimum.open():
            with torch.no_grad():
                output = minimum.forward(minimum.batch(torch.arange(1)).inputs)
            if output.dim() < 2:  # its last axis is the samples'
                raise Undefined("the network returns a number a sample, not a vector of logits whose norm could be set")
            rescaled = _Rescaled(minimum.model, self.norm, minimum.output).eval()
            return minimum.replace(model=rescaled, returns_logits=True)[self.statistic]

    def cost(self, minimum: Minimum) -> Cost:
        return self.statistic.cost(minimum)


class _Rescaled(nn.Module):
    def __init__(self, model: nn.Module, norm: float, output: Any) -> None:
        super().__init__()
        self.model, self.norm, self.output = model, norm, output

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = logits(call(self.model, kwargs or (args if len(args) > 1 else args[0])), self.output)
        length = output.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(output.dtype).tiny)
        scaled: Tensor = self.norm * output / length
        return scaled


@dataclass(frozen=True)
class TrainingGram(Statistic[GramMatrices]):
    """`Gram` with BatchNorm in training mode on chunks: a score of the authors' code, not of the network.

    Each subset of N' samples is cut into chunks, which go through the network as batches of their own (InfoMCR's
    ``chunk_size``, 10). Row i is the gradient of sample i's loss through the statistics of its chunk, so that it takes
    chunk x N' backward passes a subset; computed by a float64 copy. Running statistics are neither used nor changed.

    Args:
        subset, trials, seed: as of `Gram`.
        chunk: samples that share statistics; a divisor of `subset`, or at least as many: the whole subset.

    Raises:
        Undefined: the network has no BatchNorm.
    """

    subset: int = 100
    trials: int = 100
    seed: int = 0
    chunk: int = 10

    def __post_init__(self) -> None:
        if self.chunk < 2:
            raise UsageError(f"got a chunk of {self.chunk} for batch statistics; they need at least 2 samples")
        if self.chunk < self.subset and self.subset % self.chunk:
            raise UsageError(
                f"got subset={self.subset} and a chunk of {self.chunk}; chunks of one size must make up a subset: "
                f"chunk={self.subset} takes it whole"
            )

    def compute(self, minimum: Minimum) -> GramMatrices:
        if not any(isinstance(m, _BatchNorm) for m in minimum.model.modules()):
            raise Undefined("the network has no BatchNorm: batch statistics are those of no layer")
        plain = Gram(self.subset, self.trials, self.seed)
        state = plain.init(minimum)
        with minimum.open():
            model = copied(minimum.model).double()
        tensors: list[Tensor] = [p.requires_grad_() for p in _trainable(model, minimum)]
        order = minimum.samples.order(self.seed)[: plain.limit(minimum)]
        with same_randomness(), _batch_statistics(model):
            for t, subset in enumerate(order.split(state.normalized.shape[1])):
                parts = [_jacobian(minimum, model, tensors, chunk) for chunk in subset.split(self.chunk)]
                jacobian = torch.cat([rows for rows, _ in parts])
                log_norms = torch.cat([log_norms for _, log_norms in parts])
                state.normalized[t], state.log_norms[t] = jacobian @ jacobian.T, log_norms
                own = zip(state.layers.names, jacobian.split(state.sizes, 1), strict=True)
                squares = {name: rows.square().sum(1) * (2 * log_norms).exp() for name, rows in own}
                state.layers += Moments.of(state.layers.names, squares, len(subset))
                progress.report("Gram matrices of batches", t + 1, len(state.normalized))
        return plain.finish(state)

    def cost(self, minimum: Minimum) -> Cost:
        plain = Gram(self.subset, self.trials, self.seed).cost(minimum)
        chunk = min(self.chunk, self.subset)
        return Cost(plain.forward, chunk * plain.backward, 8 * self.subset * len(minimum.parameters))


def _jacobian(minimum: Minimum, model: nn.Module, tensors: list[Tensor], indices: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (b, W) of the losses for unit-norm output gradients, through one batch, and ln of the norms (b,)."""
    batch = minimum.batch(indices)
    inputs = map_tensors(lambda x: x.double() if x.is_floating_point() else x, batch.inputs)
    output = logits(call(model, inputs), minimum.output)
    minimum.passes.forward += len(indices)
    unit, log_norms = minimum.loss.seed(output.detach(), batch.targets)
    rows = []
    for i in range(len(indices)):
        seed = torch.zeros_like(unit)
        seed[i] = unit[i]
        rows.append(torch.cat([g.reshape(-1) for g in gradients(output, tensors, seed, retain_graph=True)]))
    minimum.passes.backward += len(indices) ** 2
    return torch.stack(rows), log_norms


def _trainable(model: nn.Module, minimum: Minimum) -> list[nn.Parameter]:
    """The copy's parameters that the Minimum counts."""
    by_name = dict(model.named_parameters())
    return [by_name[name] for name in minimum.parameters.names]


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm alone in training mode, its running statistics left alone; of a copy, which is thrown away."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()
            module.track_running_stats = False
    yield


@dataclass
class _Matrix:
    total: Tensor  # (parts, W, W)
    sizes: dict[str, int]  # of the parameters, in order
    edges: tuple[int, ...]  # of the parts, positions in the order
    start: int = 0  # of the batch whose gradients arrive now
    column: dict[str, Tensor] = field(default_factory=dict)  # per-sample gradients of one column, by parameter

    def flush(self) -> None:
        if not self.column:
            return
        n = len(next(iter(self.column.values())))
        columns = [
            self.column[name].reshape(n, -1).double() if name in self.column else self.total.new_zeros(n, size)
            for name, size in self.sizes.items()
        ]
        rows = torch.cat(columns, 1)
        for part, (one, two) in enumerate(pairwise(self.edges)):
            own = rows[max(one - self.start, 0) : max(two - self.start, 0)]
            self.total[part] += own.T @ own
        self.column = {}


@dataclass(frozen=True)
class FisherParts(Fold[_Matrix, Tensor]):
    """`FisherMatrix` of each of `parts` runs of the samples, (parts, W, W) float64.

    Args:
        samples: how many, drawn by `seed`; None: all.
        seed: of the draw.
        parts: of (nearly) equal size, at most a sample each.

    Raises:
        Undefined: more than 5,000 parameters.
    """

    samples: int | None = None
    seed: int = 0
    parts: int = 1

    reads = Reads.OUTPUTS | Reads.COLUMNS

    @property
    def order_seed(self) -> int | None:
        return None if self.samples is None and self.parts == 1 else self.seed

    def limit(self, minimum: Minimum) -> int:
        n = len(minimum.samples)
        return n if self.samples is None else min(self.samples, n)

    def init(self, minimum: Minimum) -> _Matrix:
        size = len(minimum.parameters)
        if size > _LARGEST:
            raise Undefined(f"the full matrix of {size} parameters is too large (limit {_LARGEST})")
        edges = group_edges(self.limit(minimum), self.parts)
        zeros = torch.zeros(len(edges) - 1, size, size, dtype=torch.float64, device=minimum.device)
        return _Matrix(zeros, {name: p.numel() for name, p in minimum.parameters}, tuple(edges))

    def receive(self, state: _Matrix, layer: LayerGradient, batch: Batch) -> None:
        gradients = layer.per_sample()
        if state.column.keys() & gradients.keys():  # the next column has begun
            state.flush()
        state.start = batch.start
        state.column.update(gradients)

    def update(self, state: _Matrix, batch: Batch) -> _Matrix:
        state.flush()
        return state

    def merge(self, left: _Matrix, right: _Matrix) -> _Matrix:
        return _Matrix(left.total + right.total, left.sizes, left.edges)

    def finish(self, state: _Matrix) -> Tensor:
        sizes = torch.tensor(state.edges).diff().to(state.total)
        return (state.total / sizes.view(-1, 1, 1)).cpu()


@dataclass(frozen=True)
class FisherMatrix(Statistic[Tensor]):
    """I = (1/n) sum_x sum_i f_i grad(-ln f_i) grad(-ln f_i)^T, (W, W) float64 (Jia & Su 2020, eq. 2, labels y = f).

    The Fisher matrix of the model's own distribution; it equals the Hessian of a loss whose labels the network fits.

    Args:
        samples: how many, drawn by `seed`; None: all.
        seed: of the draw.

    Raises:
        Undefined: more than 5,000 parameters.
    """

    samples: int | None = None
    seed: int = 0

    def compute(self, minimum: Minimum) -> Tensor:
        return minimum[FisherParts(self.samples, self.seed)][0]

    def cost(self, minimum: Minimum) -> Cost:
        return FisherParts(self.samples, self.seed).cost(minimum)
