"""The Gaussian around given weights: its arithmetic, its coverage, what it refuses, what a failed condition does."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_blobs import blobs, linear

from flatminima import bounds
from flatminima.certification import Assumption, Union, certify_around
from flatminima.certification.gibbs.posteriors import DiagonalGaussian
from flatminima.certification.gibbs.risk import GibbsRisk, blocks_of, by_batch, risk_of
from flatminima.core.minimum import Minimum
from flatminima.core.parameters import Parameters
from flatminima.errors import FlatMinimaError, ModelError, UsageError


def certify(model: nn.Module, data: tuple[Tensor, Tensor], prior: Tensor | None = None, **options: Any) -> Any:
    """Around the model, the prior's weights handed in as numbers."""
    network = copy.deepcopy(model)
    if prior is not None:
        Parameters.of(network).assign(prior)
    sigma = options.pop("sigma", 0.1)
    defaults: dict[str, Any] = {"scales": sigma, "etas": (1.0,), "stated": "given", "draws": 200}
    return certify_around(Minimum(model, data), "gaussian", prior=network, **(defaults | options))


def around(minimum: Minimum, sigma: float) -> DiagonalGaussian:
    w = len(minimum.parameters)
    return DiagonalGaussian(torch.zeros(w, dtype=torch.float64), sigma, torch.full((w,), sigma))


def risk_by_batch(minimum: Minimum, sigma: float, draws: int, size: int, seed: int) -> GibbsRisk:
    blocks = blocks_of(len(minimum.samples), draws, size)
    return by_batch(minimum, around(minimum, sigma), blocks, p_min=1e-5, seed=seed)


def test_the_arithmetic_is_the_pipeline_of_kl_inverses() -> None:
    data = blobs(64, 0)
    model = linear()
    prior = Parameters.of(model).flat(torch.float64)
    prior[0] += 0.3
    c = certify(model, data, prior, union=Union(candidates=5, evaluations=2), delta=0.04, delta_mc=0.02)
    moved = float(prior[0].float()) - float(model.weight[0, 0].detach())  # a network holds its weights in float32
    assert c.kl == pytest.approx(moved**2 / (2 * 0.1**2), rel=1e-9)
    upper = bounds.kl_inverse(c.empirical_risk, math.log(10 / 0.02) / c.draws)
    assert c.monte_carlo_upper == pytest.approx(upper, rel=1e-9)
    b = (c.kl + math.log(2 * 8.0 * 10 / 0.02)) / 64  # delta is the total
    assert sum(c.terms().values()) == pytest.approx(c.risk_bound, rel=1e-12)
    assert c.risk_bound == pytest.approx(bounds.kl_inverse(upper, b), rel=1e-9)


def test_a_draw_is_a_batch_of_fresh_weights() -> None:
    """Images that share weights are one draw: 64 samples in batches of 16 give 4 draws a pass."""
    minimum = Minimum(linear(), blobs(64, 0))
    assert risk_by_batch(minimum, 0.1, 9, 16, 0).draws == 12
    assert risk_by_batch(minimum, 0.1, 9, 20, 0).draws == 12  # the largest divisor, so that batches are equal


def test_the_gibbs_error_is_that_of_the_gaussian() -> None:
    """Linear network in one dimension: P(sign(w) = +) is a normal probability."""
    net = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0], [0.2]]))
    minimum = Minimum(net, (torch.ones(64, 1), torch.ones(64, dtype=torch.long)))
    found = risk_by_batch(minimum, 0.3, 5_000, 8, 0)
    truth = 0.5 * torch.erfc(torch.tensor(0.2 / (0.3 * 2**0.5) / 2**0.5)).item()  # w1 - w0 ~ N(0.2, 2 * 0.3^2)
    assert found.error == pytest.approx(truth, abs=4 * (truth * (1 - truth) / found.draws) ** 0.5)


def test_coverage_on_a_task_of_known_risk() -> None:
    """Of 200 samples, the certificate lies below the true risk in at most delta + delta_mc, also with data-fitted Q."""
    truth_data = blobs(20_000, 99)
    violations = 0
    for seed in range(200):
        x, y = blobs(40, seed)
        model = linear()
        prior = Parameters.of(model).flat(torch.float64)
        with torch.no_grad():  # a step towards the sample: Q depends on it, P does not
            model.bias.copy_(0.1 * torch.tensor([(y == 0).float().mean() - 0.5, (y == 1).float().mean() - 0.5]))
        c = certify(model, (x, y), prior, draws=40, sigma=0.3, delta=0.2, delta_mc=0.1)
        if seed < 10:
            new = Minimum(model, truth_data)
            risk = risk_of(new, around(new, 0.3), draws=100, batch_size=1000, p_min=1e-5, seed=seed)
            violations += risk.error > c.risk_bound
        else:
            violations += c.risk_bound < 0.02  # the Bayes risk of the task is 0.017: no stochastic network is below
    assert violations <= 0.2 * 200


def test_random_labels_are_not_certified() -> None:
    """A network that memorised random labels: the certificate stays above its held-out error of one half."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 20, generator=g), torch.randint(0, 2, (64,), generator=g)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 2))
    prior = Parameters.of(net).flat(torch.float64)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert (net(x).argmax(1) == y).float().mean() == 1.0
    assert certify(net.eval(), (x, y), prior, sigma=0.02).risk_bound > 0.5


def test_is_certificate_is_derived() -> None:
    c = certify(linear(), blobs(32, 0))
    assert c.standing == "conditional" and not c.is_certificate  # the prior's weights are the caller's word
    met = replace(c, assumptions=tuple(replace(a, holds=a.holds or None, stated="") for a in c.assumptions))
    assert met.standing == "score"  # neither checked nor stated
    known = tuple(replace(a, holds=None if "independent and" in a.text else True, stated="") for a in c.assumptions)
    assert replace(c, assumptions=known).is_certificate
    assert not replace(c, assumptions=known[1:]).is_certificate  # one condition left out
    failed = replace(c, assumptions=(*c.assumptions, Assumption("a condition", False, "seen to fail")))
    assert not failed.is_certificate
    assert str(failed).startswith("Score, not a certificate")
    assert "a condition" in str(failed)
    assert not replace(c, assumptions=()).is_certificate
    assert not hasattr(type(c).is_certificate, "fset") or type(c).is_certificate.fset is None


def test_the_text_fits_80_columns() -> None:
    first, *others = str(certify(linear(), blobs(32, 0))).splitlines()
    assert max(map(len, others)) <= 85 and first.startswith("Conditional certificate: if, as stated, the prior's")


def test_the_model_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    certify(model, blobs(32, 0), sigma=3.0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    real, calls = Minimum.forward, 0

    def failing(self: Minimum, inputs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 20:  # in the middle of the draws, the perturbation in the weights
            raise RuntimeError("boom")
        return real(self, inputs)

    minimum = Minimum(model, blobs(32, 0))
    monkeypatch.setattr(Minimum, "forward", failing)
    with pytest.raises(RuntimeError, match="boom"):
        risk_by_batch(minimum, 0.5, 100, 4, 0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"delta": 0.0}, "delta"),
    ({"delta": 1.0}, "delta"),
    ({"delta_mc": float("nan")}, "delta"),
    ({"sigma": 0.0}, "prior scales"),
    ({"sigma": float("nan")}, "prior scales"),
    ({"draws": 0}, "draws"),
    ({"prior": torch.full((6,), float("nan"))}, "finite weights"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=str)
def test_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises((UsageError, ModelError), match=says) as error:
        certify(linear(), blobs(32, 0), **options)
    assert "\n" not in str(error.value)


def test_too_few_samples() -> None:
    with pytest.raises(UsageError, match="at least 8"):
        certify(linear(), blobs(7, 0))


def test_a_prior_from_the_same_samples_is_refused() -> None:
    data = blobs(32, 0)
    with pytest.raises(UsageError, match="the bound's samples are the prior's"):
        certify(linear(), data, prior_data=data, stated="")
    assert certify(linear(), data, prior_data=blobs(32, 1), stated="").standing == "conditional"


def test_dropout_left_on_is_refused() -> None:
    model = nn.Sequential(nn.Dropout(0.5), linear()).train()
    with pytest.raises(ModelError, match="training mode"):
        certify(model, blobs(32, 0))


def test_a_union_counts_at_least_itself() -> None:
    with pytest.raises(FlatMinimaError, match="got candidates=0; expected a whole number of at least 1"):
        Union(candidates=0)
