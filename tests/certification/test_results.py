"""The committed certificates: their arithmetic again, their test error below them, and the documents' table of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flatminima import bounds
from flatminima.certification import Certificate

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "results" / "certificates").glob("mnist_*.json"))
PAGE = (ROOT / "docs" / "certificates.md").read_text(encoding="utf-8")
# the targets: a certificate at most so large
MUST = {
    "mnist_fcn": 0.030,
    "mnist_cnn": 0.0155,
    "mnist_cnn_all_layers": 0.0155,
    "mnist_data_free": 0.40,
    "mnist_fcn_data_free": 0.40,
}


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_a_committed_certificate_follows_from_its_numbers(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    c = Certificate.from_dict(document)
    assert c.is_certificate and c.delta + c.delta_mc <= 0.035 + 1e-12
    delta, delta_mc = c.delta / c.evaluations, c.delta_mc / c.evaluations
    bound = bounds.mc_certificate(c.empirical_risk, c.draws, delta_mc, c.kl + c.penalty, c.n, delta)
    assert c.risk_bound == pytest.approx(bound, rel=1e-9)
    assert c.details["test"]["error"] < c.risk_bound <= MUST[path.stem]
    assert document["command"].startswith("flatminima certify --model flatminima.models:")
    assert "DATA/mnist" in document["command"] and document["source"]["data"] == "DATA/mnist"


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_the_documents_table_has_its_numbers(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    (row,) = [line for line in PAGE.splitlines() if f"results/certificates/{path.name}" in line]
    cells = [cell.strip(" *") for cell in row.split("|")]
    for value in (document["risk_bound"], document["holdout_bound"], document["details"]["test"]["error"]):
        assert f"{value:.4f}" in cells
    assert f"{document['kl'] + document['penalty']:.1f}" in cells


def test_every_target_has_its_result() -> None:
    assert {path.stem for path in RESULTS} == set(MUST)
