"""The margin percentile against the reference vector and plain Python."""

import math

import pytest
import torch
from measure_oracle import blobs, generator, mlp, vector
from torch import nn

from flatminima import Minimum
from flatminima.core.statistic import Fixed
from flatminima.errors import UsageError
from flatminima.measures import margin, output_entropy
from flatminima.statistics import Margins, Outputs, OutputSummary, SortedMargins


def _given(margins, losses=(0.5, 1.5)):
    found = SortedMargins(margins.sort().values, "sample")
    return Fixed({Margins(): found, Outputs(): OutputSummary(torch.tensor(losses).double(), margins)})


def test_reference_vector():
    """k = ceil(eps n) without interpolation; 0.15 * 10 = 1.5 rounds up."""
    inputs, expected = vector("margin_percentile")
    margins = torch.tensor(inputs["margins"], dtype=torch.float64)
    for fraction, gamma in zip(inputs["eps"], expected["gamma"], strict=True):
        assert margin(_given(margins), fraction=fraction).value == gamma


@pytest.mark.parametrize(
    ("n", "fraction", "k"), [(100, 0.07, 7), (20, 0.15, 3), (1, 0.05, 1), (10, 1.0, 10), (21, 0.05, 2)]
)
def test_rounding_errors_of_the_product_do_not_reach_k(n, fraction, k):
    """0.07 * 100 is 7.000000000000001, whose ceiling is 8."""
    found = margin(_given(torch.arange(1.0, n + 1).double()), fraction=fraction)
    assert (found.value, found.details["k"]) == (float(k), k)


def test_the_sign_is_kept_and_mistakes_are_counted():
    found = margin(_given(torch.tensor([-2.0, 0.0, 1.0, 3.0]).double()), fraction=0.25)
    assert found.value == -2.0
    assert found.direction == "higher"
    expected = {"n": 4, "unit": "sample", "k": 1, "train_error": 0.5, "train_loss": 1.0, "error_of": "exact"}
    assert found.details == expected
    assert found.stderr is None


def test_a_networks_margins_one_sample_at_a_time():
    model = mlp(5, 7, 4)
    x, y = blobs(23, 5, 4)
    with torch.no_grad():
        scores = model(x).tolist()
    margins = sorted(
        s[label] - max(v for j, v in enumerate(s) if j != label) for s, label in zip(scores, y.tolist(), strict=True)
    )
    for fraction in (0.05, 0.3):
        found = margin(Minimum(model, (x, y), batch_size=5), fraction=fraction)
        assert found.value == pytest.approx(margins[math.ceil(fraction * 23) - 1], rel=1e-12)


def test_regression_has_no_margin():
    x, _ = blobs(9, 3, 2)
    found = margin(Minimum(mlp(3, 4, 2), (x, x[:, :2]), "mse"))
    assert found.undefined == "targets are not classes (integers beside an output of one logit a class)"


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, math.nan])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(UsageError, match=r"got fraction=.*must lie in \(0, 1\]"):
        margin(_given(torch.ones(3)), fraction=fraction)


# -- entropy ---------------------------------------------------------------------------------------------------------


def test_the_entropy_of_known_probabilities():
    """Logits (0, ln 3): probabilities 1/4 and 3/4; catches bits for nats and a class left out."""
    net = nn.Linear(1, 2).double()
    with torch.no_grad():
        net.weight.zero_()
        net.bias.copy_(torch.tensor([0.0, math.log(3.0)], dtype=torch.float64))
    minimum = Minimum(net, (torch.ones(3, 1).double(), torch.tensor([0, 1, 0])))
    found = output_entropy(minimum)
    assert found.value == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), rel=1e-12)
    assert found.direction == "higher"


def test_the_entropy_of_a_certain_network_is_zero_not_nan():
    minimum = Minimum(nn.Linear(1, 2).double(), (torch.full((2, 1), 1e6).double(), torch.tensor([0, 1])))
    assert output_entropy(minimum).value == pytest.approx(0.0, abs=1e-9)


def test_intervals_of_the_entropy_cover_the_population():
    model = mlp(3, 5, 3)
    x = torch.randn(20_000, 3, generator=generator(3), dtype=torch.float64)
    y = torch.zeros(20_000, dtype=torch.long)
    p = model(x).detach().softmax(1)
    exact = float(-(p * p.log()).sum(1).mean())
    assert output_entropy(Minimum(model, (x, y))).value == pytest.approx(exact, rel=1e-10)
    found = [output_entropy(Minimum(model, (part, y[:100]))).interval() for part in x.split(100)]
    assert 0.90 <= sum(low <= exact <= high for low, high in found) / 200 <= 0.99
