"""The loop over the data: who shares a pass, what each batch holds, and how many passes it takes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from flatminima import Minimum
from flatminima.core.batch import Batch
from flatminima.core.statistic import Fold, Reads
from flatminima.core.sweep import shared_passes, sweep
from flatminima.errors import NumericalError
from flatminima.statistics import (
    BatchGradientSquares,
    FisherDiagonal,
    GaussNewtonDiagonal,
    Gram,
    HessianProbes,
    InputJacobian,
    Outputs,
)

N = 23


def minimum(batch_size: int = 5) -> Minimum:
    torch.manual_seed(0)
    return Minimum(nn.Linear(3, 4), (torch.randn(N, 3), torch.arange(N) % 4), batch_size=batch_size)


@dataclass(frozen=True)
class Recorder(Fold[Any, Any]):
    """Which samples came in which batch."""

    seed: int | None = None
    group: int = 1
    most: int = N
    reads = Reads.OUTPUTS

    @property
    def order_seed(self) -> int | None:
        return self.seed

    @property
    def multiple(self) -> int:
        return self.group

    def limit(self, minimum: Minimum) -> int:
        return self.most

    def init(self, minimum: Minimum) -> list[list[int]]:
        return []

    def update(self, state: list[list[int]], batch: Batch) -> list[list[int]]:
        assert batch.start == sum(len(b) for b in state) or batch.start >= self.most
        return [*state, batch.indices.tolist()]

    def merge(self, left: list[list[int]], right: list[list[int]]) -> list[list[int]]:
        return left + right

    def finish(self, state: list[list[int]]) -> list[list[int]]:
        return state


def test_batches_in_the_order_of_the_data() -> None:
    batches = minimum()[Recorder()]
    assert list(chain(*batches)) == list(range(N)) and [len(b) for b in batches] == [5, 5, 5, 5, 3]


def test_batches_in_a_random_order_in_whole_groups() -> None:
    """Groups of three in batches of five: three at a time; groups of seven: seven."""
    m = minimum()
    for group, sizes in ((3, [3] * 7), (7, [7] * 3), (2, [4] * 5 + [2])):
        batches = m[Recorder(4, group, N // group * group)]
        assert [len(b) for b in batches] == sizes
        assert list(chain(*batches)) == m.samples.order(4)[: N // group * group].tolist()


def test_a_fold_gets_no_batch_beyond_its_limit() -> None:
    """And a limit that is a whole number of groups cuts the batch, so that no group is split."""
    m = minimum(batch_size=13)
    short, whole = Recorder(4, 3, 6), Recorder(4, 3, 21)
    m.compute([short, whole, Outputs()])
    assert m[short] == m[whole][:1] and [len(b) for b in m[whole]] == [6, 12, 3]


def test_who_shares_a_sweep() -> None:
    folds = [
        Gram(4),
        Gram(4, trials=2),
        Outputs(),
        FisherDiagonal(),
        FisherDiagonal(samples=9),
        InputJacobian(),
        GaussNewtonDiagonal(),
        HessianProbes(),
    ]
    (shared,) = shared_passes(folds)
    assert set(shared.folds) == set(folds) and (shared.order_seed, shared.multiple) == (0, 4)
    apart = shared_passes([Gram(4), Gram(4, seed=1), Gram(5), BatchGradientSquares(4), Outputs()])
    assert [(r.order_seed, r.multiple, len(r.folds)) for r in apart] == [(0, 5, 2), (0, 4, 2), (1, 4, 1)]


def test_passes_are_shared() -> None:
    """One forward pass for all, one backward for gradients of the loss, one a class for columns."""
    m = minimum()
    assert m.follows_layers
    m.passes.forward = m.passes.backward = 0
    m.compute([Gram(4), Outputs(), FisherDiagonal()])
    assert m.passes.forward == N and m.passes.backward == N
    m.compute([GaussNewtonDiagonal(), InputJacobian(samples=1000)])
    assert m.passes.forward == 2 * N and m.passes.backward == N + 4 * N
    m.compute([GaussNewtonDiagonal(), Gram(4)])
    assert m.passes.forward == 2 * N


def test_the_index_chooses_the_samples() -> None:
    """The hook by which ranks (and tests) split the data."""
    m = minimum()
    (shared,) = shared_passes([Recorder()])
    with m.open():
        found = sweep(m, shared, lambda start, stop: torch.arange(start, stop).flip(0))[Recorder()]
    assert found[0] == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("fold", [Outputs(), Gram(1), HessianProbes(2), GaussNewtonDiagonal()], ids=repr)
def test_a_loss_that_is_not_finite_is_named_and_never_averaged_in(fold: Fold[Any, Any]) -> None:
    """By its place in the data, also when the samples come in another order: one that leaves none of them out."""

    def broken(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output.square().sum(1) / target

    target = torch.ones(N)
    target[17] = 0.0
    m = Minimum(nn.Linear(3, 4), (torch.randn(N, 3), target), broken, batch_size=5)
    with pytest.raises(NumericalError, match=r"the loss of sample 17 is not finite \(loss inf\)"):
        m[fold]
