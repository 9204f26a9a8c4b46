"""What a verdict may rest on: all that a sentence asserts, partners that are partners, networks of similar loss."""

from dataclasses import replace

import numpy as np
import pytest

from flatminima.studies.claims.judge import judge, try_one
from flatminima.studies.claims.quantities import rows
from flatminima.studies.claims.registry import Claim, Trial
from flatminima.studies.verdict import CONTRADICTED, REPRODUCED, UNINFORMATIVE, UNMET

SEEDS = range(6)
NOISE = dict(zip(SEEDS, np.random.default_rng(0).normal(0, 0.01, len(SEEDS)), strict=True))


def claim(*trials, premise=()):
    return Claim("c", "N17", "a sentence", "sec. 1", premise=premise, trials=trials)


def row(seed, method, y, **more):
    return {
        "seed": seed,
        "method": method,
        "y": y + NOISE[seed] * (1 if method == "ours" else -1),
        "seconds": 1.0,
    } | more


def paired(shift=-1.0, **more):
    return [row(seed, method, shift * (method == "ours"), **more) for seed in SEEDS for method in ("ours", "plain")]


TRIAL = Trial("a", "smaller", "y", first={"method": "ours"}, second={"method": "plain"}, said="error")
OTHER = replace(TRIAL, study="b", said="error of the other network")


def test_what_is_not_tried_whole_is_not_reproduced():
    assert judge(claim(TRIAL), {"a": paired()}).verdict == REPRODUCED
    assert judge(claim(TRIAL, OTHER), {"a": paired(), "b": paired()}).verdict == REPRODUCED
    part = judge(claim(TRIAL, OTHER), {"a": paired()})
    assert part.verdict == UNINFORMATIVE and "no runs of error of the other network" in part.note
    against = judge(claim(TRIAL, OTHER), {"a": paired(+1.0)})
    assert against.verdict == CONTRADICTED and "no runs of error of the other network" in against.note
    assert judge(claim(TRIAL, OTHER), {}) is None


def test_a_verdict_says_whose_runs_decide():
    assert judge(claim(TRIAL, OTHER), {"a": paired(), "b": paired(+1.0)}).study == "b"


def test_partners_are_of_one_data_set_and_one_network():
    """CIFAR-100 errs more: were its plain networks the partners, ours would look better."""
    ten, hundred = paired(0.5, data="cifar10"), [r | {"y": r["y"] + 5.0} for r in paired(0.5, data="cifar100")]
    found = try_one(claim(TRIAL), TRIAL, [*ten, *hundred])
    assert found.verdict == CONTRADICTED and found.statistic == pytest.approx(0.5, abs=0.05)
    between = replace(
        TRIAL, first={"method": "ours", "data": "cifar10"}, second={"method": "plain", "data": "cifar100"}
    )
    assert try_one(claim(between), between, [*ten, *hundred]).verdict == REPRODUCED


def test_networks_of_similar_loss_only():
    def with_losses(ratios):
        found = paired()
        for r in found:
            r["train_loss"] = 0.01 * (ratios[r["seed"]] if r["method"] == "ours" else 1.0)
        return found

    of_loss = claim(TRIAL, premise=("train losses within a factor of 1.2",))
    alike = with_losses([1.1, 0.9, 1.0, 1.19, 0.85, 1.0])
    assert try_one(of_loss, TRIAL, alike).verdict == REPRODUCED
    unlike = try_one(of_loss, TRIAL, with_losses([1.1, 2.1, 1.0, 1.3, 0.5, 1.0]))
    assert unlike.verdict == UNMET and unlike.note == "training losses within a factor of 1.2: 3 of 6 pairs"
    along = Trial("a", "rises", "y", x="x")
    slope = [
        {"seed": s, "x": float(x), "y": x + NOISE[s] * x, "seconds": 1.0, "train_loss": 1.0 + x}
        for s in SEEDS
        for x in range(3)
    ]
    assert try_one(claim(along, premise=("train losses within a factor of 3",)), along, slope).verdict == REPRODUCED
    unmet = try_one(claim(along, premise=("train losses within a factor of 2.9",)), along, slope)
    assert unmet.verdict == UNMET and unmet.note == "training losses from 1 to 3: not within a factor of 2.9"


def test_the_papers_vertex_has_to_be_where_the_curve_turns():
    bent = [
        {"seed": s, "x": float(x), "y": abs(x - 4) + NOISE[s] * (x - 3), "seconds": 1.0}
        for s in SEEDS
        for x in range(9)
    ]
    here = Trial("a", "v", "y", x="x", vertex=4.0)
    assert try_one(claim(here), here, bent).verdict == REPRODUCED
    there = try_one(claim(here), replace(here, vertex=7.0), bent)
    assert there.verdict == UNINFORMATIVE and "the paper's vertex is at 7" in there.note
    assert try_one(claim(here), replace(here, vertex=None), bent).verdict == REPRODUCED


def test_a_tau_is_no_run():
    runs = [
        {
            "config": {"seed": seed, "epochs": 250},
            "result": dict.fromkeys(("logdet", "spectral", "frobenius", "robustness"), float(size))
            | {"test_error": 0.1 * size, "train_error": 0.0, "train_loss": 0.01},
            "seconds": 1.0,
        }
        for seed in SEEDS
        for size in range(3)
    ]
    found = rows({"runs": runs})
    accurate = Trial("a", "at_most", "train_error", bound=0.01)
    long_enough = try_one(claim(accurate, premise=("epochs at least 200",)), accurate, found)
    assert long_enough.verdict == REPRODUCED and long_enough.note.startswith("18 of 18 runs")
    assert sum("tau" in r for r in found) == 4 * len(SEEDS)


def test_confusion_sets_have_taus_of_norm_and_sharpness():
    def run(seed, confusion):
        curve = [{"sharpness": s, "kl": (1 + confusion) / s, "stderr": 0.0} for s in (0.01, 0.1)]
        told = {"confusion": confusion, "sharpness": -float(confusion), "l2": 1.0, "curve": curve}
        return {
            "config": {"seed": seed},
            "result": told | {"test_error": 0.1 * confusion, "train_error": 0.0},
            "seconds": 1.0,
        }

    found = [r for r in rows({"runs": [run(s, c) for s in SEEDS for c in range(4)]}) if "tau" in r]
    taus = {r["metric"]: r["tau"] for r in found if r["seed"] == 0}
    assert taus["ln_kl_at_sharpness"] == 1.0 and taus["sharpness"] == -1.0 and len(found) == 4 * len(SEEDS)
    assert taus["l2"] is None, "it does not vary"


@pytest.mark.parametrize(
    ("hits", "runs", "word"),
    [
        (5, 11, UNINFORMATIVE),
        (50, 110, UNINFORMATIVE),
        (3, 30, CONTRADICTED),
        (28, 30, REPRODUCED),
        (11, 11, REPRODUCED),
    ],
)
def test_a_share_of_runs_is_judged_by_its_interval(hits, runs, word):
    """Five of eleven do not say that fewer than half do."""
    trial = Trial("a", "at_most", "y", bound=1.0, share=0.5)
    own = [{"seed": n, "y": 0.5 + (n >= hits) + 0.001 * n, "seconds": 36.0} for n in range(runs)]
    found = try_one(claim(trial), trial, own)
    assert found.verdict == word and f"{hits} of {runs} runs" in found.note
    assert (found.hours is not None and found.hours > 0) is (word == UNINFORMATIVE)
