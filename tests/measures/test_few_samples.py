"""Defaults that adapt: a table of any number of samples, each measure a value or undefined with a true reason."""

from functools import partial

import pytest
import torch
from measure_oracle import mlp
from torch import nn

from flatminima import Minimum, catalog, measure, measures
from flatminima.errors import DataError
from flatminima.estimate import ERRORS

# reasons that have nothing to do with how many samples there are
OTHERWISE = {
    "conditions": "no biases",
    "distance_from_init": "give initial=",
    "fisher_logdet_full": "is singular",
    "perturbation_score": "no biases",
    "power_law_exponent": "no spectrum to fit",
}
ONE = {"gradient_noise_scale": "one sample", "gradient_variance": "one sample", "gradient_signal_to_noise": "no noise"}


def fitted(n, classes=3):
    """Labels are the network's own answers, and the margin is positive."""
    net = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 3)).double().eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.7 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    x = torch.randn(40 * n, 4, generator=g, dtype=torch.float64)
    two = net(x).topk(2).values
    x = x[two[:, 0] - two[:, 1] > 0.3]
    x = x[net(x).argmax(1) < classes][:n]
    assert len(x) == n
    return Minimum(net, (x, net(x).argmax(1)))


@pytest.mark.parametrize("n", [1, 2, 7, 40, 99])
def test_a_table_of_few_samples(n):
    table = measure(fitted(n))
    assert set(table) >= {"fisher_logdet", "fisher_trace", "hessian_trace", "sharpness", "pacgen"}
    for name, e in table.items():
        reason = OTHERWISE.get(name) or (ONE.get(name) if n == 1 else None)
        if e.value is None and catalog.MEASURES[name].module in ("norms", "lipschitz", "spectral_complexity"):
            continue  # of ReLU networks
        assert (e.value is None) == (reason is not None), (name, e)
        assert reason is None or reason in e.undefined
    for name in ("fisher_logdet", "fisher_trace", "fisher_frobenius", "fisher_spectral_radius"):
        assert table[name].details["subset"] == n
        assert table[name].details["note"] == f"subset {n}, of fewer than 100 samples"
    assert f"subset {n}, of fewer than 100" in " ".join(str(table).split())


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_thorough_table_of_few_samples(n):
    table = measure(fitted(n), budget="thorough")
    for name, e in table.items():
        reason = OTHERWISE.get(name) or (ONE.get(name) if n == 1 else None)
        if e.value is None and catalog.MEASURES[name].module in ("norms", "lipschitz", "spectral_complexity"):
            continue
        if name.startswith("noise_") and e.value is None:
            assert "no noise raises it" in e.undefined or "no such level" in e.undefined
            continue
        assert (e.value is None) == (reason is not None), (name, e)


def test_one_class_alone():
    table = measure(fitted(30, classes=1))
    undefined = {name for name, e in table.items() if e.value is None}
    assert {catalog.MEASURES[name].module for name in undefined} <= {
        "norms", "lipschitz", "spectral_complexity", "power_law", "distance",
    }  # fmt: skip


def test_a_hundred_are_the_default_and_no_note():
    found = measures.fisher_trace(fitted(150))
    assert found.details["subset"] == 100 and "note" not in found.details


@pytest.mark.parametrize(
    "function",
    [measures.fisher_logdet, measures.fisher_trace, measures.gradient_variance, measures.gradient_noise_scale],
)
def test_more_than_there_are_is_refused_and_the_advice_can_be_followed(function):
    minimum = fitted(50)
    with pytest.raises(DataError, match=r"got 50 samples.*pass subset=50 or less"):
        function(minimum, subset=100)
    advised, default = function(minimum, subset=50), function(minimum)
    assert advised.value == default.value and "note" not in advised.details
    assert measure(minimum, [partial(function, subset=50)])


# -- singular subsets ------------------------------------------------------------------------------------------------


def with_copies(pairs, n=400):
    """Of distinct samples, and some twice."""
    net = mlp(5, 30, 4)
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(n, 5, generator=g, dtype=torch.float64), torch.randint(0, 4, (n,), generator=g)
    clean = Minimum(net, (x.clone(), y.clone()))
    for i in range(pairs):
        x[n - 1 - i], y[n - 1 - i] = x[i], y[i]
    return clean, Minimum(net, (x, y))


def test_one_singular_subset_does_not_sink_the_others():
    """It is left out, counted and noted; the value is that of the rest, and near that of distinct samples."""
    clean, copied = with_copies(20)
    expected = measures.fisher_logdet(clean, subset=20)
    assert expected.details["singular"] == 0 and expected.details["trials"] == 20
    found = measures.fisher_logdet(copied, subset=20)
    out = found.details["singular"]
    assert 0 < out < 10 and found.details["trials"] == 20 - out == found.details["n"]
    assert f"{out} of 20 subsets are singular and left out" in found.details["note"]
    assert abs(found.value - expected.value) < 4 * (found.stderr**2 + expected.stderr**2) ** 0.5
    assert found.details["condition"] < 1e12


def test_a_sample_without_a_gradient_spoils_its_subset_alone():
    net = nn.Linear(3, 1, bias=False).double()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, generator=g, dtype=torch.float64)
    y = torch.randn(24, 1, generator=g, dtype=torch.float64)
    y[5] = net(x[5]).detach()  # squared loss, fitted to the last bit
    found = measures.fisher_logdet(Minimum(net, (x, y), "mse"), subset=2)
    assert found.details["singular"] == 1 and found.details["trials"] == 11
    y = net(x).detach()
    nothing = measures.fisher_logdet(Minimum(net, (x, y), "mse"), subset=2)
    assert "zero gradient" in nothing.undefined


def test_where_most_subsets_are_singular_there_is_no_value():
    _, copied = with_copies(200)
    found = measures.fisher_logdet(copied, subset=40)
    assert "Gram matrices are singular" in found.undefined and "duplicate samples" in found.undefined


# -- what a standard error is over -----------------------------------------------------------------------------------


def test_every_measure_of_the_catalogue_says_what_its_error_is_over():
    table = measure(fitted(40), list(catalog.MEASURES))
    for name, e in table.items():
        if e.value is not None:
            assert e.details.get("error_of") in ERRORS, name
            assert (e.details["error_of"] == "exact") <= (e.stderr is None), name
