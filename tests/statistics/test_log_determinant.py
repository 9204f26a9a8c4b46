"""Log-determinants at confident minima, where autograd's p_y - 1 is rounding or zero."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import Minimum
from flatminima.errors import Undefined
from flatminima.measures import fisher_logdet
from flatminima.statistics import Gram, GramMatrices, InFloat64
from flatminima.statistics.gram import LogDeterminants

SUBSET = 30


def _data(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3 * SUBSET) % 5
    centres = 1.5 * torch.randn(5, *shape, generator=generator)
    return centres[y] + torch.randn(3 * SUBSET, *shape, generator=generator), y


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5))


def _conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


SHAPES = {_mlp: (20,), _conv_net: (2, 6, 6)}


@functools.cache
def trained(make: object, scale: float) -> tuple[nn.Module, Tensor, Tensor]:
    """Trained to interpolate; then the last layer times `scale`, a stand-in for training much longer."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x, y = _data(*SHAPES[make])
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert float((model(x).argmax(1) == y).float().mean()) == 1.0
    for p in model[-1].parameters():
        p.data *= scale
    return model.eval(), x, y


def reference(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """ln det of J J^T by the singular values of an explicit float64 Jacobian, 2 sum_i ln s_i.

    The softmax's error is made from exponentials of differences, its p_y - 1 as minus the sum of the other entries;
    each row is divided by its error's length, whose logarithm is added at the end.
    """
    model, x = copy.deepcopy(model).double(), x.double()
    parameters = list(model.parameters())
    rows, log_lengths = [], []
    for i in range(len(x)):
        logits = model(x[i : i + 1])[0]
        gaps = (logits - logits[y[i]]).detach()
        others = torch.tensor([j for j in range(len(gaps)) if j != y[i]])
        top = gaps[others].max()
        weights = (gaps[others] - top).exp()
        error = torch.zeros_like(gaps)
        error[others], error[y[i]] = weights, -weights.sum()  # times exp(top) / sum_j exp(gaps_j)
        length = error.norm()
        log_lengths.append(length.log() + top - gaps.logsumexp(0))
        grads = torch.autograd.grad(logits, parameters, error / length)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    singular = torch.linalg.svdvals(torch.stack(rows))
    return 2 * singular.log().sum() + 2 * torch.stack(log_lengths).sum()


def naive(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The same by float32 autograd of the loss and a float64 determinant."""
    parameters = list(model.parameters())
    rows = []
    for i in range(len(x)):
        grads = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), parameters)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    jacobian = torch.stack(rows).double()
    return float(torch.linalg.slogdet(jacobian @ jacobian.T)[1])


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("make", SHAPES)
def test_log_determinant_in_float32(make: object, scale: float) -> None:
    """Within 1e-3 of float64 on three disjoint subsets, also where logits are four times larger."""
    model, x, y = trained(make, scale)
    minimum = Minimum(model, (x, y))
    found = minimum[Gram(SUBSET)].log_determinants()
    assert bool(found.positive.all())
    for value, part in zip(found.values, minimum.samples.order(0).view(3, SUBSET), strict=True):
        assert float(value) == pytest.approx(float(reference(model, x[part], y[part])), abs=1e-3)


@pytest.mark.parametrize("make", SHAPES)
def test_autograd_in_float32_is_not_enough(make: object) -> None:
    """What the test above would say of p_y - 1 by subtraction: off by far more than its tolerance, or infinite."""
    model, x, y = trained(make, 4.0)
    part = Minimum(model, (x, y)).samples.order(0)[:SUBSET]
    assert not abs(naive(model, x[part], y[part]) - float(reference(model, x[part], y[part]))) < 0.1


@pytest.mark.parametrize("scale", [1.0, 4.0, 30.0])
@pytest.mark.parametrize("make", SHAPES)
def test_float64_agrees_with_the_definition(make: object, scale: float) -> None:
    """The measure's fall back for ill-conditioned matrices; at 30 times the logits p_y is 1 even in float64."""
    model, x, y = trained(make, scale)
    minimum = Minimum(model, (x, y))
    found = minimum[InFloat64(Gram(SUBSET, 1))].log_determinants()
    part = minimum.samples.order(0)[:SUBSET]
    assert float(found.values[0]) == pytest.approx(float(reference(model, x[part], y[part])), abs=1e-8, rel=1e-9)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
@pytest.mark.parametrize("make", SHAPES)
def test_never_nan(make: object, scale: float) -> None:
    """Losses are exactly zero in float32 here; the determinant is tiny, and a number."""
    model, x, y = trained(make, scale)
    minimum = Minimum(model, (x, y))
    value = float(fisher_logdet(minimum, subset=SUBSET))
    parts = minimum.samples.order(0).view(3, SUBSET)
    expected = sum(float(reference(model, x[part], y[part])) for part in parts) / 3
    assert math.isfinite(value) and value == pytest.approx(expected, rel=1e-5)


def test_duplicate_samples_are_seen_as_singular() -> None:
    model, x, y = trained(_mlp, 1.0)
    x, y = torch.cat([x[:5], x[:5]]), torch.cat([y[:5], y[:5]])
    assert "singular" in str(fisher_logdet(Minimum(model, (x, y)), subset=10).undefined)


def test_fewer_parameters_than_samples() -> None:
    minimum = Minimum(nn.Linear(2, 2), (torch.randn(9, 2), torch.arange(9) % 2))
    with pytest.raises(Undefined, match="6 parameters cannot give 7 independent gradients"):
        minimum[Gram(7)].log_determinants()


def test_a_zero_gradient() -> None:
    gram = GramMatrices(torch.diag(torch.tensor([1.0, 0.0])).double()[None], torch.zeros(1, 2).double(), 5)
    with pytest.raises(Undefined, match="1 samples have a zero gradient"):
        gram.log_determinants()


def test_condition_and_rank_of_a_known_matrix() -> None:
    """Eigenvalues 1.5 and 0.5: condition 3, rank exp(-0.75 ln 0.75 - 0.25 ln 0.25); the scales cancel."""
    correlation = torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double()
    scale = torch.tensor([2.0, 10.0]).double()
    gram = GramMatrices((correlation * scale * scale[:, None])[None], torch.tensor([[-400.0, 3.0]]).double(), 5)
    found = gram.log_determinants()
    assert float(found.condition) == pytest.approx(3.0)
    assert float(found.effective_rank) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert float(found.values) == pytest.approx(math.log(0.75) + 2 * math.log(20.0) + 2 * (-400.0 + 3.0))


def test_a_determinant_below_rounding_is_none():
    """The condition at which float64 has lost the last pivot of n rows: 1 / (n eps)."""
    edge = 1 / (10 * torch.finfo(torch.float64).eps)
    conditions = torch.tensor([1.0, 0.9 * edge, 1.1 * edge, 1e3 * edge], dtype=torch.float64)
    whole = torch.ones(4, dtype=torch.bool)
    found = LogDeterminants(torch.zeros(4), conditions, torch.zeros(4), whole, 10)
    assert found.singular().tolist() == [False, False, True, True]
    assert LogDeterminants(torch.zeros(4), torch.ones(4), torch.zeros(4), ~whole, 10).singular().all()
