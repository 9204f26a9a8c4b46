"""Spectral norms of the Jacobian by the input, of the logits or probabilities at one labelled position a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.parameters import frozen
from flatminima.core.perturbation import generator
from flatminima.core.statistic import Cost, Fold
from flatminima.errors import Undefined, UsageError
from flatminima.statistics.embeddings import continuous_inputs, of_tokens, refuse_unopened
from flatminima.statistics.entropy import PositionSums
from flatminima.statistics.jacobian import MANY_CLASSES, PRODUCT_COST, USUAL_PRODUCTS, norms_of_logits, norms_of_softmax
from flatminima.statistics.positions import Labelled, PositionUnit, labelled_positions, refuse_none

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

Of = Literal["probabilities", "logits"]


@dataclass
class _State:
    squares: Tensor
    counts: Tensor
    unit: PositionUnit = "sample"
    embedded: bool = False


@dataclass(frozen=True)
class PositionJacobian(Fold[_State, PositionSums]):
    """||d f / dx||_2^2 at a random labelled position of each of `samples` random samples, times the sample's positions.

    The mean over positions is sum(sums) / sum(counts); one position a sample is looked at, since those of one sample
    are alike. x are the inputs, or of a network of tokens their embeddings. f are the position's class probabilities or
    logits, or for targets that are no classes (of="logits" alone) the whole output. Up to 64 classes a backward pass
    each, above by Lanczos.

    Args:
        samples: how many at most.
        of: "probabilities" or "logits".
        seed: of samples and positions.

    Raises:
        Undefined: tokens without an embedding; probabilities where targets are not classes.
    """

    samples: int = 300
    of: Of = "probabilities"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.of not in ("probabilities", "logits"):
            raise UsageError(f"got of={self.of!r}; expected 'probabilities' or 'logits'")

    @property
    def order_seed(self) -> int:
        return self.seed

    def limit(self, minimum: Minimum) -> int:
        return min(self.samples, len(minimum.samples))

    def init(self, minimum: Minimum) -> _State:
        inputs, _ = minimum.samples.take(torch.arange(1))
        n, tokens = self.limit(minimum), of_tokens(inputs)
        return _State(torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64), embedded=tokens)

    def update(self, state: _State, batch: Batch) -> _State:
        stop = min(batch.start + len(batch), len(state.counts))
        inside = slice(0, stop - batch.start)  # a batch may reach beyond the limit
        found = self._labelled(batch)
        if found is not None:
            state.unit = found.unit
        counts = torch.ones(len(batch), dtype=torch.float64)
        if found is not None:
            counts = found.counted.sum(1).double().cpu()
        squares = self._norms(batch, found, len(state.counts)).square().cpu()
        state.squares[batch.start : stop] = (squares * counts)[inside]
        state.counts[batch.start : stop] = counts[inside]
        return state

    def _labelled(self, batch: Batch) -> Labelled | None:
        """None: the whole output of a sample is looked at."""
        try:
            return labelled_positions(batch.minimum.loss, batch.outputs, batch.targets)
        except Undefined as reason:
            if self.of == "logits":
                return None
            raise Undefined(
                f"the Jacobian of the class probabilities needs a classifier: {reason.reason}; of='logits' needs none"
            ) from None

    def _norms(self, batch: Batch, found: Labelled | None, limit: int) -> Tensor:
        """(b,), at one position a sample."""
        minimum = batch.minimum
        with continuous_inputs(batch) as inputs, frozen(minimum.parameters):
            output = minimum.forward(batch.inputs)
            refuse_unopened(inputs)
            if found is None:
                rows = output.reshape(len(output), -1)
            else:
                uniform = _rows_of(torch.rand(limit, 1, generator=generator(self.seed, 1), dtype=torch.float64), batch)
                every = torch.arange(len(output), device=output.device)
                rows = found.rows_of(output)[every, _drawn(found.counted, uniform)]
            start = torch.randn(limit, rows.shape[1], generator=generator(self.seed, 0), dtype=torch.float64)
            norms = norms_of_logits if self.of == "logits" else norms_of_softmax
            return norms(minimum, rows, inputs, _rows_of(start, batch))

    def merge(self, left: _State, right: _State) -> _State:
        unit = left.unit if bool(left.counts.any()) else right.unit
        return _State(left.squares + right.squares, left.counts + right.counts, unit, left.embedded)

    def finish(self, state: _State) -> PositionSums:
        refuse_none(float(state.counts.sum()))
        return PositionSums(state.squares, state.counts, state.unit, state.embedded)

    def cost(self, minimum: Minimum) -> Cost:
        share = self.limit(minimum) / len(minimum.samples)
        classes = minimum.output_size
        passes = classes if classes <= MANY_CLASSES else 1 + PRODUCT_COST * USUAL_PRODUCTS
        return Cost(forward=2 * share, backward=share * passes)


def _rows_of(drawn: Tensor, batch: Batch) -> Tensor:
    """A batch's part of what was drawn for every sample of the order (a batch may reach beyond the limit)."""
    part = drawn[batch.start : batch.start + len(batch)]
    missing = len(batch) - len(part)
    return torch.cat([part, part.new_ones(missing, drawn.shape[1])]).to(batch.outputs.device)


def _drawn(counted: Tensor, uniform: Tensor) -> Tensor:
    """One labelled position (b,) of each sample, by uniform numbers (b, 1)."""
    ranks = counted.long().cumsum(1)  # 1 at the first labelled position
    labelled = ranks[:, -1:]
    wanted = (1 + (uniform * labelled).floor().long()).minimum(labelled).clamp_min(1)
    return torch.searchsorted(ranks, wanted).squeeze(1).clamp_max(counted.shape[1] - 1)
