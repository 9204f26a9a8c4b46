"""Gram matrices and their diagonals against explicit float64 Jacobians, for every kind of layer and network."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from case_networks import Case, N, Net, conv_net, numbers
from cases import BY_NAME, CASES
from flatminima import Minimum
from flatminima.errors import Undefined
from flatminima.statistics import FisherDiagonal, Gram, Outputs
from truth import Truth

TOLERANCE = 1e-8  # relative, of the largest entry

by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def _minimum(case: Case, **options: int) -> tuple[Minimum, torch.Tensor]:
    """A Minimum of the case, and the order in which its Gram matrices hold the samples."""
    model, data = case.make()
    minimum = Minimum(model, data, case.loss, **options)
    return minimum, minimum.samples.order(0)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.abs().max())
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= TOLERANCE * scale


@by_case
def test_gram_is_the_product_of_explicit_gradients(case: Case) -> None:
    """One gradient a backward pass; a wrong stride, dilation, group, tie or padding changes entries by percents."""
    minimum, order = _minimum(case)
    gradients = Truth(case).gradients()[order]
    assert_close(minimum[Gram(N, 1)].matrices()[0], gradients @ gradients.T)


@by_case
def test_layers_are_followed_as_expected(case: Case) -> None:
    """A silent fall back to one backward pass a sample would be correct and fifty times slower."""
    minimum, _ = _minimum(case)
    path = "samples"
    if minimum.follows_layers:
        path = "vmapped" if any(unit.rule is None for unit in minimum.units) else "rules"
    assert path == case.path


@by_case
def test_gram_in_disjoint_subsets(case: Case) -> None:
    """Two subsets of three from seven samples in one batch or two: rows of different subsets must not meet."""
    for batch_size in (3, 6):
        minimum, order = _minimum(case, batch_size=batch_size)
        gradients = Truth(case).gradients()[order][:6].view(2, 3, -1)
        assert_close(minimum[Gram(3)].matrices(), gradients @ gradients.transpose(1, 2))


@by_case
def test_fisher_diagonal_is_the_mean_of_squared_gradients(case: Case) -> None:
    """Also on a random part of the samples, in batches that do not divide it."""
    minimum, order = _minimum(case, batch_size=3)
    gradients = Truth(case).gradients()
    assert_close(minimum[FisherDiagonal()], gradients.square().mean(0))
    assert_close(minimum[FisherDiagonal(samples=5)], gradients[order[:5]].square().mean(0))
    shared, _ = minimum[FisherDiagonal(samples=4), Gram(3)]  # batches of threes: one holds two rows too many
    assert_close(shared, gradients[order[:4]].square().mean(0))


@by_case
def test_losses(case: Case) -> None:
    minimum, _ = _minimum(case, batch_size=3)
    assert_close(minimum[Outputs()].losses, torch.stack(Truth(case).losses()).detach())


def test_inputs_are_copied_only_where_they_are_written() -> None:
    copies = {case.name: _minimum(case)[0].copies for case in CASES}
    assert {name: n for name, n in copies.items() if n} == {
        "relu in place": 1,  # into the first layer's output
        "a layer's input written in place": 2,
    }


def test_a_network_whose_own_backward_pass_fails() -> None:
    def spoil(s: Any, x: torch.Tensor) -> torch.Tensor:
        h = s.a(x).tanh()
        return s.b(h) + h.mul_(0.5)

    model = Net(spoil, a=torch.nn.Linear(3, 3), b=torch.nn.Linear(3, 3))
    with pytest.raises(Undefined, match="own backward pass fails: one of the variables"):
        Minimum(model, (torch.randn(N, 3), torch.arange(N) % 3))[Gram(3)]


def test_both_branches_of_sequences_are_taken() -> None:
    """The two sequence cases must exercise different code, or one of them tests nothing."""
    from flatminima.core.layer_grams import linear_grams

    taken = {}
    for name in ("sequences, products of steps", "sequences, gradients formed"):
        minimum, _ = _minimum(BY_NAME[name])
        unit = minimum.units[0]
        steps, width = minimum.samples.take(torch.arange(1))[0].shape[1:]
        a = torch.zeros(N, steps, width)
        e = torch.zeros(N, steps, unit.module.out_features)
        taken[name] = linear_grams(unit.names, a, e, 1) is not None
    assert list(taken.values()) == [True, False]


def test_a_wide_convolution_in_blocks_of_channels() -> None:
    """More output channels than one block of memory holds: a block lost or repeated changes the sum."""
    from flatminima.core import layer_rules

    case = Case("wide", lambda: conv_net(torch.nn.Conv2d(3, 40, 3), torch.nn.MaxPool2d(3), 40), numbers(3, 5, 5))
    minimum, order = _minimum(case)
    gradients = Truth(case).gradients()[order]
    whole, layer_rules._BLOCK_BYTES = layer_rules._BLOCK_BYTES, N * 27 * 8 * 7  # seven channels a block
    try:
        found = minimum[Gram(N, 1)].matrices()[0]
    finally:
        layer_rules._BLOCK_BYTES = whole
    assert_close(found, gradients @ gradients.T)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_a_convolution_of_even_size_that_keeps_the_size() -> None:
    """It pads one side more than the other; padding evenly shifts the gradient by a pixel."""
    case = Case(
        "even", lambda: conv_net(torch.nn.Conv2d(2, 3, (2, 4), padding="same"), torch.nn.MaxPool2d(2), 12),
        numbers(2, 4, 5),
    )  # fmt: skip
    minimum, order = _minimum(case)
    gradients = Truth(case).gradients()[order]
    assert minimum.follows_layers
    assert_close(minimum[Gram(N, 1)].matrices()[0], gradients @ gradients.T)
