"""The input Jacobian of the probabilities against an explicit one and its singular values."""

import pytest
import torch
from measure_oracle import blobs, cnn, generator, mlp
from torch import nn

from flatminima import Minimum
from flatminima.errors import UsageError
from flatminima.measures import robustness
from flatminima.statistic import Fixed
from flatminima.statistics import InputJacobian


def _norms(model, x):
    """||d softmax(f(x)) / dx||_2^2 of each sample, by singular values."""
    rows = []
    for sample in x:
        jacobian = torch.autograd.functional.jacobian(lambda t: model(t.unsqueeze(0)).softmax(1)[0], sample)
        rows.append(torch.linalg.svdvals(jacobian.flatten(1))[0] ** 2)
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_explicit_jacobians(kind):
    """Catches logits in place of probabilities, a Frobenius norm, a missing square; batches of 7, 7, 7 and 2."""
    x, y = blobs(23, 5, 3)
    model = mlp(5, 8, 3)
    if kind == "cnn":
        model, x = cnn(), torch.randn(23, 2, 7, 6, generator=generator(4), dtype=torch.float64)
    norms = _norms(model, x)
    found = robustness(Minimum(model, (x, y), batch_size=7))
    assert found.value == pytest.approx(float(norms.mean()), rel=1e-8)
    assert found.stderr == pytest.approx(float(norms.std() / 23**0.5), rel=1e-8)


def test_a_subset_is_the_start_of_the_seeds_order():
    x, y = blobs(23, 5, 3)
    minimum = Minimum(mlp(5, 8, 3), (x, y), batch_size=4)
    chosen = minimum.samples.order(9)[:6]
    found = robustness(minimum, samples=6, seed=9)
    assert found.value == pytest.approx(float(_norms(minimum.model, x[chosen]).mean()), rel=1e-8)
    assert found.details["n"] == 6


def test_two_classes_in_closed_form():
    """Logits (0, w x): the Jacobian is p (1 - p) (-w, w)^T, its squared norm 2 (p (1 - p) w)^2."""
    net = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0], [3.0]]))
    x = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
    p = torch.sigmoid(3 * x).flatten()
    expected = float((2 * (p * (1 - p) * 3).square()).mean())
    assert robustness(Minimum(net, (x, torch.tensor([0, 1])))).value == pytest.approx(expected, rel=1e-10)


def test_it_is_the_mean_square_of_the_given_norms():
    found = robustness(Fixed({InputJacobian(300, 0): torch.tensor([1.0, 3.0]).double()}))
    assert (found.value, found.stderr) == (5.0, pytest.approx(4.0))


def test_token_inputs_are_not_continuous():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)).double()
    x = torch.randint(0, 5, (9, 2), generator=generator(0))
    assert "not continuous" in robustness(Minimum(net, (x, torch.arange(9) % 2))).undefined


def test_regression_has_no_probabilities():
    x = blobs(9, 3, 2)[0]
    assert "needs a classifier" in robustness(Minimum(mlp(3, 4, 2), (x, x[:, :2]), "mse")).undefined


def test_no_samples_are_refused():
    x, y = blobs(9, 3, 2)
    with pytest.raises(UsageError, match="samples=0; it must be at least 1"):
        robustness(Minimum(mlp(3, 4, 2), (x, y)), samples=0)
