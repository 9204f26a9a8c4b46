"""The trials of a sentence: each on one data set and network, each kept, and what a larger scale's say of a smaller."""

import numpy as np
import pytest

from flatminima.report.verdicts import disagree, disagreements, here, trial_lines
from flatminima.studies.claims import Claim, Finding, Trial
from flatminima.studies.claims.judge import correct, judge
from flatminima.studies.claims.quantities import _tau, rows
from flatminima.studies.verdict import CONTRADICTED, REPRODUCED, SMALLER, UNINFORMATIVE, UNMET, TrialVerdict, Verdict

SEEDS = range(6)
NOISE = dict(zip(SEEDS, np.random.default_rng(0).normal(0, 0.01, len(SEEDS)), strict=True))
BETTER = Trial(
    "a", "smaller", "test_error", first={"method": "ours"}, second={"method": "plain"}, said="error", margin=0.01
)


def claim(*trials, **more):
    return Claim("c", "N17", "a sentence", "sec. 1", trials=trials, **more)


def paired(shift, **more):
    return [
        {"seed": s, "method": m, "seconds": 1.0, "test_error": shift * (m == "ours") + NOISE[s] * (-1) ** (m == "ours")}
        | more
        for s in SEEDS
        for m in ("ours", "plain")
    ]


def test_data_sets_that_both_groups_name_are_tried_alone():
    """One that gains much hides, in a mean over both, that the other loses."""
    sets = ["cifar100", "tiny"]
    both = Trial(
        "a",
        "smaller",
        "test_error",
        first={"method": "ours", "data": sets},
        second={"method": "plain", "data": sets},
        pair=("data", "seed"),
    )
    own = {"a": [*paired(-1.0, data="cifar100"), *paired(+0.1, data="tiny")]}
    found = judge(claim(both), own)
    assert found.verdict == CONTRADICTED and found.statistic == pytest.approx(0.1, abs=0.02)
    assert [(t.data, t.verdict) for t in found.trials] == [("cifar100", REPRODUCED), ("tiny", CONTRADICTED)]


def test_each_trial_of_a_sentence_is_kept_with_its_network_and_its_number():
    own = {
        "a": [*paired(-1.0, data="cifar10", network={"name": "small_cnn"}), *paired(+1.0, data="cifar10", name="VGG")]
    }
    found = judge(claim(BETTER), own)
    assert [(t.study, t.data, t.network, t.quantity) for t in found.trials] == [
        ("a", "cifar10", "small cnn", "test error"),
        ("a", "cifar10", "VGG", "test error"),
    ]
    assert [t.verdict for t in found.trials] == [REPRODUCED, CONTRADICTED]
    assert all(t.low < t.statistic < t.high and t.p < 0.05 for t in found.trials)
    (kept,) = correct([found], ["a"])
    told = Finding(claim(BETTER), {"cpu": kept}).to_dict()["scales"]["cpu"]
    assert told["trials"][1]["network"] == "VGG" and disagree(told)
    (first, _), (second, came) = trial_lines(told)
    assert first == "cifar10, small cnn, error: difference" and second == "cifar10, VGG, error: difference"
    assert came.startswith("+0.998 (") and came.endswith("contradicted") and "p " in came
    unmet = judge(claim(BETTER, premise=("train error at most 0",)), {"a": paired(-1.0, train_error=0.5)})
    assert [(t.verdict, t.note) for t in unmet.trials] == [(UNMET, "train error at most 0: 0 of 12 runs")]


def test_trials_of_the_same_words_are_told_apart_by_their_quantities():
    parts = [TrialVerdict("a", "d", "n", q, "norm: difference", REPRODUCED, 1.0, 0.5, 1.5, 0.01) for q in ("l1", "l2")]
    told = Verdict("q", REPRODUCED, trials=tuple(parts)).to_dict()
    assert [name for name, _ in trial_lines(told)] == ["d, n, norm, l1: difference", "d, n, norm, l2: difference"]
    assert not disagree(told) and trial_lines(Verdict("q", REPRODUCED, trials=tuple(parts[:1])).to_dict()) == []


def test_a_tau_is_of_one_data_set():
    metrics = dict.fromkeys(("logdet", "spectral", "frobenius", "robustness"))
    runs = [
        {
            "config": {"seed": 0, "data": data},
            "result": metrics | {"logdet": sign * size, "test_error": 0.1 * size},
            "seconds": 1.0,
        }
        for data, sign in (("one", 1.0), ("two", -1.0))
        for size in range(3)
    ]
    taus = {r["data"]: r["tau"] for r in rows({"runs": runs}) if r.get("metric") == "logdet"}
    assert taus == {"one": 1.0, "two": -1.0}


def test_pairs_of_a_tau_that_are_within_their_noise_are_left_out():
    """Of three networks two differ by less than what their draws of the noise say; those go the other way."""

    def taus(stderr):
        kls, errors = (10.0, 11.0, 30.0), (0.2, 0.1, 0.3)
        runs = [
            {
                "config": {"seed": 0},
                "result": {"confusion": 1, "sharpness": 1.0, "l2": 1.0, "test_error": error}
                | {"curve": [{"sharpness": s, "kl": kl * (0.05 / s), "stderr": stderr} for s in (0.04, 0.06)]},
                "seconds": 1.0,
            }
            for kl, error in zip(kls, errors, strict=True)
        ]
        return {r["metric"]: r["tau"] for r in rows({"runs": runs}) if "tau" in r}["ln_kl_at_sharpness"]

    assert taus(0.0) == pytest.approx(1 / 3) and taus(0.001) == pytest.approx(1 / 3)
    assert taus(0.005) == 1.0, "about 0.07 of ln KL each, and ln 1.1 is within two errors of the difference"
    assert taus(0.019) is not None


def test_a_share_is_told_by_the_share():
    """And has a p, for Holm: the binomial one of its interval, so that both say the same."""
    most = Trial("a", "at_least", "minima", bound=2, share=0.5, said="minima of a data set")
    for hits, word in ((16, UNINFORMATIVE), (4, CONTRADICTED), (26, REPRODUCED)):
        own = [{"seed": i, "minima": 2.0 + 4 * (i < 3) if i < hits else 0.0, "seconds": 1.0} for i in range(30)]
        found = judge(claim(most), {"a": own})
        assert found.verdict == word and found.statistic == pytest.approx(hits / 30)
        assert found.low < hits / 30 < found.high and (found.p < 0.05) is (word != UNINFORMATIVE)
        assert here(found.to_dict()).startswith(f"minima of a data set, at least 2: share of runs {hits / 30:.3g} (")
        assert found.note == f"{hits} of 30 runs, claimed of most; worst run 0"
    (kept, *_) = correct([judge(claim(most), {"a": own}), *[Verdict("q", "", p=1.0)] * 1_000], range(1_001))
    assert kept.verdict == UNINFORMATIVE, "among so many a share is chance too"


def part(word, statistic=1.0, *, network="", quantity="y", measured="y: slope"):
    return TrialVerdict("s", "", network, quantity, measured, word, statistic, statistic - 1, statistic + 1)


def of(word, *parts):
    return Verdict("q", word, trials=parts)


@pytest.mark.parametrize("word", [CONTRADICTED, SMALLER])
def test_a_smaller_scale_does_not_speak_where_a_trial_of_the_larger_comes_out_against_it(word):
    """The CNN alone was tried on the smaller scale, and a VGG on the larger goes the other way."""
    small = of(REPRODUCED, part(REPRODUCED, network="CNN"))
    large = of(UNINFORMATIVE, part(REPRODUCED, network="CNN"), part(word, network="VGG", quantity="z"))
    assert Finding(claim(BETTER), {"half": large, "cpu": small}).scale == "half"
    undecided = of(UNINFORMATIVE, part(REPRODUCED, network="CNN"), part(UNINFORMATIVE, 0.5, network="VGG"))
    assert Finding(claim(BETTER), {"half": undecided, "cpu": small}).scale == "cpu"
    away = of(UNINFORMATIVE, part(REPRODUCED, network="CNN"), part(UNINFORMATIVE, -0.5, network="VGG"))
    assert Finding(claim(BETTER), {"half": away, "cpu": small}).scale == "half", "it leaves out the smaller's 1.0"


def test_a_contradiction_does_not_speak_where_the_same_trial_of_the_larger_comes_out():
    small = of(CONTRADICTED, part(REPRODUCED), part(CONTRADICTED, -1.0, quantity="z"))
    came = of(UNINFORMATIVE, part(UNINFORMATIVE), part(REPRODUCED, 1.0, quantity="z"))
    assert Finding(claim(BETTER), {"half": came, "cpu": small}).scale == "half"
    less = of(SMALLER, part(REPRODUCED), part(SMALLER, 0.3, quantity="z"))
    assert Finding(claim(BETTER), {"half": came, "cpu": less}).scale == "half", "the same way, and large enough"
    other = of(UNINFORMATIVE, part(REPRODUCED), part(UNINFORMATIVE, -0.5, quantity="z"))
    assert Finding(claim(BETTER), {"half": other, "cpu": small}).scale == "cpu", "another of its trials did"


def test_scales_that_disagree_are_told_with_their_words():
    one, two = (Verdict("q", w, statistic=s, low=s - 1, high=s + 1) for w, s in ((REPRODUCED, 2.0), (SMALLER, 0.5)))
    apart = Finding(claim(BETTER), {"half": one, "cpu": two}).to_dict()
    alike = Finding(claim(BETTER), {"half": one, "cpu": one}).to_dict()
    ((found, said),) = disagreements([apart, alike])
    assert found is apart
    assert said == "half reproduced, +2 (+1 to +3); cpu smaller than claimed, +0.5 (-0.5 to +1.5). half counts"


def test_equal_values_count_neither_way_beside_pairs_within_their_noise() -> None:
    """Two equal values without noise counted as a pair in order, where another pair was left out for its noise."""
    points = [(1.0, 0.0, 0.1), (1.0, 0.0, 0.2), (5.0, 1.0, 0.3), (5.1, 1.0, 0.4)]
    assert _tau(points) == pytest.approx(4 / 5)
