"""Spectral norms of the softmax output's Jacobian by the input, one backward pass a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.batch import Batch
from flatminima.errors import Undefined
from flatminima.statistic import Fold, Reads

if TYPE_CHECKING:
    from flatminima.minimum import Minimum


@dataclass(frozen=True)
class InputJacobian(Fold[Tensor, Tensor]):
    """||d softmax(f(x)) / dx||_2 of `samples` random samples, (samples,) float64.

    Row c of the softmax's Jacobian is sqrt(p_c) times the Gauss-Newton column sqrt(p_c)(e_c - p) sent back, so the
    passes are shared with the Gauss-Newton diagonal. The norm comes from the C x C Gram matrix of the rows.
    """

    samples: int = 1000
    seed: int = 0

    reads = Reads.OUTPUTS | Reads.INPUTS

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
        root_p = (0.5 * batch.outputs.double().log_softmax(1)).exp()  # (b, C)
        columns = batch.input_columns  # (C, b, D)
        gram = torch.einsum("cbd,kbd->bck", columns, columns).double()
        gram = gram * root_p.unsqueeze(2) * root_p.unsqueeze(1)
        norms = torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0).sqrt()
        stop = min(batch.start + len(batch), len(state))
        state[batch.start : stop] = norms[: stop - batch.start].cpu()
        return state

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right

    def finish(self, state: Tensor) -> Tensor:
        return state
