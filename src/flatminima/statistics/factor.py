"""Low-rank factors of the Fisher and Gauss-Newton matrices: rows B with B^T B = F, one sweep.

They hold what a Gram matrix forgets, the directions in weight space: rows (samples, W) or (samples x columns, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.layer_gradient import LayerGradient
from flatminima.core.statistic import Cost, Fold, Reads
from flatminima.errors import DataError, UsageError

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

LARGEST = 1 << 31  # bytes of rows that are kept


@dataclass
class _Rows:
    sizes: dict[str, int]
    dtype: torch.dtype
    stop: int
    current: dict[str, list[Tensor]] = field(default_factory=dict)  # of this batch: one (batch, size) a backward pass
    blocks: dict[int, Tensor] = field(default_factory=dict)  # by the position of their first sample
    count: int = 0


@dataclass(frozen=True)
class _Factor(Fold[_Rows, Tensor]):
    """B (rows, W) in the weights' dtype, with B^T B the mean over the samples.

    Args:
        samples: how many, drawn by `seed`.
        seed: of the draw.

    Raises:
        UsageError: the rows need more than 2 GiB.
    """

    samples: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise DataError(f"got samples={self.samples}; a factor needs at least 1")

    @property
    def order_seed(self) -> int:
        return self.seed

    def limit(self, minimum: Minimum) -> int:
        return min(self.samples, len(minimum.samples))

    def rows(self, minimum: Minimum) -> int:
        """Number of rows of a factor."""
        return self.limit(minimum)

    def init(self, minimum: Minimum) -> _Rows:
        size = minimum.parameters.tensors[0].element_size() * self.rows(minimum) * len(minimum.parameters)
        if size > LARGEST:
            raise UsageError(
                f"{self.rows(minimum)} gradients of {len(minimum.parameters)} parameters need {size / 2**30:.1f} GiB, "
                f"the limit is {LARGEST / 2**30:.0f}: use fewer samples"
            )
        dtype = minimum.parameters.tensors[0].dtype
        return _Rows({name: p.numel() for name, p in minimum.parameters}, dtype, self.limit(minimum))

    def receive(self, state: _Rows, layer: LayerGradient, batch: Batch) -> None:
        for name, gradients in layer.per_sample().items():
            state.current.setdefault(name, []).append(
                gradients.reshape(len(gradients), -1).to(state.dtype, copy=True).cpu()
            )

    def weights(self, batch: Batch) -> Tensor | None:
        """Lengths (batch,) float64 of the gradients that arrived, where they arrived as unit vectors."""
        return None

    def update(self, state: _Rows, batch: Batch) -> _Rows:
        inside = max(0, min(len(batch), state.stop - batch.start))
        passes = max((len(rows) for rows in state.current.values()), default=0)
        zeros = [torch.zeros(len(batch), 1, dtype=state.dtype)] * passes
        parts = [
            torch.stack(state.current.get(name, [z.expand(-1, size) for z in zeros]), 1)
            for name, size in state.sizes.items()
        ]
        block = torch.cat(parts, 2)[:inside]  # (inside, passes, W)
        lengths = self.weights(batch)
        if lengths is not None:
            block = block * lengths[:inside].cpu().to(block.dtype).view(-1, 1, 1)
        state.blocks[batch.start] = block.flatten(0, 1)
        state.count += inside
        state.current.clear()
        return state

    def merge(self, left: _Rows, right: _Rows) -> _Rows:
        return _Rows(left.sizes, left.dtype, left.stop, {}, left.blocks | right.blocks, left.count + right.count)

    def finish(self, state: _Rows) -> Tensor:
        rows = torch.cat([block for _, block in sorted(state.blocks.items())])
        return rows / math.sqrt(state.count)

    def cost(self, minimum: Minimum) -> Cost:
        size = minimum.parameters.tensors[0].element_size() * self.rows(minimum) * len(minimum.parameters)
        passes = Fold.cost(self, minimum)
        return Cost(passes.forward, passes.backward, size)


@dataclass(frozen=True)
class FisherFactor(_Factor):
    """Rows g_i / sqrt(n), g_i the gradient of sample i's loss: the empirical Fisher matrix is B^T B."""

    reads = Reads.OUTPUTS | Reads.LAYERS

    def weights(self, batch: Batch) -> Tensor:
        return batch.log_norms.exp()


@dataclass(frozen=True)
class GaussNewtonFactor(_Factor):
    """Rows B_c^T J_i / sqrt(n), a sample's C columns after each other: the Gauss-Newton matrix is B^T B.

    For the cross-entropy it is the Fisher matrix proper, its labels drawn from the network's own prediction.
    """

    reads = Reads.OUTPUTS | Reads.COLUMNS

    def rows(self, minimum: Minimum) -> int:
        return self.limit(minimum) * minimum.output_size
