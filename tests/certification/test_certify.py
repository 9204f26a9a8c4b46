"""`certify`: its arithmetic, what it refuses, coverage, and random labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_tasks import QUICK, SHORT, blobs, digits_net, net, wide
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from flatminima import bounds, certify
from flatminima.certification import Recipe, certifying, recompute
from flatminima.certification.certifying import StageCosts, cost, in_time
from flatminima.certification.division.split import fair_draw as divide
from flatminima.certification.from_recipe import certify_recipe as learn
from flatminima.certification.gibbs.outputs import Head, Packing, find_head, principal_basis
from flatminima.certification.gibbs.risk import gibbs_risk
from flatminima.certification.gibbs.stochastic import Prior, StochasticNetwork
from flatminima.core.samples import as_samples, map_tensors
from flatminima.data import load_tensors
from flatminima.errors import DataError, ModelError, UnknownName, UsageError
from flatminima.models import build
from flatminima.training import TrainConfig, train

pytestmark = pytest.mark.slow


def test_the_certificate_is_the_pipeline_of_two_kl_inverses() -> None:
    c = certify(net, blobs(400), delta=0.05, delta_mc=0.02, recipe=QUICK, evaluations=2)
    assert (c.n, c.draws, c.draws_by, c.is_certificate) == (200, 400, "example", True)
    upper = bounds.kl_inverse(c.empirical_risk, math.log(2 / 0.02) / 400)
    assert c.monte_carlo_upper == pytest.approx(upper, rel=1e-9)
    b = (c.kl + math.log(2 * math.sqrt(200) * 2 / 0.03)) / 200
    assert c.risk_bound == pytest.approx(bounds.kl_inverse(upper, b), rel=1e-9)
    ce = bounds.mc_certificate(c.cross_entropy, 400, 0.01, c.kl, 200, 0.015)
    assert c.cross_entropy_bound == pytest.approx(ce, rel=1e-9)
    assert (c.delta, c.delta_mc) == (0.05, 0.02)
    assert sum(c.terms().values()) == pytest.approx(c.risk_bound, rel=1e-12)
    holdouts = [bounds.binomial_tail_inverse(wrong, 200, 0.05 / 2) for wrong in range(200)]
    assert min(abs(c.holdout_bound - h) for h in holdouts) < 1e-12


def test_posterior_without_epochs_is_the_prior() -> None:
    c = certify(net, blobs(400), recipe=replace(QUICK, epochs=0))
    assert c.kl == pytest.approx(0.0, abs=1e-6)
    assert c.objective.startswith("none")


@pytest.mark.parametrize("objective", ["kl", "quadratic", "lambda", "classic"])
def test_a_trained_posterior_is_worth_its_divergence(objective: str) -> None:
    """From a prior that knows nothing, every objective ends below the bound of the prior itself."""
    recipe = Recipe(prior_fraction=0.0, sigma=0.3, epochs=60, lr=0.1, objective=objective, nats=1.4, batch_size=100)
    data = blobs(400)
    before = certify(net, data, recipe=replace(recipe, epochs=0))
    after = certify(net, data, recipe=recipe)
    assert after.risk_bound < before.risk_bound - 0.1
    assert after.kl > 1.0


def test_a_head_in_its_principal_basis() -> None:
    """Turning the basis changes neither the mean network nor the divergence of an isotropic Gaussian."""
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).eval()
    x, _ = blobs(50)
    name = find_head(model, x)
    plain = Head(name)
    head = Head(name, principal_basis(plain.features(model, x)))
    assert name == "2"
    assert torch.allclose(head.layer(model)(head.features(model, x)), model(x), atol=1e-5)
    second = head.features(model, x).T @ head.features(model, x)
    assert torch.allclose(second, second.diag().diag(), atol=1e-3)
    moved = torch.randn(6, 6)
    turned = moved @ head.basis
    assert torch.allclose(turned.norm(), moved.norm(), rtol=1e-5)
    with pytest.raises(ModelError, match="does not end in a linear layer"):
        find_head(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), x)


def test_a_head_that_is_fitted_pays_for_its_sigma() -> None:
    recipe = Recipe(
        prior_fraction=0.0, layers="head", fit_sigma=True, epochs=80, nats=1.4, lr=0.1, objective="quadratic"
    )
    c = certify(wide, blobs(400), recipe=replace(recipe, objective="quadratic", batch_size=100, sigma=2.0))
    j = 100 * math.log(1e6 / c.sigma**2)
    assert j == pytest.approx(round(j), abs=1e-6)
    assert c.penalty == pytest.approx(math.log(math.pi**2 * round(j) ** 2 / 6))
    upper = bounds.monte_carlo_risk(c.empirical_risk, c.draws, c.delta_mc)
    pac = bounds.pac_bayes_kl(upper, c.kl + c.penalty, c.n, c.delta - c.delta_mc)
    assert c.risk_bound == pytest.approx(pac, rel=1e-9)
    assert c.risk_bound < 0.5


def test_the_division_is_by_content() -> None:
    x, y = blobs(100)
    x[50:60], y[50:60] = x[:10], y[:10]  # copies
    one = divide(as_samples((x, y)), 0.5, 3)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    two = divide(as_samples((x[order], y[order])), 0.5, 3)
    assert sorted(x[one.prior].tolist()) == sorted(x[order][two.prior].tolist())
    assert not torch.equal(one.prior, divide(as_samples((x, y)), 0.5, 4).prior)
    assert len(one.prior) == len(one.bound) == 50


def test_copies_are_divided_as_chance_divides_them() -> None:
    """200 pairs of copies, 20 seeds: one on each side as often as in a fair draw, n / (2n - 1) of the pairs.

    Copies kept together make the bound's samples depend on the prior's: certificates below the Bayes error.
    """
    x, y = torch.arange(200.0).repeat(2)[:, None], torch.zeros(400, dtype=torch.int64)
    samples = as_samples((x, y))
    torn = []
    for seed in range(20):
        division = divide(samples, 0.5, seed)
        torn.append(int(torch.isin(division.prior % 200, division.bound % 200).sum()))
    mean, right = sum(torn) / 20, 200 * 200 / 399
    assert abs(mean - right) < 4 * math.sqrt(50 / 20), mean


def test_the_model_is_not_changed() -> None:
    model = build("small_cnn", seed=0, image_size=8, width=2, hidden=4, norm="batch", dropout=0.2).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    x, y = load_tensors("digits", limit=120)
    c = certify(model, (x, y), recipe=replace(QUICK, augment="shift1"), stated="untrained")
    assert c.standing == "conditional" and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_test_error_lies_under_the_bound_and_is_reported() -> None:
    c = certify(net, blobs(600), recipe=QUICK, test_data=blobs(2_000, seed=9))
    assert c.details["test"]["error"] < c.risk_bound
    assert c.details["test"]["n"] == 2_000


def test_random_labels_are_not_certified() -> None:
    """Digits with random labels, which the prior's part memorises: every bound stays above the error of 0.9."""
    x, _ = load_tensors("digits", limit=400)
    y = torch.randint(0, 10, (400,), generator=torch.Generator().manual_seed(0))
    long = replace(SHORT, epochs=60)
    for recipe in (
        replace(QUICK, prior=long),
        replace(QUICK, prior=long, layers="head", epochs=40, lr=0.1, nats=2.0, objective="quadratic"),
        Recipe(prior_fraction=0.0, layers="head", fit_sigma=True, sigma=1.0, epochs=60, nats=2.0, objective="lambda"),
        Recipe(prior_fraction=0.0, sigma=0.05, epochs=40, lr=0.05),
    ):
        c = certify(digits_net, (x, y), recipe=recipe)
        assert c.is_certificate
        assert c.risk_bound > 0.9


def test_the_whole_bound_covers() -> None:
    """Of 1,000 samples, at most delta certify less than the exact risk of their posterior, fitted to the sample.

    Labels are coin flips that no input predicts, so the risk of any posterior is known: with q the probability that a
    drawn network says 0, it is q p + (1 - q) (1 - p).
    """
    p, n, delta = 0.3, 12, 0.3
    network = StochasticNetwork(nn.Linear(1, 2, bias=False), 0.5)
    prior = Prior({"weight": torch.zeros(2, 1)}, 0.5)
    spread = 0.5 * math.sqrt(2)
    violations = 0
    for seed in range(1_000):
        y = (torch.rand(n, generator=torch.Generator().manual_seed(seed)) < p).long()
        shift = 0.5 * float(y.double().mean() - 0.5)  # towards the label that the sample has more of
        with torch.no_grad():
            network.means[0].copy_(torch.tensor([[-shift], [shift]]))
        seen = gibbs_risk(network, torch.ones(n, 1), y, seed=seed)
        kl = network.exact_kl(prior)
        bound = bounds.mc_certificate(seen.error, seen.draws, delta / 2, kl, n, delta / 2)
        zero = 0.5 * math.erfc(2 * shift / spread / math.sqrt(2))
        violations += bound < zero * p + (1 - zero) * (1 - p)
    assert violations <= delta * 1_000


class Augmented(Dataset):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.randn(2), i % 2


def digits(limit: int = 300) -> tuple[Tensor, Tensor]:
    return load_tensors("digits", limit=limit)


def trained() -> nn.Module:
    model = build("mlp", seed=0, widths=(64, 32, 10))
    train(model, *digits(), config=replace(SHORT, epochs=20))
    return model


def ignored() -> tuple[Tensor, Tensor]:
    x, y = blobs(40)
    return x, torch.where(torch.arange(40) > 0, y, -100)


def self_trained() -> nn.Module:
    model, (x, y) = nn.Linear(2, 2), blobs(40)
    nn.functional.cross_entropy(model(x), y).backward()
    return model


def with_statistics() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    model(torch.randn(8, 2))
    return model


FREE = Recipe(prior_fraction=0.0)


def labelled(y: Tensor) -> tuple[Tensor, Tensor]:
    return blobs(len(y))[0], y


class Returning(nn.Module):
    """A line whose logits are returned as something else."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(2, 2), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.layer(x))


def returning(change: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Returning(change)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: certify(), UsageError, "needs a model and its training data"),
        (lambda: certify(net, blobs(400), delta=0.0), UsageError, "got delta=0.0; expected a probability"),
        (lambda: certify(net, blobs(400), delta=1.5), UsageError, "got delta=1.5"),
        (lambda: certify(net, blobs(400), delta=math.nan), UsageError, "got delta=nan"),
        (lambda: certify(net, blobs(400), delta=0.05, delta_mc=0.05), UsageError, "got delta_mc=0.05"),
        (lambda: certify(net, blobs(14)), DataError, "needs at least 8: give more samples"),
        (lambda: certify(net, blobs(400), test_data=blobs(400)), DataError, "test data was passed as training data"),
        (lambda: certify(net, (blobs(9)[0] * math.nan, blobs(9)[1])), DataError, "NaN or Inf"),
        (lambda: certify(net, DataLoader(Augmented())), DataError, "augmented or random"),
        (
            lambda: certify(trained(), digits(), recipe=FREE, stated="untrained"),
            UsageError,
            "stated to be untrained, but it errs on",
        ),
        (
            lambda: certify(with_statistics(), blobs(400), stated="untrained"),
            UsageError,
            "its norm layers hold statistics of 1 batches",
        ),
        (lambda: certify(lambda: net(), blobs(400)), UsageError, "ignores its seed: "),
        (lambda: certify(net, blobs(400), stated="untrained"), UsageError, "leave the statement out"),
        (lambda: certify(lambda: 3, blobs(400)), ModelError, "returned int"),
        (lambda: certify(3, blobs(400)), ModelError, "got int"),
        (lambda: certify(self_trained, blobs(40)), ModelError, "takes gradients: it trains"),
        (lambda: certify(lambda: trained(), digits()), UsageError, "ignores its seed"),
        (lambda: certify(lambda: nn.Linear(2, 1), blobs(400)), DataError, "a label is 1 but the model has 1 outputs"),
        (lambda: certify(net, ignored()), DataError, "sample 0 has the label -100"),
        (lambda: certify(net, (blobs(40)[0], blobs(40)[0])), DataError, "expected class indices"),
        (lambda: Recipe(p_min=0.0), UsageError, "unbounded without a clamp"),
        (lambda: Recipe(prior_fraction=0.0, augment="shift1"), UsageError, "bound's samples are never augmented"),
        (lambda: Recipe(prior_fraction=1.0), UsageError, "expected a share"),
        (lambda: Recipe(sigma=-1.0), UsageError, "must be positive"),
        (lambda: Recipe(passes=0), UsageError, "at least 1"),
        (lambda: Recipe(layers="heads"), UnknownName, "did you mean 'head'"),
        (lambda: Recipe(objective="kll"), UnknownName, "did you mean 'kl'"),
        (lambda: Recipe(augment="flip"), UnknownName, "augment"),
        (lambda: recompute(Path("nowhere.json"), net, blobs(9)), UsageError, "cannot read nowhere.json"),
        (
            lambda: certify(net, labelled(2 * blobs(40)[1] - 1)),
            DataError,
            "has the label -1; the network has 2 classes",
        ),
        (lambda: certify(net, labelled(blobs(40)[1] + 40_000_000)), DataError, "has the label 4000000[01]; the netw"),
        (lambda: certify(net, labelled(blobs(40)[1] - 1), recipe=FREE), DataError, "has the label -1"),
        (lambda: certify(net, labelled(blobs(40)[1] * 1j)), DataError, "labels of dtype torch.complex64"),
        (lambda: certify(net, blobs(40), test_data=(blobs(40, 1)[0], 1 + blobs(40)[1])), DataError, "the label 2"),
        (lambda: cost(net(), labelled(blobs(40)[1] - 1), QUICK), DataError, "has the label -1"),
        (lambda: certify(returning(lambda z: z[:, None]), blobs(40)), ModelError, r"float32 of shape \(2, 1, 2\)"),
        (lambda: certify(returning(lambda z: z > 0), blobs(40)), ModelError, "returned bool of shape"),
        (lambda: certify(returning(lambda z: z * 1j), blobs(40)), ModelError, "returned complex64 of shape"),
        (
            lambda: certify(returning(lambda z: z.sum()), blobs(40)),
            ModelError,
            r"of shape \(\) for 2 samples; expected",
        ),
        (lambda: certify(returning(lambda z: z.detach()), blobs(40)), ModelError, "no gradient reaches the network's"),
        (lambda: cost(returning(lambda z: z.detach())(), blobs(40), QUICK), ModelError, "no gradient reaches"),
        (lambda: certify(net, blobs(40), delta="0.05"), UsageError, "got delta='0.05' of type str; expected a number"),
        (lambda: certify(net, blobs(40), delta=None), UsageError, "got delta=None of type NoneType"),
        (lambda: certify(net, blobs(40), delta_mc="a"), UsageError, "got delta_mc='a' of type str"),
        (lambda: certify(net, blobs(40), evaluations=10**400), UsageError, r"expected at most 1e\+300 together"),
        (lambda: certify(net, blobs(40), evaluations=10**5000), UsageError, "got candidates=1, evaluations=an int;"),
        (lambda: certify(net, blobs(40), evaluations=1.5), UsageError, "got evaluations=1.5; expected a whole number"),
        (lambda: certify(net, blobs(40), seed=1 << 63), UsageError, "got seed=9223372036854775808; expected a whole"),
        (lambda: certify(net, blobs(40), seed=-(1 << 63) - 1), UsageError, r"expected a whole number from -2\^63"),
        (lambda: certify(net, blobs(40), seed=1.5), UsageError, "got seed=1.5; expected a whole number"),
        (lambda: certify(net, blobs(40), seed=None), UsageError, "got seed=None"),
        (lambda: certify(net, blobs(40), seconds=math.inf), UsageError, "got seconds=inf; expected a time above 0"),
        (lambda: certify(net, blobs(40), seconds="10"), UsageError, "got seconds='10' of type str"),
        (
            lambda: certify(net, blobs(40), recipe={"epochs": 1}),
            UsageError,
            "recipe of type dict; expected a flatminima R",
        ),
        (lambda: certify(minimum=net(), prior=net), UsageError, "a certificate needs a Minimum itself"),
        (lambda: Recipe(sigma="a"), UsageError, "got sigma='a' of type str; expected a number, e.g. 0.01"),
        (lambda: Recipe(p_min="a"), UsageError, "got p_min='a'"),
        (lambda: Recipe(nats=1j), UsageError, "got nats=1j of type complex"),
        (lambda: Recipe(passes=1.5), UsageError, "got passes=1.5; expected a whole number of at least 1"),
        (lambda: Recipe(epochs=0.5), UsageError, "got epochs=0.5; expected a whole number of at least 0"),
        (lambda: Recipe(prior=TrainConfig(epochs=1.5)), UsageError, "got prior.epochs=1.5"),
        (lambda: Recipe(prior=3), UsageError, "prior of type int; expected a flatminima TrainConfig"),
        (lambda: certify(lambda: 1 // 0, blobs(40)), ModelError, "raised ZeroDivisionError: integer division"),
        (
            lambda: certify(nn.Linear, blobs(40)),
            ModelError,
            "raised TypeError: .*; expected one that takes no arguments",
        ),
    ],
)
def test_what_would_be_no_certificate_is_refused(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("make", "data"), [(trained, digits), (with_statistics, lambda: blobs(400))])
def test_a_network_handed_in_is_a_score_until_it_is_stated_where_it_comes_from(make: Any, data: Any) -> None:
    c = certify(make(), data(), recipe=FREE)
    assert c.standing == "score"
    assert str(c).startswith("Score, not a certificate: neither checked nor stated: the prior does not depend")
    c = certify(make(), data(), recipe=FREE, stated="trained on other\ndigits")
    assert c.standing == "conditional" and not c.is_certificate
    assert c.statement.startswith("Conditional certificate: if, as stated, the network handed in is trained on other d")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"kind": "certificate", "schema": 99}'])
def test_files_that_are_no_certificate(content: str, tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="expected"):
        recompute(path, net(), blobs(9))


def test_a_plan_fits_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = StageCosts(prior_epoch=10.0, posterior_epoch=5.0, evaluation_pass=2.0)
    plan = in_time(QUICK, known, 600.0)
    assert known.total(plan) <= 600 * 0.9
    assert (plan.prior.epochs, plan.epochs, plan.passes) == (32, 16, 27)
    free = in_time(FREE, StageCosts(0.0, 5.0, 2.0), 600.0)
    assert free.epochs == 81
    with pytest.raises(UsageError, match="give more than 10 s"):
        in_time(QUICK, known, 10.0)
    measured = cost(net(), blobs(400), QUICK)
    assert min(measured.prior_epoch, measured.posterior_epoch, measured.evaluation_pass) > 0
    monkeypatch.setattr(certifying, "cost", lambda *_: StageCosts(0.1, 0.1, 0.1))
    first = certify(net, blobs(400), recipe=QUICK, seconds=2.0, output=tmp_path)
    monkeypatch.setattr(certifying, "cost", lambda *_: StageCosts(0.5, 0.5, 0.5))  # a slower machine keeps the plan
    again = certify(net, blobs(400), recipe=QUICK, seconds=2.0, output=tmp_path)
    assert first.details["recipe"] == again.details["recipe"]
    assert first.details["recipe"]["prior"]["epochs"] == 10


def test_gibbs_risks_repeat_with_their_seed() -> None:
    certified = learn(net, blobs(100), recipe=QUICK)
    p = certified.problem
    one, two, three = (gibbs_risk(p.network, p.x, p.y, seed=s).cross_entropy for s in (0, 0, 1))
    assert one == two != three
    assert np.isfinite(one)


class Tokens(nn.Module):
    """Mean of embeddings under a mask, and a linear layer; logits in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 6), nn.Linear(6, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        weights = mask.unsqueeze(2).float()
        return {"logits": self.head((self.embedding(ids) * weights).sum(1) / weights.sum(1).clamp_min(1.0))}


def sentences(n: int) -> tuple[dict[str, Tensor], Tensor]:
    g = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(0, 10, (n, 7), generator=g), torch.rand(n, 7, generator=g) < 0.8
    return {"ids": ids, "mask": mask}, (ids[:, 0] >= 5).long()


@pytest.mark.parametrize("layers", ["all", "head"])
def test_inputs_in_a_dictionary_are_certified_and_verified(layers: str, tmp_path: Path) -> None:
    """Integers and truth values reach the network as they are, through training, draws and recomputation."""
    recipe = Recipe(layers=layers, epochs=1, passes=2, sigma=0.01, prior=TrainConfig(lr=0.5, epochs=2, batch_size=20))
    data = sentences(120)
    certificate = certify(Tokens, data, recipe=recipe, output=tmp_path)
    assert certificate.standing == "certificate" and certificate.n == 60
    assert certificate.draws_by == ("batch" if layers == "all" else "example")  # an embedding takes one draw a batch
    assert all(row.agrees for row in recompute(tmp_path / "certificate.json", Tokens, data))


def test_packed_rows_are_the_inputs_to_the_bit() -> None:
    inputs = sentences(5)[0] | {
        "size": torch.rand(5, 2, 3),
        "half": torch.rand(5, 1).half(),
        "big": torch.tensor([2**40 + i for i in range(5)]),
    }
    packing = Packing(map_tensors(lambda t: t[:1], inputs))
    again = packing.unpack(packing.pack(inputs))
    assert {k: t.dtype for k, t in again.items()} == {k: t.dtype for k, t in inputs.items()}
    assert all(torch.equal(again[k], inputs[k]) for k in inputs)


def test_numbers_of_numpy_are_numbers() -> None:
    """What JSON and `to_bytes` know of them is not asked."""
    recipe = replace(QUICK, sigma=np.float32(0.01), passes=np.int64(2), prior_fraction=np.float64(0.5))
    c = certify(net, blobs(100), recipe=recipe, seed=np.int64(3), evaluations=np.int64(2), delta=np.float64(0.05))
    same = replace(recipe, sigma=float(np.float32(0.01)))
    assert c.risk_bound == certify(net, blobs(100), recipe=same, seed=3, evaluations=2).risk_bound
    assert type(c.delta) is float and type(c.evaluations) is int and type(c.details["recipe"]["passes"]) is int
    assert certify(net, blobs(100), recipe=QUICK, seed=-3).n == 50


class InPlace(nn.Module):
    """A line over inputs that it shifts and cuts off where they lie: another pass would see other inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.sub_(0.3).clamp_(-1.0, 1.0))


class Pure(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x - 0.3).clamp(-1.0, 1.0))


@pytest.mark.parametrize("layers", ["all", "head"])
@pytest.mark.parametrize("cast", [lambda x: x, lambda x: {"x": x.double()}], ids=["tensor", "packed"])
def test_a_network_that_writes_its_inputs_is_certified_as_one_that_does_not(
    layers: str, cast: Callable[[Tensor], Any], tmp_path: Path
) -> None:
    x, y = blobs(120)
    recipe = replace(QUICK, layers=layers, epochs=1)
    bounds_ = []
    for kind in (InPlace, Pure):
        data = cast(x.clone()), y
        made = kind if isinstance(data[0], Tensor) else lambda kind=kind: kind().double()
        bounds_.append(certify(made, data, recipe=recipe, ledger=False, output=tmp_path / kind.__name__).risk_bound)
        assert all(row.agrees for row in recompute(tmp_path / kind.__name__ / "certificate.json", made, data))
        assert torch.equal(data[0] if isinstance(data[0], Tensor) else data[0]["x"].float(), x)
    assert bounds_[0] == bounds_[1]


class RarelyLeftOut(nn.Module):
    """A layer that about one row in forty does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, reached = x.new_zeros(len(x), 4), x[:, 1] > -3.0
        out[reached] = self.layer(x[reached])
        return self.head(torch.relu(out))


def test_rows_that_are_rarely_left_out_of_a_layer_take_a_draw_a_batch() -> None:
    """Three rows do not show it; draws that were begun by the example would stop in the middle."""
    data = blobs(400)
    left_out = (data[0][:, 1] <= -3.0).sum()
    assert 0 < left_out < 20
    c = certify(RarelyLeftOut, data, recipe=QUICK)
    assert c.draws_by == "batch" and "its rows are not the examples" in c.details["why_not_by_example"]
