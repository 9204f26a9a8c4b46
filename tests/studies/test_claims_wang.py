"""Wang et al.'s claims: calculations that can fail, and runs that hold what a trial needs."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from flatminima import bounds, measures
from flatminima.core.minimum import Minimum
from flatminima.models import build
from flatminima.studies import STUDIES, _toy_minima, _wang_cnn, wang_rescaling, wang_toy
from flatminima.studies.claims import claims, papers
from flatminima.studies.claims.checks import coverage, truncated_noise, wang
from flatminima.studies.claims.judge import judge
from flatminima.studies.claims.quantities import rows
from flatminima.studies.runner import sources_of
from flatminima.training import evaluate


def _lower(bound, by=1.0):
    return lambda *args, **options: bound(*args, **options) - by


def _times(function, factor):
    return lambda *args, **options: factor * function(*args, **options)


@pytest.mark.parametrize(
    ("module", "check", "name", "broken"),
    [
        (wang, "sigma_of_negative_curvature", "uniform_sigma", _times(bounds.uniform_sigma, 0.5)),
        (wang, "quadratic_terms_rise", "uniform_sigma", _times(bounds.uniform_sigma, 1.5)),
        (wang, "bound_logarithmic", "uniform_sigma", lambda h, rho, kappa, eta: 1 / (1 + np.asarray(h) + rho + kappa)),
        (wang, "behind_logarithm", "uniform_perturbation_simplified", lambda risk, h, rho, *rest: float(h[0] + rho)),
        (wang, "only_relevant_term", "uniform_perturbation_simplified", bounds.uniform_perturbation),
        (coverage, "eta_grid", "hoeffding_grid", _lower(bounds.hoeffding_grid, 0.4)),
        (coverage, "hoeffding_covers", "hoeffding", lambda risk, *rest: risk + 0.3),
        (coverage, "perturbed_loss_bounded", "uniform_perturbation_grid", lambda risk, *rest: risk + 0.2),
        (coverage, "lemma_3_covers", "uniform_perturbation_simplified", lambda risk, *rest: risk + 0.2),
        (coverage, "other_radius", "uniform_perturbation_simplified", lambda risk, *rest: risk + 0.2),
        (coverage, "lemma_5_covers", "lambda_max", lambda risk, *rest: risk + 0.2),
        (wang, "sigma_minimizes", "uniform_sigma", _times(bounds.uniform_sigma, 1.01)),
        (wang, "noise_tradeoff", "kl_uniform", lambda tau, sigma: 1.0),
    ],
)
def test_a_calculation_notices_a_wrong_bound(module, check, name, broken, monkeypatch):
    assert getattr(module, check)().holds
    monkeypatch.setattr(module, "bounds", _Patched(**{name: broken}))
    assert not getattr(module, check)().holds


class _Patched:
    """`bounds` with some functions replaced."""

    def __init__(self, **replaced):
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(bounds, name)


def test_the_bound_of_the_gaussian_kl_is_tried_against_another_computation(monkeypatch):
    assert truncated_noise.gaussian_kl().holds
    monkeypatch.setattr(truncated_noise, "kl_divergence", lambda p, q: 1.5 + torch.distributions.kl_divergence(p, q))
    assert not truncated_noise.gaussian_kl().holds


def test_a_sentence_that_fails_as_printed_holds_as_corrected(monkeypatch):
    """So that it is the print that fails, and not the calculation."""
    exact = lambda *at, variant="exact", **more: bounds.truncated_gaussian(*at, **more)  # noqa: E731
    monkeypatch.setattr(truncated_noise, "bounds", _Patched(truncated_gaussian=exact))
    assert truncated_noise.truncated_bound().holds
    ours = lambda h, rho, kappa, eta: 0.1 / np.sqrt(np.asarray(h) + rho * kappa)  # noqa: E731
    monkeypatch.setattr(wang, "bounds", _Patched(uniform_sigma=ours))
    assert wang.blog_sigma().holds


def test_equal_epochs_are_compared_where_networks_are_fitted():
    """Sec. 6: a network that equal epochs leave unfitted has no gap, of whatever batch size or rate."""
    studies = ("wang-mnist-batch", "wang-mnist-lr", "wang-cifar-batch", "wang-cifar-lr")
    about = [c for c in claims() if any(t.study in studies and t.where.get("equal_loss") is False for t in c.trials)]
    assert len(about) >= 7
    assert [c.id for c in about if "train loss at most 1.0" not in c.premise] == []
    assert [c.id for c in about if "epochs" not in c.note] == []


def test_later_documents_repeat_no_sentence_of_the_first():
    def plain(claim):
        return re.sub("[^a-z0-9]", "", claim.quote.lower())

    first = [plain(c) for c in papers()["W1"].claims]
    assert [c.id for key in ("W2", "WB") for c in papers()[key].claims if any(plain(c) in q for q in first)] == []


@pytest.fixture(scope="module")
def config():
    return STUDIES["wang-toy"].list_runs("smoke")[0]


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_the_sharp_minimum_is_global_if_none_lies_below_it(config, seed):
    r = wang_toy.run(config | {"seed": seed}, {})
    x, y = wang_toy.samples(seed, _toy_minima.SAMPLES)
    loss = _toy_minima.objective(x, y, tuple(r["fixed"]))
    losses = [float(loss(place)) for place in _toy_minima.minima(x, y, tuple(r["fixed"]), config["side"])]
    assert r["sharp_is_global"] == (r["sharp"]["loss"] <= min(losses) + 1e-12)
    assert r["local_minima"] >= len(losses) >= 2 and r["trace_ratio"] > 1
    assert r["loss_above"] == r["flat"]["loss"] - r["sharp"]["loss"]
    assert r["bound_above"] == r["flat"]["bound"] - r["sharp"]["bound"]
    assert not r["sharp_is_global"] or r["loss_above"] >= 0


def test_a_data_set_without_two_minima_is_counted(config):
    r = wang_toy.run(config | {"seed": 2000}, {})
    assert r == {"seed": 2000, "found": False, "place": "none", "local_minima": r["local_minima"], "trace_ratio": 1.0}
    assert r["local_minima"] < 2


def test_older_runs_of_the_toy_try_nothing_that_needs_more(config):
    """A committed run of before has no `sharp_is_global`: another question would be answered by it."""
    r = wang_toy.run(config, {})
    new = {"runs": [{"config": config, "result": r, "seconds": 1.0}]}
    old = {name: value for name, value in r.items() if name in ("seed", "found", "sharp", "flat", "smoothed")}
    old = {"runs": [{"config": {}, "result": old, "seconds": 1.0}]}
    about = [c for c in claims(study="wang-toy") if c.id != "w2-flat-lower-with-noise"]
    assert len(about) >= 9
    for claim in about:
        assert judge(claim, {"wang-toy": rows(old)}) is None, claim.id
    bounded = [c for c in about if judge(c, {"wang-toy": rows(new)}) is not None]
    assert {"w1-toy-many-optima", "w1-toy-sharp-and-flat", "w2-too-much-smooths"} <= {c.id for c in bounded}


def test_noise_as_wide_as_a_wave_leaves_no_low_of_it(monkeypatch):
    wave = 8.0

    def objective(x, y, fixed):
        return lambda w: torch.cos(2 * math.pi * w[0] / wave) + torch.cos(2 * math.pi * w[1] / wave)

    monkeypatch.setattr(_toy_minima, "objective", objective)
    lows = {width: _toy_minima.lows_under_noise(None, None, (0.0, 0.0), 61, width) for width in (0.0, 1.0)}
    assert lows == {0.0: 4, 1.0: 4} and len(_toy_minima.lows(None, None, (0.0, 0.0), 61)) == 4
    monkeypatch.setattr(_toy_minima, "objective", lambda x, y, fixed: lambda w: (w[0] - 2.8) ** 2 + w[1] ** 2)
    assert _toy_minima.lows_under_noise(None, None, (0.0, 0.0), 61, 8.0) == 1
    waves = 41 * 0.2 / 4  # four to the window of 41 points that half-width 4 has
    bumps = lambda x, y, fixed: lambda w: (w**2).sum() / 9 + 2 * torch.cos(2 * math.pi * w[0] / waves)  # noqa: E731
    monkeypatch.setattr(_toy_minima, "objective", bumps)
    assert _toy_minima.lows_under_noise(None, None, (0.0, 0.0), 121, 0.0) > 1
    assert _toy_minima.lows_under_noise(None, None, (0.0, 0.0), 121, 4.0) == 1


def test_the_printed_rho_is_measured_beside_the_librarys():
    """Of the same draws: |u_i| is at most the step's length, so that the printed rho is never the smaller one."""
    model = build("mlp", seed=0, widths=(4, 8, 3))
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 4, generator=draw), torch.arange(40) % 3
    found = _wang_cnn._psi({"samples": 40, "seed": 0, "batch_size": 8, "printed_rho": True}, x, y)(model)
    printed, ours = found["pacgen_printed_rho"], found["pacgen_batch_gradient"]
    minimum = Minimum(model.eval(), (x, y), seed=0)
    alone = measures.pacgen(minimum, diagonal="batch_gradient", samples=None, batch=8, rho="paper")
    assert float(printed) == float(alone) and printed.details["rho"] > ours.details["rho"]
    assert float(printed) >= float(ours)


def test_the_printed_rho_is_asked_for_where_a_claim_is_tried_with_it():
    """Everywhere but at equal loss of the papers' scale, where trainings are long and no claim asks."""
    for name in ("wang-mnist-batch", "wang-cifar-lr"):
        assert all(c["printed_rho"] for scale in ("smoke", "cpu") for c in STUDIES[name].list_runs(scale))
        for c in STUDIES[name].list_runs("paper"):
            assert ("printed_rho" in c) is (c["target_loss"] is None)


def test_by_epoch_one_form_is_measured(monkeypatch):
    calls = []
    monkeypatch.setattr(_wang_cnn, "pacgen", lambda minimum, **options: calls.append(options) or 1.0)
    config = {"samples": 4, "seed": 0, "batch_size": 2, "printed_rho": True}
    psi = _wang_cnn._psi(config, torch.ones(4, 2), torch.arange(4) % 2)
    model = build("mlp", seed=0, widths=(2, 4, 2))
    assert list(psi(model, "pacgen_batch_gradient")) == ["pacgen_batch_gradient"] and len(calls) == 1
    assert len(psi(model)) == 4 and [c.get("rho") for c in calls[1:]] == [None, "paper", None, None]


def test_what_is_drawn_and_compared_has_the_printed_rho_where_it_was_measured():
    def row(seed, batch, equal_loss, **more):
        told = {"batch_size": batch, "seed": seed, "equal_loss": equal_loss, "reached": True, "train_loss": 0.1}
        told |= dict.fromkeys(("gap", "error_gap", "pacgen", "pacgen_lemma3"), 0.1 * seed + batch)
        return told | {"pacgen_batch_gradient": 1.0 + seed, "curve": [[1, 0.1, 5.0]]} | more

    study = STUDIES["wang-mnist-batch"]
    old = [row(s, b, e) for s in range(2) for e in (False, True) for b in (16, 64, 256)]
    new = [r if r["equal_loss"] else r | {"pacgen_printed_rho": 7.0 * r["batch_size"]} for r in old]
    titles = [{axes.get_title() for axes in study.figure(results).axes} for results in (old, new)]
    assert "pacGen, squared batch gradients" in titles[0] and "pacGen, printed rho" in titles[1]
    both = [r | {"pacgen_printed_rho": 7.0 * r["batch_size"]} for r in old]
    told = [[v.claim for v in study.claims(results) if "printed rho" in v.claim] for results in (old, new, both)]
    assert told[0] == told[1] == [] and all("at equal loss" in claim for claim in told[2]) and len(told[2]) == 2


def test_half_scale_follows_every_seed_by_epoch_and_draws_the_printed_rho():
    study = STUDIES["wang-cifar-batch"]
    assert all(c.get("curves", False) is (c["target_loss"] is None) for c in study.configurations("half"))
    assert not any("curves" in c for scale in ("cpu", "paper") for c in study.configurations(scale))
    sources, told = sources_of(study, "smoke", None), {}
    for scale in ("smoke", "half"):
        small = study.configurations("smoke")[0] | {"data": "digits", "seed": 1, "limit": 64, "samples": 8}
        small |= {"curves": True, "printed_rho": True} if scale == "half" else {}
        told[scale] = study.run(small, sources)
    assert told["smoke"]["curve"] == [] and "curve_of" not in told["smoke"]  # the second seed of three scales
    assert told["half"]["curve_of"] == "pacgen_printed_rho" and len(told["half"]["curve"]) > 1
    epoch, gap, psi = told["half"]["curve"][-1]
    assert (epoch, gap) == (small["epochs"], told["half"]["gap"]) and psi == told["half"]["pacgen_printed_rho"]
    seeds = [told["half"] | {"seed": seed} for seed in (0, 1)]
    titles = [axes.get_title() for axes in study.figure(seeds).axes]
    assert titles[:2] == ["gap", "pacGen, printed rho"]
    titles = [axes.get_title() for axes in study.figure(seeds[:1]).axes]
    assert titles[:2] == ["gap, one seed", "pacGen, printed rho, one seed"]


def test_a_data_set_without_two_minima_counts_where_all_are_counted():
    lost = {"found": False, "place": "none", "local_minima": 1, "trace_ratio": 1.0, "seed": 0}
    runs = [{"config": {"seed": 0}, "result": result, "seconds": 1.0} for result in (lost, {"found": False, "seed": 1})]
    assert [r.get("local_minima") for r in rows({"runs": runs})] == [1]


@pytest.mark.parametrize("name", ["wang-mnist-batch", "wang-mnist-lr", "wang-cifar-batch", "wang-cifar-lr"])
def test_each_scale_says_which_rho_and_which_average_pacgen_has(name):
    for scale, said in STUDIES[name].reduction.items():
        assert "library's rho" in said and "beta 0.999" in said, scale
    assert "epochs" in STUDIES[name].reduction["paper"] and "ours" in STUDIES[name].reduction["paper"]


def test_the_bound_of_a_rescaled_network_is_eq_8():
    """(8) less (7): m / (2 eta) in the place of the sharpness, and eta / (2 n) in that of eta / (8 n)."""
    model = build("mlp", seed=0, widths=(4, 8, 3)).double()
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 4, generator=draw, dtype=torch.float64), torch.arange(40) % 3
    minimum = Minimum(model.eval(), (x, y), seed=0)
    by_7 = measures.sharpness_divergence(minimum, delta=0.05)
    at, m = by_7.details, sum(p.numel() for p in model.parameters())
    more = m / (2 * at["eta"]) - at["sharpness"] + (1 / 2 - 1 / 8) * at["eta"] / len(x)
    expected = evaluate(model, x, y).loss + float(by_7) + more
    assert wang_rescaling._bound(minimum, x, y) == pytest.approx(expected, rel=1e-9)


def test_no_run_of_pertopt_is_listed_twice_and_the_papers_rates_are_told():
    study = STUDIES["wang-pertopt"]
    for scale in study.scales:
        told = [repr(sorted(c.items(), key=str)) for c in study.list_runs(scale)]
        assert len(told) == len(set(told)), scale
    rates = {c["data"]: c["lr"] for c in study.list_runs("paper")}
    assert rates == {"cifar10": 1e-4, "cifar100": 1e-4, "tinyimagenet": 1e-2}


def test_a_gain_is_judged_where_networks_train():
    """Every sentence about errors of the study, and none of them without its own data set in a comparison."""
    about = [c for c in claims(study="wang-pertopt") if any("error" in t.y for t in c.trials)]
    assert len(about) >= 12
    assert [c.id for c in about if c.premise != ("train error at most 0.5",)] == []
    pooled = {c.id: t for c in about for t in c.trials if {"data", "name"} & {*t.first, *t.second}}
    assert pooled == {}


def test_the_rate_that_works_best_is_compared_with_every_other_on_each_data_set():
    for name, best, sets in (("w1-dropout-03", 0.3, ["cifar10"]), ("w1-dropout-01", 0.1, ["cifar100", "tinyimagenet"])):
        (claim,) = (c for c in claims("W1") if c.id == name)
        tried = {(t.where["data"], t.second["setting"]) for t in claim.trials if t.first["setting"] == best}
        rates = {
            data: {c["rate"] for c in STUDIES["wang-pertopt"].list_runs("half") if c["data"] == data and "rate" in c}
            for data in sets
        }
        assert tried == {(data, rate) for data, of in rates.items() for rate in of - {best}}


def test_a_level_of_noise_is_no_data_set():
    """Each minimum has a row for every level of noise, too, which knows where the global minimum is."""
    half = {"loss": 0.1, "test_loss": 0.2, "noisy_losses": [0.1, 0.3, 0.3, 0.3]}
    runs = [
        {
            "config": {"seed": seed},
            "result": {"seed": seed, "found": True, "sharp": half, "flat": half, "sharp_is_global": seed > 0}
            | {"local_minima": 3, "trace_ratio": 4.0, "loss_above": 0.01, "bound_above": 0.01, "lows_under_noise": 1},
            "seconds": 1.0,
        }
        for seed in range(8)
    ]
    shares = [c for c in claims(study="wang-toy") if any(t.share < 1 for t in c.trials)]
    assert len(shares) >= 5
    for claim in shares:
        for trial in claim.trials:
            found = judge(replace(claim, trials=(trial,)), {"wang-toy": rows({"runs": runs})})
            assert re.search("of [78] runs", found.note), (claim.id, found.note)


def test_the_same_function_is_the_premise_of_every_sentence_about_the_rescaled_network():
    about = [c for c in claims(study="wang-rescaling") if not any(t.y == "outputs" for t in c.trials)]
    assert len(about) >= 5 and {c.premise for c in about} == {("outputs equal to 1e-9",)}
