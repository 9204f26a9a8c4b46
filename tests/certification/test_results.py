"""The committed certificates: their arithmetic again, their test error below them, and the documents' table of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from flatminima import bounds
from flatminima.certification import Certificate
from flatminima.certification.certificate import ceiled

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
