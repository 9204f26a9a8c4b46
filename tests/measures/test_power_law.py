"""The power-law fit against its definition written out, against samples of known exponent, and against `powerlaw`."""

import io
import math
import warnings
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from torch import nn

from flatminima import Minimum
from flatminima.errors import UsageError
from flatminima.measures import power_law_exponent
from flatminima.statistics import fit_power_law, power_law as module
from flatminima.statistics.weight_spectra import spectrum


def _pareto(n, alpha, seed):
    return 0.3 * (np.random.default_rng(seed).pareto(alpha - 1, n) + 1)


def _by_definition(x):
    """Every start in turn, with a loop over the tail."""
    best = (math.inf, 0.0, 0.0)
    x = sorted(x)
    for start in sorted(set(x))[:-1]:
        tail = [v for v in x if v >= start]
        alpha = 1 + len(tail) / sum(math.log(v / start) for v in tail)
        distance = max(abs(1 - (v / start) ** (1 - alpha) - j / len(tail)) for j, v in enumerate(tail))
        best = min(best, (distance, alpha, start))
    return best


@pytest.mark.parametrize("kind", ["pareto", "noise", "ties"])
def test_the_fit_by_definition(kind):
    """Catches a tail that starts one value late and a distance over all values."""
    x = {
        "pareto": _pareto(80, 2.4, 0),
        "noise": np.linalg.svd(np.random.default_rng(1).standard_normal((40, 70)), compute_uv=False) ** 2,
        "ties": np.repeat(_pareto(20, 3.0, 2), 3),
    }[kind]
    found = fit_power_law(x)
    distance, alpha, start = _by_definition(x.tolist())
    assert (found.distance, found.alpha, found.x_min) == pytest.approx((distance, alpha, start), rel=1e-9)
    assert found.tail == int((x >= start * (1 - 1e-12)).sum())


def test_blocks_of_candidates_change_nothing(monkeypatch):
    x = _pareto(300, 2.2, 3)
    whole = fit_power_law(x)
    monkeypatch.setattr(module, "_ENTRIES", 1000)
    assert fit_power_law(x) == whole


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_the_exponent_behind_a_start_is_found(alpha):
    """Quantiles of a power law above 1, and as many values spread evenly below it."""
    u = (np.arange(500) + 0.5) / 500
    found = fit_power_law(np.concatenate([0.02 + 0.97 * u, (1 - u) ** (-1 / (alpha - 1))]))
    assert found.alpha == pytest.approx(alpha, rel=0.02)
    assert found.x_min == pytest.approx(1.0, rel=0.05)
    assert found.error == pytest.approx((found.alpha - 1) / math.sqrt(found.tail))


@pytest.mark.parametrize("kind", ["pareto", "noise"])
@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_the_program_powerlaw(kind, seed):
    """Version 2 confines alpha to at most 3 unless told otherwise."""
    powerlaw = pytest.importorskip("powerlaw")
    noise = np.random.default_rng(seed).standard_normal((60, 90))
    x = _pareto(150, 2.6, seed) if kind == "pareto" else np.linalg.svd(noise, compute_uv=False) ** 2
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        theirs = powerlaw.Fit(x, verbose=False, parameter_ranges={"alpha": [1.0, None]})
    ours = fit_power_law(x)
    assert ours.alpha == pytest.approx(theirs.power_law.alpha, rel=1e-6)
    assert ours.x_min == pytest.approx(theirs.power_law.xmin, rel=1e-9)
    assert ours.distance == pytest.approx(theirs.power_law.D, rel=1e-6)


@pytest.mark.parametrize("x", [[], [1.0], [2.0, 2.0, 2.0]])
def test_values_that_do_not_differ_have_no_tail(x):
    assert fit_power_law(np.array(x)) is None


def test_the_spectrum_of_a_kernel_is_that_of_its_positions_together():
    kernel = torch.randn(5, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    parts = [
        np.linalg.svd(kernel[:, :, i, j].double().numpy(), compute_uv=False) ** 2 for i in range(3) for j in range(2)
    ]
    assert spectrum(kernel).numpy() == pytest.approx(np.sort(np.concatenate(parts)), rel=1e-9)


def test_rounding_of_zeros_is_left_out():
    rank_one = torch.ones(20, 1) @ torch.arange(1.0, 31.0).unsqueeze(0)
    assert len(spectrum(rank_one)) == 1
    assert spectrum(torch.zeros(4, 4)).numel() == 0


class Mixed(nn.Module):
    """A convolution, an LSTM and a linear layer that is too small."""

    def __init__(self):
        super().__init__()
        self.conv, self.rnn, self.head = nn.Conv1d(12, 14, 3), nn.LSTM(14, 11, batch_first=True), nn.Linear(11, 3)

    def forward(self, x):
        return self.head(self.rnn(self.conv(x).transpose(1, 2))[0][:, -1])


def _minimum():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Minimum(Mixed(), (torch.randn(4, 12, 6), torch.arange(4) % 3))


def test_the_mean_over_layers_of_any_kind():
    minimum = _minimum()
    found = power_law_exponent(minimum, max_error=0.28)
    fits = {
        name: fit_power_law(spectrum(p).numpy())
        for name, p in minimum.model.named_parameters()
        if name in ("conv.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0")
    }
    kept = {name: f for name, f in fits.items() if f.tail >= 13}
    assert 0 < len(kept) < len(fits)
    assert found.details["layers"] == {name: f.alpha for name, f in kept.items()}
    assert found.details["refused"] == {n: pytest.approx(f.tail**-0.5) for n, f in fits.items() if n not in kept}
    assert found.details["skipped"] == ["head.weight"]
    assert found.value == pytest.approx(np.mean([f.alpha for f in kept.values()]), rel=1e-12)
    every = power_law_exponent(minimum, max_error=math.inf)
    assert every.value == pytest.approx(np.mean([f.alpha for f in fits.values()]), rel=1e-12)
    assert power_law_exponent(minimum, min_eigenvalues=3).details["skipped"] == []


class _Two(nn.Module):
    """A layer whose spectrum is a bulk and three values apart, and one with a power law."""

    def __init__(self):
        super().__init__()
        u = (torch.arange(100).double() + 0.5) / 100
        bulk = torch.linspace(1.0, 1.0001, 37).double()
        self.short = nn.Parameter(torch.diag(torch.cat([bulk, torch.tensor([40.0, 40.6, 41.2]).double()])).sqrt())
        self.long = nn.Parameter(torch.diag((1 - u) ** (-1 / 1.8)).sqrt())

    def forward(self, x):
        return x @ self.long[:3, :2].to(x) + x[:, :1] @ self.short[:1, :2].to(x)


def test_a_layer_fitted_to_three_values_does_not_make_the_mean():
    """69 +- 39 beside 2.8 would be a mean of 35.9; the rule looks at the tail's length, not at alpha."""
    minimum = Minimum(_Two(), (torch.randn(4, 3), torch.arange(4) % 2))
    found = power_law_exponent(minimum)
    short = found.details["fits"]["short"]
    assert short["tail"] == 3 and short["alpha"] > 50 and short["error"] == pytest.approx((short["alpha"] - 1) / 3**0.5)
    assert found.value == found.details["layers"]["long"] == pytest.approx(2.8, rel=0.05)
    assert found.details["refused"] == {"short": pytest.approx(3**-0.5)}
    assert found.details["error"] == pytest.approx(found.details["fits"]["long"]["error"])
    assert power_law_exponent(minimum, max_error=math.inf).value > 25
    assert power_law_exponent(minimum, max_error=3**-0.5).value > 25
    message = power_law_exponent(minimum, max_error=0.01).undefined
    assert message.startswith("no layer's exponent is known to a relative error of 0.01 (the best, 2.")
    with pytest.raises(UsageError, match="max_error"):
        power_law_exponent(minimum, max_error=0.0)


@pytest.mark.parametrize("alpha", [1.8, 4.0])
def test_the_relative_error_of_a_fit_is_the_spread_of_its_exponent(alpha):
    """2,000 draws of 40 values above a known x_min: (alpha - 1) / sqrt(n) to 10%, whatever alpha is."""
    draws = np.random.default_rng(1).pareto(alpha - 1, (2000, 40)) + 1
    spread = (1 + 40 / np.log(draws).sum(1)).std()
    assert spread / (alpha - 1) == pytest.approx(40**-0.5, rel=0.1)


def test_scaling_a_layer_changes_nothing():
    one, two = _minimum(), _minimum()
    with torch.no_grad():
        two.model.conv.weight *= 8.0
    two = Minimum(two.model, (torch.randn(4, 12, 6), torch.arange(4) % 3))
    assert power_law_exponent(two).value == pytest.approx(power_law_exponent(one).value, rel=1e-9)


def test_small_layers_only_are_undefined():
    minimum = Minimum(nn.Linear(3, 2), (torch.randn(4, 3), torch.arange(4) % 2))
    assert "no layer has 10 eigenvalues" in power_law_exponent(minimum).undefined
    with pytest.raises(UsageError, match="at least 2"):
        power_law_exponent(minimum, min_eigenvalues=1)
