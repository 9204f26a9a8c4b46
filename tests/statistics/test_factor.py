"""Low-rank factors: their products are the matrices that other code forms, and they know when they are too large."""

from __future__ import annotations

import pytest
import torch

from case_networks import N
from cases import BY_NAME
from flatminima import Minimum
from flatminima.errors import DataError, UsageError
from flatminima.statistics import FisherFactor, FisherMatrix, GaussNewtonFactor, Gram, factor
from truth import call, one_loss, pick, trainable


@pytest.mark.parametrize("name", ["mlp", "batch_norm2d", "tied embedding and head", "a module in two places", "mse"])
def test_rows_are_the_gradients_of_a_loop(name: str) -> None:
    case = BY_NAME[name]
    model, (inputs, targets) = case.make()
    rows = Minimum(model, (inputs, targets), case.loss, batch_size=3)[FisherFactor(N)]
    parameters = trainable(model)
    truth = torch.stack(
        [
            torch.cat([g.reshape(-1) for g in _gradient(model, case.loss, inputs, targets, i, parameters)])
            for i in range(N)
        ]
    )
    assert torch.allclose(rows.T @ rows, truth.T @ truth / N, rtol=1e-9, atol=1e-14)


def _gradient(model, loss, inputs, targets, i, parameters):  # type: ignore[no-untyped-def]
    value = one_loss(loss, call(model, pick(inputs, i)), targets[i : i + 1])
    return torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)


def test_gauss_newton_rows_give_the_full_fisher_matrix() -> None:
    case = BY_NAME["mlp"]
    minimum = Minimum(*case.make(), batch_size=3)
    rows = minimum[GaussNewtonFactor(N)]
    assert torch.allclose(rows.T @ rows, minimum[FisherMatrix()], rtol=1e-9, atol=1e-14)


def test_a_subset_is_that_of_the_gram_matrix() -> None:
    """The same seed draws the same samples, so that spectrum and measure are of one matrix."""
    minimum = Minimum(*BY_NAME["mlp"].make(), batch_size=2)
    rows = minimum[FisherFactor(3, seed=5)]
    assert torch.allclose(rows @ rows.T, minimum[Gram(3, 1, seed=5)].matrices()[0] / 3, rtol=1e-9)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor, "LARGEST", 1000)
    with pytest.raises(UsageError, match="use fewer samples"):
        Minimum(*BY_NAME["mlp"].make())[FisherFactor(N)]
    with pytest.raises(DataError, match="at least 1"):
        FisherFactor(0)
