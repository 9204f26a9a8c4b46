"""J20's entries of the registry: printed effects, one scale, no sentence twice; and the calculations behind them."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize

from flatminima.studies import STUDIES, _jia_table
from flatminima.studies.claims import claims
from flatminima.studies.claims.checks import jia, networks
from flatminima.studies.claims.quantities import rows
from flatminima.studies.setups import deviations

OWN = {claim.id: claim for claim in claims("J20")}
FIGURES = ("jia-confusion", "jia-augmentation", "jia-batch")
TABLES = ("jia-regularizer", "jia-regularized-metric")


def _numbers(text):
    return [float(number) for number in re.findall(r"[-+]?\d+\.?\d*(?:e[-+]\d+)?", text)]


# Entries.


def _printed():
    """Table 1's changes in test error, by data set and network, as its quotations have them."""
    return {
        (trial.first["data"], trial.first["name"]): (_numbers(claim.quote)[2] - _numbers(claim.quote)[0]) / 100
        for name, claim in OWN.items()
        if name.startswith("j-t1-")
        for trial in claim.trials
    } | {("cifar100", "DenseNet"): (22.19 - 22.54) / 100}


@pytest.mark.parametrize("name", ["j-effective-regularizer", "j-wide-range"])
def test_each_network_has_the_effect_that_is_printed_for_it(name):
    """One effect for all is the least of them, which the largest then exceeds whatever the runs say."""
    printed, trials = _printed(), OWN[name].trials
    assert len(printed) == 7 and len(trials) == (4 if name == "j-effective-regularizer" else 7)
    for trial in trials:
        assert trial.effect == pytest.approx(printed[trial.first["data"], trial.first["name"]], abs=1e-9)
        assert trial.margin == pytest.approx(-trial.effect / 3, abs=1e-3)


def test_table_2_is_of_its_three_networks_at_like_training_loss():
    """A plain CNN ends at twice the loss with the regularizer, and the metric goes with the loss."""
    together = OWN["j-better-minima"]
    alone = [OWN[f"j-t2-{name}"] for name in ("resnet", "wrn", "densenet")]
    for claim in (together, *alone, OWN["j-optimizes-bound"]):
        assert "train losses within a factor of 1.2" in claim.premise, claim.id
    assert [t.first["name"] for t in together.trials] == ["ResNet", "WRN", "DenseNet"]
    assert together.trials == tuple(t for claim in alone for t in claim.trials)
    for claim, trial in zip(alone, together.trials, strict=True):
        without, with_it = _numbers(claim.effect.replace(" to ", " "))
        assert trial.effect == pytest.approx(with_it - without) and str(without) in claim.quote


_STEPS = {"test_error": 1.0, "confusion / true": 0.2, "log2 batch_size": 0.01}  # of test error, for one of x


def test_one_scale_holds_for_all_of_the_figures():
    """5 nats of 100 eigenvalues a point of test error, and 0.05 e-folds of a metric that is one number."""
    seen = 0
    for claim in OWN.values():
        for trial in claim.trials:
            eigenvalues = {"logdet": 100, "logdet_10": 10, "logdet_30": 30}.get(trial.y)
            if trial.y in ("ln spectral", "ln frobenius", "ln robustness"):
                eigenvalues = 1
            if trial.study in FIGURES and eigenvalues:
                assert trial.margin == pytest.approx(eigenvalues * 5 * _STEPS[trial.x]), claim.id
                seen += 1
    assert seen >= 25


@pytest.mark.parametrize("name", ["j-significantly", "j-small-subset", "j-outperforms", "j-robustness-fails"])
def test_what_is_said_of_all_minima_is_tried_on_all_three_figures(name):
    assert set(OWN[name].studies) == set(FIGURES)


_OF_THE_FIT = {"train_error", "train_loss", "ln train_loss"}


def test_every_sentence_on_a_figure_is_of_networks_of_like_loss_that_fit():
    """Sec. 7.1 says it of each scenario, and the log-determinant goes with the loss (J-e): else the loss decides."""
    about = [
        claim
        for claim in OWN.values()
        if claim.kind == "empirical" and any(t.study in FIGURES and t.y not in _OF_THE_FIT for t in claim.trials)
    ]
    assert len(about) == 14 and {figure for claim in about for figure in re.findall(r"Fig\. \d", claim.figure)} == {
        "Fig. 1",
        "Fig. 2",
        "Fig. 3",
    }
    for claim in about:
        assert claim.premise == ("train error at most 0.01", "train losses within a factor of 2"), claim.id
        assert all(t.where == {"similar_loss": True} for t in claim.trials), claim.id


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_has_controls_at_one_loss(name):
    """The same networks and images, of the first seeds: only when training ends, and how patient it is, differs."""
    own = {"target_loss", "patience", "epochs", "look_every"}

    def shared(configs):
        return [{key: value for key, value in c.items() if key not in own} for c in configs]

    configs = STUDIES[name].list_runs("half")
    printed, controls = ([c for c in configs if bool(c["target_loss"]) is bound] for bound in (False, True))
    of_one = [c for c in printed if not c["seed"]]
    assert shared(controls) == shared(c | {"seed": seed} for seed in range(8) for c in of_one)
    assert shared(c for c in controls if c["seed"] < 5) == shared(c for c in printed if c["seed"] < 5)
    assert {c["target_loss"] for c in controls} == {0.02} and {c["epochs"] for c in controls} == {500}


def test_a_table_with_a_sweep_is_drawn_by_way_of_training():
    """One seed alone tried the strengths; without clipping is beside the choice, and no part of it."""
    kinds = [(0.0, 5.0, 0.3), (10.0, 5.0, 0.3), (10.0, 1.0, 0.1), (10.0, None, 0.2)]
    rows_of_one = [
        {"data": "d", "name": "n", "beta": beta, "max_norm": norm, "validation_error": error, "seed": seed}
        for seed in (0, 1)
        for beta, norm, error in kinds
        if not seed or norm != 5.0 or not beta
    ]
    assert _jia_table.axis(rows_of_one) == ("regularizer", {0: "without", 1: "with", 2: "unclipped"})
    found = _jia_table.placed(rows_of_one, by_way=_jia_table.swept(rows_of_one))
    assert [(x, r["beta"], r["max_norm"], r["seed"]) for x, r in found] == [
        (0, 0.0, 5.0, 0),
        (0, 0.0, 5.0, 1),
        (1, 10.0, 1.0, 0),
        (1, 10.0, 1.0, 1),
        (2, 10.0, None, 0),
        (2, 10.0, None, 1),
    ]
    by_strength = [r for r in rows_of_one if r["max_norm"] == 5.0]
    assert _jia_table.axis(by_strength) == ("strength beta", {0.0: "0", 10.0: "10"})
    assert [x for x, _ in _jia_table.placed(by_strength, by_way=_jia_table.swept(by_strength))] == [0.0, 10.0, 0.0]


def figure_of(printed, controls):
    """Rows of a figure: networks of so much training loss, as printed and to one loss of 0.02."""
    return rows(
        {
            "runs": [
                {
                    "config": {"seed": seed, "target_loss": target},
                    "result": {"robustness": 1.0, "train_loss": loss},
                    "seconds": 1.0,
                }
                for target, losses in ((None, printed), (0.02, controls))
                for seed, loss in enumerate(losses)
            ]
        }
    )


def test_a_figure_is_of_the_networks_that_its_premise_is_about():
    alike, apart, controls = (0.001, 0.0015, 0.0019), (0.001, 0.0015, 0.019), (0.015, 0.019, 0.5)
    for printed, others, expected in (
        (alike, controls, [True] * 3 + [False] * 3),
        (apart, controls, [False] * 3 + [True, True, False]),  # the last did not reach its loss
        (apart, (), [True] * 3),  # nothing else there: judged, and premise not met
        ((), controls, [True, True, False]),
    ):
        assert [row["similar_loss"] for row in figure_of(printed, others)] == expected


def test_a_changed_entry_says_what_its_verdict_was():
    words = r"reproduced|contradicted|smaller than claimed|not informative|premise not met"
    for claim in OWN.values():
        assert not claim.revised or re.search(rf"[Bb]efore.*({words})|({words}) it", claim.note), claim.id


def test_what_an_entry_needs_is_one_number():
    for claim in OWN.values():
        assert len(re.findall(r"core-hours?|hours of an accelerator", claim.needs)) <= 1, claim.id


def test_no_two_sentences_are_decided_by_the_same_trials():
    """Else one result counts twice among the paper's claims."""
    tests = [
        repr([claim.premise, *(replace(trial, said="", effect=None) for trial in claim.trials)])
        for claim in OWN.values()
        if claim.trials
    ]
    assert len(tests) >= 30 and len(set(tests)) == len(tests)


# Set-ups.


@pytest.mark.parametrize("name", FIGURES + TABLES)
@pytest.mark.parametrize("scale", ["cpu", "half"])
def test_a_reduction_names_as_many_subsets_as_the_images_allow(name, scale):
    """Subsets share no sample: of 1,000 images there are 10 of 100, whatever number of trials was asked for."""
    study = STUDIES[name]
    there = [str(n) for n in sorted({c.get("true", c["limit"]) // c["subset"] for c in study.list_runs(scale)})]
    assert f"{' or '.join(there)} disjoint subsets of 100 (100)" in " ".join(study.reduction[scale].split())
    assert f"subsets: {' and '.join(there)} (100)" in deviations(study, scale)
    assert not [d for d in deviations(study, "paper") if d.startswith("subsets")]


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_say_what_they_measure_otherwise(name):
    for scale in ("cpu", "half", "paper"):
        said = STUDIES[name].reduction[scale]
        assert "Frobenius norm of the mean" in said and "robustness on 200 samples" in said


def test_a_changed_size_batch_schedule_or_number_of_seeds_is_a_deviation():
    def changed(name, **own):
        study = STUDIES[name]
        configs = [c | own for c in study.list_runs("paper")]
        found = deviations(replace(study, configurations=lambda scale: configs), "paper")
        return [said for said in found if said not in deviations(study, "paper")]

    assert changed("jia-regularizer", batch_size=32)[0] == "batch size, name CNN: 32 (128)"
    assert changed("jia-regularizer", milestones=[50, 75]) == ["milestones, name CNN: 50 and 75 (100 and 150)"]
    assert changed("jia-regularizer", alpha=0.1, momentum=0.0) == [
        "step alpha of the penalty: 0.1 (0.0001)",
        "momentum, name CNN: 0 (0.9)",
        "momentum, name DenseNet and ResNet and WRN: 0 (0.9)",
    ]
    assert changed("jia-confusion", confusion=1_000) == [
        "confusion set: 1,000 (0 and 1,000 and 2,000 and 3,000 and 4,000 and 5,000)"
    ]
    assert changed("jia-batch", seed=0) == ["seeds: 1 (5)"]


# Calculations.


def test_theorem_1_fails_by_the_minimum_of_the_data_it_is_stated_for():
    """Newton's minimum is scipy's, and its Hessian that of autograd: else the bound would be of another point."""
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((60, 20)), np.where(draw.random(60) < 0.5, 0.95, 0.05)
    w, hessian = jia._logistic(x, y)
    found = minimize(lambda v: (np.logaddexp(0, x @ v) - y * (x @ v)).mean(), np.zeros(20), tol=1e-12)
    assert np.allclose(w, found.x, atol=1e-3)
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    own = torch.autograd.functional.hessian(
        lambda v: torch.nn.functional.binary_cross_entropy_with_logits(tx @ v, ty), torch.from_numpy(w)
    )
    assert np.allclose(hessian, own.numpy(), atol=1e-10)
    holds, said = jia.theorem_1_covers()
    assert holds is False and said.startswith("above the loss in 0 of 50 data sets")


def test_theorem_1_is_not_refuted_where_it_is_loose(monkeypatch):
    """The calculation can come out either way: a right side that is larger by ten covers every data set."""
    plain = jia.bounds.jia_su
    monkeypatch.setattr(jia.bounds, "jia_su", lambda *given: plain(*given) + 10.0)
    assert jia.theorem_1_covers().holds is True


def test_clipped_no_weights_have_an_expected_loss_below_a_half():
    """Of labels that are coin flips: what the calculation of Theorem 1 takes for true."""
    z = np.linspace(0, 400, 100_001)
    for y in (0.995, 0.005):
        each = [np.minimum(np.logaddexp(0, v) - y * v, 1) for v in (z, -z)]
        other = [np.minimum(np.logaddexp(0, v) - (1 - y) * v, 1) for v in (z, -z)]
        assert min((a + b).min() / 2 for a, b in zip(each, other, strict=True)) > 0.5


def test_a_relu_unit_has_no_volume():
    """A strip lo <= ab <= hi has 2 (hi - lo) ln 10 more of area within ten times the box."""

    def above(z):
        return math.log1p(math.exp(z)) - 0.9 * z + 0.9 * math.log(0.9) + 0.1 * math.log(0.1) - 0.01

    top = math.log(9)
    low, high = brentq(above, top - 3, top), brentq(above, top, top + 3)
    assert np.diff(jia._areas_of_a_relu_unit()) == pytest.approx([2 * (high - low) * math.log(10)] * 3, rel=0.05)


def test_small_heights_have_the_area_of_an_ellipse():
    """Pi times twice the height over the root of the Hessian's determinant, about a well isolated minimum."""
    holds, said = jia.height_exists()
    draw = np.random.default_rng(1)
    x, y = draw.standard_normal((20, 2)), np.where(draw.random(20) < 0.5, 0.95, 0.05)
    _, hessian = jia._logistic(x, y)
    height, area = _numbers(said)[0], _numbers(said)[3]
    assert holds is True
    assert 2 * math.pi * height / math.sqrt(np.linalg.det(hessian)) == pytest.approx(area, rel=0.05)


def test_one_hot_labels_have_another_fisher_matrix():
    """The trace with labels y is that of the softmax's Hessian, 1 - sum p^2."""
    y = torch.full((10,), 0.01, dtype=torch.float64)
    y[0] = 0.91
    hessian = torch.autograd.functional.hessian(lambda z: -(y * z.log_softmax(0)).sum(), y.log())
    one_hot = torch.autograd.functional.jacobian(lambda z: -z.log_softmax(0)[0], y.log()).square().sum()
    holds, said = jia.labels_close()
    assert holds is False and _numbers(said)[1:] == pytest.approx([float(hessian.trace()), float(one_hot)], abs=6e-4)


def test_subsets_have_too_large_eigenvalues_the_smaller_they_are():
    """Cauchy's interlacing: the nth smallest of a subset is at least that of the whole matrix."""
    holds, said = jia.subset_eigenvalues()
    gaps = [float(n) for n in re.findall(r"\d+\.\d+", said)]
    assert holds is False and len(gaps) == 6
    assert all(sorted(own, reverse=True) == own and own[-1] > 0 for own in (gaps[:3], gaps[3:]))


def test_of_jj_the_subset_is_a_submatrix_and_jj_is_not_the_fisher_matrix():
    holds, said = jia.principal_submatrix()
    of_fisher, of_gram = _numbers(said)
    assert holds is False and of_fisher > 1 and of_gram <= 1e-12
    holds, said = jia.gram_is_fisher()
    apart, of_spectra = _numbers(said)
    assert holds is False and apart > 0.5 and of_spectra <= 1e-12, said


def test_labels_of_one_hot_shrink_the_spectral_radius():
    holds, said = jia.spectral_radius()
    radius, squared = _numbers(said)
    y = torch.full((10,), 0.01, dtype=torch.float64)
    y[0] = 0.91
    hessian = torch.autograd.functional.hessian(lambda z: -(y * z.log_softmax(0)).sum(), y.log())
    assert holds is False and radius == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), abs=6e-4)
    assert squared == pytest.approx(0.09**2 + 9 * 0.01**2, abs=6e-4)


def test_without_batch_norm_a_filter_has_a_length(monkeypatch):
    holds, said = networks.batch_norm_isolated()
    assert holds is False and _numbers(said)[0] <= 1e-12, said
    monkeypatch.setattr(torch.nn.functional, "batch_norm", lambda x, m, v, gain, shift, *rest: x * gain + shift)
    holds, said = networks.batch_norm_isolated()
    assert holds is True and _numbers(said)[0] > 1e-6


def test_a_smallest_eigenvalue_could_dominate(monkeypatch):
    assert networks.smallest_dominate().holds is False
    monkeypatch.setattr(networks, "_hessian", lambda w: np.diag([1e-11, 0.9, 1.1]))
    assert networks.smallest_dominate().holds is True


def test_a_rescaled_network_has_large_weights(monkeypatch):
    assert networks.weights_small().holds is True
    w = networks._trained().clone()
    w[:24] *= 10
    w[24:] /= 10
    monkeypatch.setattr(networks, "_trained", lambda: w)
    assert networks.weights_small().holds is False


def test_a_smooth_loss_is_locally_quadratic_and_that_of_relu_is_not():
    """The error of an analytic loss falls with the radius itself; at a kink it grows."""
    smooth, kinked = networks._quadratic_errors(True), networks._quadratic_errors(False)
    assert [b / a for a, b in pairwise(smooth)] == pytest.approx([0.1, 0.1], rel=0.2)
    assert kinked[0] < kinked[1] < kinked[2] and networks.locally_quadratic().holds is False
