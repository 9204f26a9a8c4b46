"""The committed certificates: their arithmetic again, their test error below them, and the documents' table of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from flatminima import bounds
from flatminima.certification import Certificate
from flatminima.certification.pipeline import contradiction
from flatminima.display import ceiled, ceiled_digits, ceiled_percent, probability, remaining

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "results" / "certificates"
RESULTS = sorted(FOLDER.glob("mnist_*.json"))
PAGE = (ROOT / "docs" / "certificates.md").read_text(encoding="utf-8")
# the targets: a certificate at most so large
MUST = {
    "mnist_fcn": 0.030,
    "mnist_cnn": 0.0155,
    "mnist_cnn_all_layers": 0.0155,
    "mnist_data_free": 0.40,
    "mnist_fcn_data_free": 0.40,
}
ROOM = 8_000_000  # bytes of all weights together
# as first committed, 8 evaluations: error, draws, KL + penalty, n, and the bound (delta 0.025 and 0.01)
FIRST = {
    "mnist_fcn": (0.011903333333333333, 300_000, 0.16099237050987622, 30_000, 0.016031825578403082),
    "mnist_cnn": (0.006837666666666666, 3_000_000, 0.007534294959260638, 30_000, 0.009596944696440457),
    "mnist_cnn_all_layers": (0.006806666666666667, 150_000, 0.09427006236090398, 30_000, 0.010303179724749676),
    "mnist_data_free": (0.017576666666666668, 600_000, 1450.0051865, 60_000, 0.0644631136627346),
    "mnist_fcn_data_free": (0.08945333333333333, 600_000, 2262.515116827, 60_000, 0.1898703786988098),
}


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_a_committed_certificate_follows_from_its_numbers(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    c = Certificate.from_dict(document)
    assert c.standing == "certificate" and (c.delta, c.delta_mc, c.evaluations) == (0.035, 0.01, 1000)
    delta, delta_mc = (c.delta - c.delta_mc) / c.evaluations, c.delta_mc / c.evaluations
    bound = bounds.mc_certificate(c.empirical_risk, c.draws, delta_mc, c.kl + c.penalty, c.n, delta)
    assert c.risk_bound == pytest.approx(bound, rel=1e-9)
    assert sum(c.terms().values()) == pytest.approx(c.risk_bound, rel=1e-12)
    assert c.details["test"]["error"] < c.risk_bound <= MUST[path.stem]
    assert document["command"].startswith("flatminima certify --model flatminima.models:")
    assert "DATA/mnist" in document["command"] and document["source"]["data"] == "DATA/mnist"


@pytest.mark.parametrize("name", FIRST)
def test_the_first_committed_numbers_follow_from_the_same_pipeline(name: str) -> None:
    """Where the rule did not change, nothing did: 8 evaluations give the numbers of then."""
    error, draws, nats, n, then = FIRST[name]
    assert float(bounds.mc_certificate(error, draws, 0.01 / 8, nats, n, 0.025 / 8)) == pytest.approx(then, rel=1e-9)


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_the_weights_are_those_of_the_record(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    weights = path.with_name(document["weights"])
    assert weights.name == f"{path.stem}.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == document["sha256"]


def test_all_weights_together_are_small() -> None:
    assert sum(p.stat().st_size for p in FOLDER.glob("*.safetensors")) <= ROOM


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_the_documents_table_has_its_numbers(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    (row,) = [row for row in rows if f"results/certificates/{path.name}" in row]
    cells = [cell.strip(" *") for cell in row.split("|")]
    for value in (ceiled(document["risk_bound"]), ceiled(document["holdout_bound"])):
        assert value in cells
    assert f"{document['details']['test']['error']:.4f}" in cells
    assert f"{document['kl'] + document['penalty']:.1f}" in cells


def test_every_target_has_its_result() -> None:
    assert {path.stem for path in RESULTS} == set(MUST)


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_a_committed_certificate_does_not_contradict_itself(path: Path) -> None:
    """And an edited one does: each bound, and what each is made from."""
    c = Certificate.from_dict(json.loads(path.read_text(encoding="utf-8")))
    assert contradiction(c) == ""
    for name in ("risk_bound", "monte_carlo_upper", "cross_entropy_bound", "holdout_bound", "empirical_risk"):
        assert contradiction(replace(c, **{name: 0.99 * getattr(c, name)})), name
    assert contradiction(replace(c, kl=c.kl + 0.1))


def test_what_is_printed_claims_no_more_than_what_holds() -> None:
    """Bounds up and probabilities down, by exact fractions; neither by more than its last digit."""
    rng = np.random.default_rng(0)
    for bound in (
        *rng.random(2_000),
        *10 ** -rng.uniform(0, 12, 500),
        0.0,
        1.0,
        0.0161,
        0.7122,
        1 - 2**-53,
        0.25 + 2**-50,
    ):
        exact = Fraction(repr(float(bound)))
        assert 0 <= Fraction(ceiled(bound)) - exact < Fraction(1, 10_000)
        assert 0 <= Fraction(ceiled_percent(bound)[:-1]) - 100 * exact < Fraction(1, 10)
    for delta in (
        *rng.random(500),
        *10 ** -rng.uniform(0, 30, 2_000),
        0.05,
        0.035,
        1e-6,
        1e-7,
        1e-17,
        1e-300,
        1 - 2**-53,
    ):
        exact, (whole, _, less) = Fraction(repr(float(delta))), probability(delta).partition(" - ")
        shown = Fraction(whole) - Fraction(less or "0")
        assert 0 <= (1 - shown) - exact <= max(Fraction(1, 10**6) if delta >= 1e-4 else exact / 100, 0)
        assert 0 <= (1 - Fraction(remaining(delta, 4))) - exact < Fraction(1, 10_000)
        assert 0 <= Fraction(repr(ceiled_digits(delta))) - exact <= exact / 500
    assert [probability(d) for d in (0.05, 0.035, 1e-6, 1e-8)] == ["0.95", "0.965", "0.999999", "1 - 1e-08"]


def test_the_statement_says_no_probability_that_is_rounded_up() -> None:
    c = Certificate.from_dict(json.loads(RESULTS[0].read_text(encoding="utf-8")))
    assert "(probability 1 - 1e-08)" in replace(c, delta=1e-8, delta_mc=1e-9).statement
    assert "probability 0.95; 0.8499 with all others" in replace(c, delta=0.05, together=0.15001).statement
