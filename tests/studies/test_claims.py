"""The registry of claims: quotations as printed, a closed vocabulary, verdicts that follow the numbers."""

import json
import math
import os
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flatminima.cli.app import app
from flatminima.errors import UnknownName, UsageError
from flatminima.studies import STUDIES, _jia_table
from flatminima.studies.claims import Claim, Finding, Trial, claims, evaluate, of_study, papers
from flatminima.studies.claims.checks import CHECKS
from flatminima.studies.claims.quantities import fits, rows, value
from flatminima.studies.claims.registry import ALONG, BOUNDED, PAIRED, PREMISES, _claim
from flatminima.studies.result_files import documents
from flatminima.studies.verdict import Verdict

ROOT = Path(__file__).parents[2]
TEXTS = Path(os.environ.get("FLATMINIMA_PAPERS", ROOT.parent / "shared" / "papers"))
RESULTS = ROOT / "results" / "studies"


def _plain(text):
    """Letters and digits alone: line breaks, hyphens, ligatures and quotation marks differ between prints."""
    text = re.sub(r"\(cid:(\d+)\)", lambda m: "l" if m[1] == "96" else "", text)
    text = text.replace("\u21b5", "ff").replace("\ufffd", "ffi")  # as one extraction has these ligatures
    return re.sub("[^a-z0-9]", "", unicodedata.normalize("NFKC", text).lower())


@pytest.mark.parametrize("key", papers())
def test_every_quotation_is_in_the_paper(key):
    paper = papers()[key]
    assert all(len(_plain(entry.quote)) >= 7 for entry in (*paper.claims, *paper.settings)), "a claim has no quotation"
    found = sorted(TEXTS.glob(f"{paper.text}*")) if TEXTS.is_dir() else []
    if not found:
        pytest.skip(f"the text of {key} is not here; FLATMINIMA_PAPERS names its folder")
    text = _plain(found[0].read_text(encoding="utf-8"))
    assert [e.id for e in (*paper.claims, *paper.settings) if _plain(e.quote) not in text] == []


def test_a_wrong_word_is_no_quotation():
    """What the comparison forgives is print, not words."""
    assert _plain("scale-\nsensitive: (cid:96)2 \ufb01t") == _plain("Scale sensitive \u21132 fit")
    assert _plain("sharpness grows") not in _plain("sharpness has a poor behavior")


def test_every_document_has_its_claims_and_most_are_tried():
    by_paper = {key: len(found.claims) for key, found in papers().items()}
    assert by_paper["W1"] >= 70 and by_paper["N17"] >= 75 and by_paper["J20"] >= 65 and sum(by_paper.values()) >= 228
    decidable = [c for c in claims() if c.kind != "stated"]
    assert sum(bool(c.trials or c.check) for c in decidable) >= 0.85 * len(decidable)
    assert all(c.needs for c in decidable if not c.trials and not c.check), "what it would take is not said"


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.id)
def test_a_claim_has_all_that_its_shape_needs(claim):
    assert not (claim.trials and claim.check) and (claim.check is None or claim.check in CHECKS)
    assert not (claim.kind == "stated" and (claim.trials or claim.check))
    for trial in claim.trials:
        assert trial.study in STUDIES
        assert (trial.x is not None) is (trial.shape in ALONG)
        assert (trial.bound is not None) is (trial.shape in BOUNDED)
        assert bool(trial.first) is bool(trial.second)
        assert trial.shape not in PAIRED or trial.first
        assert trial.shape in (*BOUNDED, "v") or trial.margin is not None
        assert trial.shape in (*BOUNDED, "v") or claim.why or claim.kind == "cited"


def test_the_vocabulary_is_closed():
    good = {
        "id": "x",
        "quote": "q",
        "where": "w",
        "trial": [{"study": "s", "shape": "rises", "y": ["a", "b"], "x": "c"}],
    }
    assert [t.y for t in _claim("W1", json.loads(json.dumps(good))).trials] == ["a", "b"]
    for wrong in (
        {"kind": "rumour"},
        {"premise": ["weather at most 3"]},
        {"trial": [{"study": "s", "shape": "wiggles", "y": "a"}]},
        {"trial": [{"study": "s", "shape": "rises", "y": "a", "colour": 1}]},
        {"verdict": "reproduced"},
    ):
        with pytest.raises(UsageError, match="x: "):
            _claim("W1", json.loads(json.dumps(good | wrong)))
    assert all(p.rpartition(" ")[0] in PREMISES for c in claims() for p in c.premise)


_CONTRADICTED = {
    "sigma_scales",
    "principal_submatrix",
    "spectral_radius",
    "truncation_radius",
    "truncated_sigma",
    "cifar_sizes",
    "batch_norm_rescaled",
    "ten_million",
    "frobenius_identity",
    "batch_norm_isolated",
    "smallest_dominate",
    "locally_quadratic",
    "theorem_1_covers",
    "gram_is_fisher",
    "subset_eigenvalues",
    "labels_close",
    "path_is_minimum",
    "weight_scaled_kl",
    "appendix_kl",
    "linear_sharpness",
    "changed_activations",
    "simplified_theorem",
    "pacgen_from_bound",
    "truncated_bound",
    "printed_grid_constant",
    "grid_index",
    "blog_sigma",
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_calculation_decides_its_sentence(name):
    holds, said = CHECKS[name]()
    expected = (
        None if name in ("table_1_parameters", "table_1_densenet", "table_2_aligns") else name not in _CONTRADICTED
    )
    assert holds is expected, said
    assert said and any(c.check == name for c in claims())


def test_quantities_are_short_expressions():
    row = {"a": 8.0, "b": 2, "c": None, "d": "text", "e": -1.0}
    found = [
        value(e, row) for e in ("log2 a", "a - b / b", "a + ln b", "abs e", "ln e", "c", "d", "missing", "a / c", "3")
    ]
    assert found == [3.0, 7.0, pytest.approx(8.693, abs=1e-3), 1.0, None, None, None, None, None, 3.0]
    with pytest.raises(UsageError, match="no function 'sin'"):
        value("sin a", row)
    assert fits(row, {"a": ">= 8", "b": [1, 2]}) and not fits(row, {"a": "<= 7"}) and not fits(row, {"missing": 1})


def test_a_capacity_over_another_margin_is_that_of_the_definition():
    """ln(norm^2 / margin^2): from the margin of 5 %, that it was divided by, to another."""
    norm, margins = 3.0, {"0.05": 0.5, "0.01": 0.2, "mean": 2.0}
    row = {"l2": 2 * math.log(norm / margins["0.05"]), "spectral": None, "seed": 0}
    row |= {f"ln_margin_{name}": math.log(value) for name, value in margins.items()} | {"ln_margin_0.001": None}
    (found,) = rows({"runs": [{"config": {}, "result": row, "seconds": 1.0}]})
    for name, margin in margins.items():
        assert found[f"l2_at_{name}"] == pytest.approx(2 * math.log(norm / margin))
    assert "l2_at_0.001" not in found and "spectral_at_0.01" not in found


def test_a_run_that_its_limit_of_epochs_ended_has_not_reached_its_loss():
    def one(train_loss, **more):
        return {"config": {"target_loss": 0.01}, "result": {"seed": 0, "train_loss": train_loss} | more, "seconds": 1.0}

    found = [r.get("reached") for r in rows({"runs": [one(0.009), one(0.01), one(0.009, reached=False)]})]
    assert found == [True, False, False], "what a study itself says of it stays"
    free = {"config": {"target_loss": None}, "result": {"seed": 0, "train_loss": 1.0}, "seconds": 1.0}
    assert "reached" not in rows({"runs": [free]})[0]


def test_that_networks_fit_is_said_of_those_whose_training_ended_by_itself():
    for claim in claims():
        for trial in claim.trials:
            if (trial.study, trial.y) == ("neyshabur-random-labels", "train_error") and trial.shape == "at_most":
                assert trial.where["reached"] is True, claim.id


def test_a_core_hour_is_the_time_of_a_core():
    """Not of a clock, which a machine shared by others lets run."""
    run = {"config": {}, "result": {"seed": 0}, "seconds": 900.0, "core_seconds": 30.0}
    assert rows({"runs": [run]})[0]["seconds"] == 30.0


def test_the_regularizer_is_chosen_by_validation_among_all_its_settings():
    settings = [(10.0, 8, 5.0), (50.0, 8, 5.0), (10.0, 4, 5.0), (10.0, 8, 1.0), (10.0, 8, None)]
    errors = [0.3, 0.4, 0.2, 0.3, 0.1]  # the last, without clipping, is none that the paper chooses from
    runs = [
        {
            "config": {"data": "d", "name": "CNN", "seed": seed},
            "result": {"beta": beta, "sub_batches": m, "max_norm": clip, "validation_error": error + 0.01 * seed},
            "seconds": 1.0,
        }
        for seed in range(2)
        for (beta, m, clip), error in zip(settings, errors, strict=True)
    ]
    found = rows({"runs": runs})
    assert [r["sub_batches"] for r in found if r.get("chosen")] == [4, 4]
    assert [r["clipped"] for r in found[:5]] == [True] * 4 + [False]
    ours, plain = _jia_table.regularized([r["result"] | r["config"] | {"beta": 0.0} for r in runs[:1]] + found)
    assert [r["sub_batches"] for r in ours] == [4] and len(plain) == 1
    older = {"config": {"data": "d", "name": "CNN", "seed": 2, "beta": 10.0}, "result": {"validation_error": 0.2}}
    newer = [run | {"result": run["result"] | {"sub_batches": 8, "max_norm": 5.0}} for run in runs[:1]]
    assert [r["chosen"] for r in rows({"runs": [older | {"seconds": 1.0}, *newer]})] == [True, True], "one setting"
    both = [run["result"] | run["config"] | {"beta": 10.0} for run in (older, *newer)]
    assert len(_jia_table.regularized([*both, *(r | {"beta": 0.0} for r in both)])[0]) == 2


def test_bicriteria_curves_are_read_without_points_within_their_noise():
    curve = [{"sharpness": s, "kl": 1 / s, "stderr": 1e-4} for s in (0.5, 0.02, 0.01)]
    run = {"config": {}, "result": {"seed": 0, "curve": curve}, "seconds": 1.0}
    (row,) = rows({"runs": [run]})
    assert row["ln_kl_at_sharpness"] == pytest.approx(np.log(20))
    noisy = [p | {"stderr": 0.02} for p in curve]
    (row,) = rows({"runs": [run | {"result": {"seed": 0, "curve": noisy}}]})
    assert row["ln_kl_at_sharpness"] is None


def test_the_committed_results_are_readable_and_judged():
    found = evaluate(documents(RESULTS))
    assert len(found) == len(claims()) and len({f.claim.id for f in found}) == len(found)
    words = {f.claim.id: f.word for f in found}
    assert words["n-conf-sharp-poor"] == "reproduced"  # that sharpness does not predict
    assert words["n-always-higher"] == "contradicted" and words["w1-same-as-keskar"] == "contradicted"
    assert words["n-width-l2path"] == "reproduced" and words["w1-union-bound"] == "contradicted"
    assert words["j-fig2-ours"] == "reproduced" and words["n-path-sgd"] == "not tried"
    assert words["w1-dropout-01"] == "premise not met"
    for finding in found:
        for verdict in finding.verdicts.values():
            if verdict.low is not None and verdict.high is not None:  # else all pairs are equal: a sign test
                assert verdict.low <= verdict.statistic <= verdict.high, finding.claim.id
            bounded = any(t.shape in BOUNDED for t in finding.claim.trials)
            assert verdict.low is None or verdict.low < verdict.high or bounded, finding.claim.id


def test_what_is_not_decided_says_how_many_core_hours_would_decide_it():
    for finding in evaluate(documents(RESULTS)):
        if finding.word in ("not informative", "premise not met"):
            hours = finding.verdict.hours is not None and finding.verdict.hours > 0
            assert hours or re.search(r"(core-hours?|hours of an accelerator)", finding.claim.needs), finding.claim.id


def test_smoke_has_no_verdict():
    runs = [{"config": {"scheme": s, "seed": 0}, "result": {}, "seconds": 1.0} for s in ("none", "flip")]
    found = of_study({"id": "jia-augmentation", "scale": "smoke", "runs": runs})
    assert found and all(v.verdict == "" and v.statistic is None for v in found)
    assert of_study({"id": "my-study", "scale": "cpu", "runs": []}) == []


def test_the_largest_scale_that_decides_is_shown():
    undecided, decided = Verdict("q", "not informative"), Verdict("q", "reproduced")
    claim = Claim("c", "W1", "q", "w", trials=(Trial("s", "rises", "y", x="x"),))
    assert Finding(claim, {"paper": undecided, "cpu": decided}).scale == "cpu"
    assert Finding(claim, {"paper": decided, "cpu": decided}).scale == "paper"
    assert Finding(claim, {"paper": undecided, "cpu": undecided}).scale == "paper"
    assert Finding(claim, {}).word == "not tried" and Finding(replace(claim, kind="stated"), {}).word == "stated"


def test_a_smaller_scale_does_not_speak_where_the_larger_goes_the_other_way():
    claim = Claim("c", "W1", "q", "w", trials=(Trial("s", "rises", "y", x="x"),))
    small = Verdict("q", "contradicted", measured="y: slope", statistic=-5.0, low=-6.0, high=-4.0)
    large = Verdict("q", "not informative", measured="y: slope", statistic=2.0, low=-1.0, high=5.0)
    assert Finding(claim, {"half": large, "cpu": small}).scale == "half"
    assert Finding(claim, {"half": replace(large, statistic=-1.0), "cpu": small}).scale == "cpu", "the same way"
    assert Finding(claim, {"half": replace(large, low=-7.0), "cpu": small}).scale == "cpu", "it does not leave it out"
    assert Finding(claim, {"half": replace(large, measured="z: slope"), "cpu": small}).scale == "cpu"
    worst = [replace(v, measured="y: worst run") for v in (large, small)]
    assert Finding(claim, {"half": worst[0], "cpu": worst[1]}).scale == "cpu", "a range is no interval"


def test_runs_that_meet_no_premise_do_not_hide_a_smaller_scale_that_was_tried():
    unmet, undecided = Verdict("q", "premise not met"), Verdict("q", "not informative")
    claim = Claim("c", "W1", "q", "w", trials=(Trial("s", "rises", "y", x="x"),))
    assert Finding(claim, {"half": unmet, "cpu": undecided}).scale == "cpu"
    assert Finding(claim, {"half": unmet, "cpu": unmet}).scale == "half"


def test_the_command_lists_them():
    def call(*words):
        result = CliRunner().invoke(app, ["reproduce", "--claims", "--output", str(RESULTS), *words])
        assert result.exit_code == 0, result.output
        return result.stdout

    listed = json.loads(call("--paper", "J20", "--json"))
    assert {c["paper"] for c in listed} == {"J20"} and all(c["quote"] and c["verdict"] for c in listed)
    of_one = json.loads(call("neyshabur-width", "--json"))
    assert {"n-width-l2-l1-rise"} <= {c["id"] for c in of_one} <= {c.id for c in claims(study="neyshabur-width")}
    table = call("--paper", "WB")
    assert "wb-learning-rate" in table and max(map(len, table.splitlines())) <= 80
    wrong = CliRunner().invoke(app, ["reproduce", "--claims", "--paper", "W3"])
    assert isinstance(wrong.exception, UnknownName)
    assert isinstance(CliRunner().invoke(app, ["reproduce", "--all", "--paper", "W1"]).exception, UsageError)


_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")
_ROUNDING = 1e-9  # what a calculation leaves of zero; it differs between processors


def test_the_page_of_results_is_what_the_command_writes():
    """Word for word, and number for number but for a processor's rounding in the calculations."""
    result = CliRunner().invoke(app, ["reproduce", "--claims", "--markdown", "--output", str(RESULTS)])
    committed = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert result.exit_code == 0 and _NUMBER.sub("#", committed) == _NUMBER.sub("#", result.stdout)
    old, new = ([float(n.replace(",", "")) for n in _NUMBER.findall(text)] for text in (committed, result.stdout))
    apart = [(a, b) for a, b in zip(old, new, strict=True) if abs(a - b) > 0.05 * abs(a) + _ROUNDING]
    assert apart == []
