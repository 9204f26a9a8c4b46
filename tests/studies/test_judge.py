"""What a verdict may rest on: all that a sentence asserts, partners that are partners, networks of similar loss."""

from dataclasses import replace

import numpy as np
import pytest

from flatminima.studies.claims.judge import correct, judge, try_one
from flatminima.studies.claims.quantities import rows
from flatminima.studies.claims.registry import ALONG, Claim, Trial
from flatminima.studies.verdict import CONTRADICTED, REPRODUCED, UNINFORMATIVE, UNMET, Verdict

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


def test_a_part_whose_premise_no_run_meets_was_not_tried():
    fitted = ("train error at most 0.01",)
    good, bad = paired(train_error=0.0), paired(train_error=0.5)
    found = judge(claim(TRIAL, OTHER, premise=fitted), {"a": good, "b": bad})
    assert (
        found.verdict == UNINFORMATIVE and "no runs that meet the premise of error of the other network" in found.note
    )
    assert judge(claim(TRIAL, OTHER, premise=fitted), {"a": bad, "b": bad}).verdict == UNMET
    assert judge(claim(TRIAL, OTHER, premise=fitted), {"a": good, "b": good}).verdict == REPRODUCED


def test_a_trend_is_of_one_network():
    """The steep network does not lend its slope to the one that goes the other way."""
    rises = Trial("a", "rises", "y", x="x")

    def along(slope, **more):
        return [
            {"seed": seed, "x": x, "y": slope * x + NOISE[seed] * (-1) ** x, "seconds": 1.0, **more}
            for seed in SEEDS
            for x in range(4)
        ]

    both = {"a": [*along(+5.0), *along(-1.0, name="VGG")]}
    found = judge(claim(rises), both)
    assert found.verdict == CONTRADICTED and found.statistic == pytest.approx(-1.0, abs=0.05)
    assert "of 2 trials" in found.note
    assert judge(claim(rises), {"a": [*along(+5.0), *along(+1.0, name="VGG")]}).verdict == REPRODUCED
    one = claim(replace(rises, where={"name": "VGG"}))
    assert "trials" not in judge(one, both).note


def test_a_data_set_that_does_not_train_does_not_hide_another():
    """Tiny ImageNet's networks do not fit in the time; CIFAR-10's do, and speak for themselves."""
    fitted = claim(TRIAL, premise=("train error at most 0.5",))
    ten = paired(train_error=0.0, data="cifar10")
    tiny = paired(+1.0, train_error=0.9, data="tinyimagenet")
    assert judge(fitted, {"a": [*ten, *tiny]}).verdict == REPRODUCED
    assert judge(claim(TRIAL), {"a": [*ten, *tiny]}).verdict == CONTRADICTED, "where there is no premise both count"


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
    alone = [r | {"train_loss": 1.0} for r in slope]
    jumped = [r | {"train_loss": 0.1, "y": -50.0} if i == 1 else r for i, r in enumerate(alone)]
    without = [r for i, r in enumerate(alone) if i != 1]
    of_two = claim(along, premise=("train losses within a factor of 2",))
    assert try_one(of_two, along, jumped).statistic == try_one(of_two, along, without).statistic
    more = [r | {"train_loss": 0.1} if i < 3 else r for i, r in enumerate(alone)]
    assert try_one(of_two, along, more).verdict == UNMET
    diverged = [r | {"train_loss": float("nan")} if i < 3 else r for i, r in enumerate(alone)]
    unsaid = [{k: v for k, v in r.items() if k != "train_loss"} for r in alone]
    for lost in (diverged, unsaid, unsaid[:3] + alone[3:]):
        assert try_one(of_two, along, lost).verdict == UNMET
    halves = [r if r["method"] == "ours" else {k: v for k, v in r.items() if k != "train_loss"} for r in alike]
    assert try_one(of_loss, TRIAL, halves).verdict == UNMET


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


def test_a_tau_is_of_networks_of_similar_loss():
    """Both partners are of the same networks, whose losses may differ between themselves."""

    def taus(factor):
        runs = [
            {
                "config": {"seed": seed},
                "result": {"logdet": float(size), "spectral": float(-size), "frobenius": 1.0, "robustness": 1.0}
                | {"test_error": 0.1 * size + NOISE[seed] * (size == 1), "train_loss": 0.01 * factor ** (size / 3)},
                "seconds": 1.0,
            }
            for seed in SEEDS
            for size in range(4)
        ]
        return rows({"runs": runs})

    better = Trial("a", "larger", "tau", first={"metric": "logdet"}, second={"metric": "spectral"})
    similar = claim(better, premise=("train losses within a factor of 2",))
    assert try_one(similar, better, taus(1.9)).verdict != UNMET
    unlike = try_one(similar, better, taus(2.1))
    assert unlike.verdict == UNMET and unlike.note == "training losses within a factor of 2: 0 of 6 pairs"


def test_levels_of_noise_keep_which_minimum_is_the_global_one():
    half = {"loss": 0.1, "test_loss": 0.2, "noisy_losses": [0.1, 0.3]}
    run = {"config": {"seed": 0}, "seconds": 1.0}
    told = {"found": True, "seed": 0, "sharp": half, "flat": half, "sharp_is_global": True}
    levels = [r for r in rows({"runs": [run | {"result": told}]}) if "noise" in r]
    assert len(levels) == 4 and all(r["sharp_is_global"] is True for r in levels)
    other = [r for r in rows({"runs": [run | {"result": told | {"sharp_is_global": False}}]}) if "noise" in r]
    assert not any(r["sharp_is_global"] for r in other)


def test_a_row_says_whether_it_had_all_images():
    runs = [{"config": {"seed": 0, "limit": limit}, "result": {}, "seconds": 1.0} for limit in (None, 3_000)]
    assert [r["all_images"] for r in rows({"runs": runs})] == [True, False]


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
        (3, 3, UNINFORMATIVE),
    ],
)
def test_a_share_of_runs_is_judged_by_its_interval(hits, runs, word):
    """Five of eleven do not say that fewer than half do."""
    trial = Trial("a", "at_most", "y", bound=1.0, share=0.5)
    own = [{"seed": n, "y": 0.5 + (n >= hits) + 0.001 * n, "seconds": 36.0} for n in range(runs)]
    found = try_one(claim(trial), trial, own)
    assert found.verdict == word and f"{hits} of {runs} runs" in found.note
    assert (found.hours is not None and found.hours > 0) is (word == UNINFORMATIVE)


def _trial(shape="rises", **more):
    return Trial("s", shape, "y", **({"x": "x"} if shape in ALONG else {}), margin=0.1, **more)


def _claims_of(*trials, **more):
    return Claim("c", "W1", "q", "w", trials=trials, **more)


def _drawn(slope, *, noise=0.1, seeds=4, train_error=0.0, draw=0):
    rng = np.random.default_rng(draw)
    return [
        {"x": x, "y": slope * x + seed + noise * rng.standard_normal(), "seed": seed, "seconds": 36.0}
        | {"train_error": train_error, "train_loss": 0.01}
        for seed in range(seeds)
        for x in range(5)
    ]


@pytest.mark.parametrize(
    ("shape", "slope", "verdict"),
    [
        ("rises", 1.0, "reproduced"),
        ("rises", -1.0, "contradicted"),
        ("rises", 0.0, "smaller than claimed"),
        ("falls", -1.0, "reproduced"),
        ("falls", 1.0, "contradicted"),
        ("not_rises", -1.0, "reproduced"),
        ("not_rises", 0.0, "reproduced"),
        ("not_rises", 1.0, "contradicted"),
        ("not_falls", -1.0, "contradicted"),
        ("not_falls", 1.0, "reproduced"),
        ("flat", 0.0, "reproduced"),
        ("flat", 1.0, "contradicted"),
        ("flat", -1.0, "contradicted"),
    ],
)
def test_a_verdict_follows_the_slope(shape, slope, verdict):
    found = judge(_claims_of(_trial(shape)), {"s": _drawn(slope)})
    assert found.verdict == verdict and found.low < found.statistic < found.high


def test_few_noisy_runs_are_not_informative_and_say_what_would_be():
    for shape in ("rises", "not_rises", "flat"):
        found = judge(_claims_of(_trial(shape)), {"s": _drawn(0.0, noise=2.0, seeds=2, draw=1)})
        assert found.verdict == "not informative", shape
        assert 0 < found.power < 0.8 and found.hours > 0 and found.effect == 0.1


def test_the_papers_effect_may_be_excluded():
    one = judge(_claims_of(_trial(effect=1.0)), {"s": _drawn(1.0)})
    half = judge(_claims_of(_trial(effect=1.0)), {"s": _drawn(0.5)})
    none = judge(_claims_of(_trial(effect=1.0)), {"s": _drawn(0.0)})
    fell = judge(_claims_of(_trial("falls", effect=-1.0)), {"s": _drawn(-0.5)})
    assert [v.verdict for v in (one, half, none, fell)] == ["reproduced", *["smaller than claimed"] * 3]


def test_a_premise_that_is_not_met_leaves_no_verdict():
    claim = _claims_of(_trial(), premise=("train error at most 0.01",))
    assert judge(claim, {"s": _drawn(1.0)}).verdict == "reproduced"
    found = judge(claim, {"s": _drawn(1.0, train_error=0.5)})
    assert found.verdict == "premise not met" and "0 of 20" in found.note and found.statistic is None
    apart = [row | {"train_loss": float(row["x"])} for row in _drawn(1.0)]
    assert judge(_claims_of(_trial(), premise=("train losses within 0.1",)), {"s": apart}).verdict == "premise not met"
    long = _claims_of(_trial(), premise=("epochs at least 200",))
    verdicts = [judge(long, {"s": [r | {"epochs": n} for r in _drawn(1.0)]}).verdict for n in (80, 200, 250)]
    assert verdicts == ["premise not met", "reproduced", "reproduced"]


def test_a_comparison_with_runs_of_one_side_only_is_not_tried():
    """Else it counts among the tried, and a clause without any evidence is said to lack power."""
    own = [r | {"on": True} for r in _drawn(1.0)]
    for there, absent in ((True, False), (False, True)):
        trial = _trial("smaller", first={"on": there}, second={"on": absent})
        assert judge(_claims_of(trial), {"s": own}) is None


def test_generally_is_a_share_of_the_runs():
    runs = [r | {"y": 0.0 if i else 0.01} for i, r in enumerate(_drawn(1.0, seeds=20))]  # one of a hundred is not at 0
    verdicts = [judge(_claims_of(_trial("at_most", bound=0.0, **of)), {"s": runs}) for of in ({}, {"share": 0.9})]
    assert [v.verdict for v in verdicts] == ["contradicted", "reproduced"]
    assert [v.statistic for v in verdicts] == [0.01, 0.99] and all("99 of 100 runs" in v.note for v in verdicts)
    half = [r | {"y": 0.01 * (i % 2)} for i, r in enumerate(runs)]
    assert judge(_claims_of(_trial("at_most", bound=0.0, share=0.9)), {"s": half}).verdict == "contradicted"


def test_pairs_are_of_one_seed_and_setting():
    own = [r | {"on": True, "y": r["y"] + 1.0} for r in _drawn(1.0)] + [
        r | {"on": False} for r in _drawn(1.0, noise=0.2)
    ]
    pair = {"first": {"on": True}, "second": {"on": False}, "pair": ("seed", "x")}
    assert judge(_claims_of(_trial("larger", **pair)), {"s": own}).statistic == pytest.approx(1.0, abs=0.2)
    assert judge(_claims_of(_trial("smaller", **pair)), {"s": own}).verdict == "contradicted"
    assert judge(_claims_of(_trial("similar", **pair)), {"s": own}).verdict == "contradicted"
    excess = [r | {"y": r["y"] + (0.5 * r["x"] if r["on"] else 0)} for r in own]
    found = judge(_claims_of(_trial("rises", **pair)), {"s": excess})
    assert found.verdict == "reproduced" and found.statistic == pytest.approx(0.5, abs=0.1)


def test_a_bound_is_of_every_run():
    own = _drawn(1.0)
    most = max(r["y"] for r in own)
    assert judge(_claims_of(_trial("at_most", bound=most)), {"s": own}).verdict == "reproduced"
    found = judge(_claims_of(_trial("at_most", bound=most - 1e-6)), {"s": own})
    assert found.verdict == "contradicted" and found.statistic == most and "19 of 20" in found.note


def test_a_vertex_is_a_fall_and_a_rise():
    own = [r | {"y": r["y"] + abs(r["x"] - 2.0) * 3} for r in _drawn(0.0)]
    assert judge(_claims_of(_trial("v", vertex=2.0)), {"s": own}).verdict == "reproduced"
    turned = [r | {"y": -r["y"]} for r in own]
    assert judge(_claims_of(_trial("v", vertex=2.0)), {"s": turned}).verdict == "contradicted"


def test_all_trials_of_a_claim_must_come_out():
    up, down = _drawn(1.0), [r | {"z": -r["y"]} for r in _drawn(1.0)]
    both = _trial(), replace(_trial(), study="t", y="z")
    assert judge(_claims_of(*both), {"s": up, "t": down}).verdict == "contradicted"
    assert judge(_claims_of(*both), {"s": up}).verdict == "not informative"  # of t there are no runs
    assert judge(_claims_of(*both), {}) is None


def test_what_falls_short_in_one_trial_falls_short():
    """Whatever the others would show; with a penalty for the number of trials."""
    up, none, noisy = _drawn(1.0), _drawn(0.0), _drawn(0.0, noise=5.0, seeds=2, draw=1)
    trials = tuple(replace(_trial(), study=name) for name in "stu")
    found = judge(_claims_of(*trials), {"s": up, "t": none, "u": noisy})
    alone = judge(_claims_of(trials[1]), {"t": none})
    assert found.verdict == alone.verdict == "smaller than claimed" and found.p == pytest.approx(3 * alone.p)
    assert "1 not informative" in found.note


@pytest.mark.parametrize(("seeds", "decided"), [(3, False), (5, False), (6, True)])
def test_pairs_that_are_all_equal_are_a_sign_test(seeds, decided):
    """The noise of PertOPT that no curvature decides is relative noise, to the last bit; there is no interval."""
    own = [
        {"y": 0.5 + seed, "seed": seed, "on": on, "seconds": 36.0, "train_error": 0.0, "train_loss": 0.0}
        for seed in range(seeds)
        for on in (True, False)
    ]
    pair = {"first": {"on": True}, "second": {"on": False}}
    words = {"larger": "smaller than claimed", "smaller": "smaller than claimed", "similar": "reproduced"}
    for shape, word in words.items():
        found = judge(_claims_of(_trial(shape, **pair)), {"s": own})
        assert found.verdict == (word if decided else "not informative"), shape
        assert found.p == 0.5**seeds and found.low is None and found.statistic == 0.0
        assert decided or found.hours > 0
    apart = [r | {"y": r["y"] + (0.25 if r["on"] else 0.0)} for r in own]  # all differ alike: no such test
    assert judge(_claims_of(_trial("larger", **pair)), {"s": apart}).p is None


def test_what_holm_does_not_keep_is_not_informative():
    verdicts = [
        Verdict("a", "reproduced", p=0.001),
        Verdict("b", "contradicted", p=0.03),
        Verdict("c", "not informative", p=0.5),
    ]
    words = [v.verdict for v in correct(verdicts, ["a", "b", "c"])]
    assert words == ["reproduced", "not informative", "not informative"]
    assert [v.verdict for v in correct(verdicts[:2], ["one", "one"])] == ["reproduced", "contradicted"]  # one test
    assert correct([Verdict("a", "reproduced")], ["a"])[0].verdict == "reproduced"  # of every run: no p
    spent = [replace(v, spent=1.0) for v in verdicts]
    assert correct(spent, ["a", "b", "c"])[1].hours == pytest.approx(((2.241 + 0.842) / 2.170) ** 2 - 1, abs=0.01)
