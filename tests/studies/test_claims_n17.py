"""N17's sentences: what a calculation must find, by a formula, another part of the library or what breaks it."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from flatminima import bounds, measures
from flatminima.core.minimum import Minimum
from flatminima.studies.claims import claims
from flatminima.studies.claims.checks import CHECKS, layers, networks
from flatminima.studies.claims.judge import judge

N17 = {claim.id: claim for claim in claims("N17")}


def _numbers(name):
    """Numbers of a calculation's sentence, in their order."""
    return [float(n.replace(",", "")) for n in re.findall(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", CHECKS[name]().said)]


def test_a_bound_without_its_divergence_does_not_cover(monkeypatch):
    """Else coverage would say nothing: the memorizer's KL is what keeps its bound above the risk of a half."""
    for name in ("neyshabur_5", "neyshabur_6"):
        kept = getattr(bounds, name)
        with monkeypatch.context() as broken:
            broken.setattr(bounds, name, lambda risk, kl, n, delta, kept=kept: kept(risk, 0.0, n, delta))
            assert CHECKS["bound_any"]().holds is False, name


def test_layers_that_cancel_are_sharp_by_the_variance_of_their_output():
    """Half the variance of the output times the loss's curvature at an output of 2, to first order in the noise."""
    s, curvature = 0.05, 1 / (1 + math.exp(2)) * (1 - 1 / (1 + math.exp(2)))
    norm, *rises, output = _numbers("weak_layers")
    assert (norm, output) == (10.0, 2.0)
    squares = [2 * norm**2, 2 * output, 2 * output]  # of the weights that the output depends on
    assert rises == pytest.approx([s**2 * square * curvature / 2 for square in squares], rel=0.1, abs=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_constants_of_a_chain_are_the_librarys(seed):
    net = layers._Chain(seed)
    modules: list[nn.Module] = []
    for w in net.layers:
        linear = nn.Linear(w.shape[1], w.shape[0], bias=False).double()
        linear.weight.data = torch.from_numpy(w)
        modules += [linear, nn.ReLU()]
    minimum = Minimum(nn.Sequential(*modules[:-1]).eval(), (torch.from_numpy(net.x)[None], torch.tensor([0])))
    found = measures.conditions(minimum, samples=None).details
    assert 1 / net.mu == pytest.approx(found["inverse_mu"]) and net.c2 == pytest.approx(found["c2"])


def test_lemma_1_needs_mu(monkeypatch):
    assert CHECKS["unchanged_activations"]().holds is True
    monkeypatch.setattr(layers._Chain, "_mu", lambda self: 3.0 + abs(float(self.x[0])))
    assert CHECKS["unchanged_activations"]().holds is False


def test_units_flip_by_the_noise_of_the_layers_below():
    """Erratum N-k: a layer's flips do not go with its own noise."""
    net, rng = layers._Chain(3), np.random.default_rng(0)
    flips = [
        np.mean([((net.inputs(net.moved([0.05, below, own, 0.0], rng))[2] > 0) != net.on[2]).sum() for _ in range(100)])
        for below, own in ((0.05, 0.05), (0.05, 0.0), (0.0, 0.0))
    ]
    assert flips[0] > 1 and flips[1] > 0.3 * flips[0] and flips[2] > 0
    assert (net.inputs(net.moved([0.0] * 4, rng))[2] > 0).tolist() == net.on[2].astype(bool).tolist()


def test_theorem_1_is_as_printed():
    depth, mu, c2, c3, sigma, width = 3, 0.5, 2.0, 3.0, 0.1, 50
    spread = 2 * math.sqrt(math.log(depth * width / 0.05))
    g = sigma / (spread * depth)
    sharp = (1 + g) ** depth - 1 + (1 + g * c2 * c3) ** depth * ((1 + g * spread * c2) ** depth - 1)
    noise = g * mu**2 / width  # of layers of norm 1
    root = math.sqrt((depth / noise**2 + math.log(2 * 10_000 / 0.05)) / 10_000)
    found = layers._theorem_1(depth, mu=mu, c2=c2, c3=c3, sigma=sigma, width=width)
    assert found == pytest.approx((sharp, root))


def test_powers_of_depth():
    """Three halves at equal widths: d^2 of the theorem's sum and d layers under a root; C_delta adds a logarithm."""
    fixed, equal = _numbers("depth_power")[:2]
    spreads = [4 * math.log(d * h / 0.05) for d, h in ((100, 100), (400, 100), (400, 50))]
    assert equal == pytest.approx(1.5 + math.log(spreads[1] / spreads[0]) / 2 / math.log(4), abs=0.01)
    assert fixed == pytest.approx(1.0 + math.log(spreads[2] / spreads[0]) / 2 / math.log(4), abs=0.01)
    few, many = _numbers("simplified_theorem")[:2]
    assert few == pytest.approx(4 * math.log(5 * 100 / 0.05), abs=1)
    assert many == pytest.approx(4 * math.log(100 * 100 / 0.05), abs=1)


def test_a_bound_that_grows_exponentially_is_seen(monkeypatch):
    monkeypatch.setattr(layers, "_theorem_1", lambda depth, **_: (0.1, 1.01**depth))
    assert CHECKS["no_exponential"]().holds is False and CHECKS["depth_power"]().holds is False


def test_what_is_missing_in_print(monkeypatch):
    spectral, path, *missing = _numbers("derived_bounds")
    assert max(spectral, path) < 1 and missing[:2] == [4**2, 4**5]
    printed, meant = _numbers("appendix_kl")
    assert printed == pytest.approx(2 * meant, rel=1e-4)
    monkeypatch.setattr(bounds, "bicriteria_kl", lambda w, alpha, variant: bounds.neyshabur.bicriteria_kl(w, alpha))
    assert CHECKS["appendix_kl"]().holds is True
    monkeypatch.setattr(bounds, "kl_scaled_noise_fixed_prior", lambda w, sigma, t: (w**2 / (2 * sigma**2)).sum())
    assert CHECKS["weight_scaled_kl"]().holds is True  # were it so for a prior that does not know w


def test_the_path_norm_of_several_outputs_is_no_minimum():
    path, least, several, product = _numbers("path_is_minimum")
    assert path == least and (several, product) == (2.0, 1.0)


def test_both_linear_predictors_fit():
    """Of one norm; else the sharpness of an error would be compared with that of a fit."""
    margins, sharpness = _numbers("linear_sharpness")[:2], _numbers("linear_sharpness")[2:]
    assert min(margins) > 0 and sharpness[1] > 2 * sharpness[0] and sharpness[3] > 2 * sharpness[2]


def test_equation_8_of_a_network_is_by_its_own_terms():
    w = networks._trained()
    for sigma, (_, errors, kl, bound) in zip((0.01, 0.1, 1.0, 10.0), networks._noisy(), strict=True):
        assert kl == pytest.approx(float((w**2).sum()) / (2 * sigma**2))
        assert bound == pytest.approx(errors + 4 * math.sqrt((kl + math.log(2 * 90 / 0.05)) / 90))


def test_an_order_that_differs_is_not_monotone(monkeypatch):
    kept = measures.spectral_norm
    monkeypatch.setattr(measures, "spectral_norm", lambda *at, **by: SimpleNamespace(value=-kept(*at, **by).value))
    assert CHECKS["lipschitz_monotone"]().holds is False


def test_functions_of_a_smaller_constant_do_not_fit_all_corners():
    """Labels -1 and 1 that are one apart need a constant of 2."""
    assert _numbers("lipschitz_shatters")[:3] == [2**2, 2**5, 2**8]
    wider, deeper = _numbers("lipschitz_capacity")[-6:-3], _numbers("lipschitz_capacity")[-3:]
    assert wider[2] > 3 * wider[0] and deeper[2] > 3 * deeper[0]


def test_always_is_of_every_pair():
    """A mean over pairs, which one pair of the other sign hardly moves, says nothing of "always"."""
    always = N17["n-always-higher"]
    own = [
        {"seed": seed, "size": size, "random": random, "train_error": 0.0, "seconds": 1.0}
        | dict.fromkeys(("l2", "l1_path", "l2_path", "spectral"), 1.0 * random + 0.1 * seed + 0.01 * size * random)
        for seed in range(4)
        for size in (1, 2, 3)
        for random in (False, True)
    ]
    found = judge(always, {"neyshabur-random-labels": own})
    assert found.verdict == "reproduced" and "12 of 12 pairs" in found.note and found.statistic == pytest.approx(1.01)
    own[1] |= {"spectral": -0.2}
    found = judge(always, {"neyshabur-random-labels": own})
    assert found.verdict == "contradicted" and "11 of 12 pairs" in found.note and found.statistic == pytest.approx(-0.2)
    lonely = [r for r in own if not (r["random"] and r["size"] > 1) and not (not r["random"] and r["size"] == 1)]
    assert judge(always, {"neyshabur-random-labels": lonely}).verdict == "not informative", "no pairs"


def test_fig_4_is_judged_at_every_scale():
    """Of 3,000 images as of all: a scale is not left out because of what it shows."""
    about_width = [(c.id, t) for c in N17.values() for t in c.trials if t.study == "neyshabur-width"]
    assert about_width and not [name for name, t in about_width if "all_images" in t.where]
    turn = N17["n-width-turn-128"].trials
    assert [t.y for t in turn] == ["l2", "l1_path"] and {(t.shape, t.x, t.vertex) for t in turn} == {
        ("v", "log2 width", math.log2(128))
    }


def test_a_better_predictor_predicts():
    """To order better than what orders the wrong way round is not enough."""
    better = N17["n-jointly-better"]
    own = [
        {"seed": seed, "train_error": 0.0, "seconds": 1.0, "test_error": 0.1 * k}
        | {"confusion": k, "ln_kl_at_sharpness": 1.0 - 0.05 * k + 0.01 * ((seed * 7 + k * 3) % 5)}
        for seed in range(6)
        for k in range(4)
    ]
    taus = [
        {"seed": seed, "metric": metric, "tau": tau + 0.05 * seed, "train_error": 0.0, "seconds": 1.0}
        for seed in range(6)
        for metric, tau in (("ln_kl_at_sharpness", -0.1), ("sharpness", -1.0 - 0.01 * seed))
    ]
    found = judge(better, {"neyshabur-confusion": own + taus})
    assert found.verdict == "contradicted" and found.measured.startswith("ln KL")
    risen = [
        r | {"ln_kl_at_sharpness": 9 * r["test_error"] + 0.01 * ((r["seed"] * 7) % 5) * r["confusion"]} for r in own
    ]
    assert judge(better, {"neyshabur-confusion": risen + taus}).verdict == "reproduced"


def test_quotations_keep_what_decides_them():
    kept = {
        "n-counting-insufficient": "not sufficient",
        "n-mu-c2-c3": "the error gets worse",
        "n-large-sigma": "If we choose large",
        "n-bound-any": "The bound is valid",
        "n-bicriteria-change": "the change in the bi-criteria plot",
        "n-bicriteria-lower": "bi-criteria plots are",
        "n-cond-hold": "conditions C 1",
        "n-linear-sharpness": "For the case of linear predictors",
        "n-almost-linear": "we expect",
        "n-small-increase": "we expect",
        "n-substantially-lower": "We would expect",
    }
    assert [name for name, words in kept.items() if words not in N17[name].quote] == []
    broken = ("n-lipschitz-weak", "n-last-dominates", "n-width-joint-fails", "n-not-tight", "n-width-norms-128")
    assert all(N17[name].reads for name in broken)
    assert len({c.quote for c in N17.values()}) == len(N17)


def test_runs_are_those_that_the_sentences_are_about():
    for name in ("n-bicriteria-lower", "n-bicriteria-change", "n-fixed-sharpness"):
        assert all(t.where == {"size": ">= 1000"} for t in N17[name].trials), name
    assert N17["n-sharp-bigger"].trials[0].where == {"size": ">= 20000"}
    assert N17["n-sharp-smaller"].trials[0].where == {"size": [1000, 2000]}
    assert N17["n-jointly-better"].trials[0].y == "tau"
    assert {t.y for t in N17["n-cond-hold"].trials} == {"mu", "c2_figure", "c3"}
    for name in ("n-algorithm-matters", "n-two-methods"):
        assert N17[name].premise == ("train error at most 0",)
        assert [t.where for t in N17[name].trials] == [{"equal_loss": False}]
    for name in ("n-width-norms-128", "n-width-joint-128"):
        assert all(t.where["width"] == [32, 64, 128] for t in N17[name].trials), name
    sharp = [t for c in ("n-sharpness-fails", "n-conf-sharp-poor") for t in N17[c].trials if t.x == "test_error"]
    assert [t.margin for t in sharp] == [5.0, 5.0]
    assert "ln_kl_at_sharpness" in {t.y for t in N17["n-already-saw"].trials} and "n-width-v" not in N17
