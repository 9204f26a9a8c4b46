"""`flatminima report` for the folder of every command, and `flatminima card`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from flatminima.cli import main
from flatminima.report.card import card, put
from flatminima.report.folder import folder_page
from flatminima.report.ranking import _held_out, _labels

MEASURES = {
    "schema": 1, "samples": 1200, "parameters": 7, "forward_passes": 1.0, "backward_passes": 1.0, "seconds": 0.1,
    "loss": "mse", "data": "ab12", "notes": [], "versions": {"torch": "2"},
    "diagnosis": [{"severity": "problem", "what": "labels | are <not> fitted", "do": "train"}],
    "measures": {
        "fisher_trace": {"value": 2.5, "stderr": 0.125, "undefined": None, "direction": "lower", "kind": "score",
                         "details": {}},
        "margin": {"value": None, "stderr": None, "undefined": "no * classes", "direction": "higher", "kind": "score",
                   "details": {}},
    },
}  # fmt: skip
CERTIFICATE = {
    "statement": "Certificate: error <= 0.0103", "prior": "none", "n": 100, "risk_bound": 0.0103,
    "empirical_risk": 0.006, "cross_entropy_bound": None,
    "assumptions": [{"text": "the loss lies in [0, 1]", "status": "met", "evidence": "0-1 error"}],
}  # fmt: skip
LANDSCAPE = {
    "positions": [-1, 0, 1], "losses": [0.5, None, 0.1], "labels": ["filter 1"], "curvatures": [None],
    "lengths": [2.0], "ball": {"radius": 0.3}, "centre": 0.2, "samples": 50, "loss": "cross_entropy",
}  # fmt: skip
RESULT = {
    "method": "sam", "optimizer": "sgd", "steps": 20, "epochs": 2, "stopped_because": "epochs", "seconds": 3.0,
    "train": {"loss": 0.1, "error": 0.02}, "validation": None, "test": {"loss": 0.3, "error": 0.05},
}  # fmt: skip
RANK = {
    "order": {"places": [{"name": "a.pt", "rank": 1.0}], "measures": ["pacgen"], "agreement": None},
    "networks": [{"checkpoint": "a.pt", "train_error": 0.0, "test_error": 0.1}],
}
DOCUMENTS = {
    "certificate.json": (CERTIFICATE, ["Certificate: error &lt;= 0.0103", "the loss lies in [0, 1]"]),
    "landscape.json": (LANDSCAPE, ["0.5", "lower than the weights themselves"]),
    "result.json": (RESULT, ["sam", "error 5.00%", "0.875"]),
    "rank.json": (RANK, ["a.pt", "order gaps, not errors"]),
    "measures.json": (MEASURES, ["2.5", "no * classes"]),
}


@pytest.fixture
def cli(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["flatminima", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return call


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_folder_has_a_page(cli, tmp_path, name):
    document, expected = DOCUMENTS[name]
    (tmp_path / name).write_text(json.dumps(document))
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "loss": 0.875}\n')
    (tmp_path / "certificate.svg").write_text("<svg></svg>")
    code, err = cli("report", str(tmp_path))
    assert code == 0, err
    page = (tmp_path / "report.html").read_text()
    assert all(text in page for text in expected)
    assert "data:image/svg+xml" in page and "<script" not in page and "https:" not in page


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_that_were_edited_are_refused_in_one_line(cli, tmp_path, name):
    (tmp_path / name).write_text('{"order": 3}')
    code, err = cli("report", str(tmp_path))
    assert code == 2 and "not what this version writes" in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_a_card_holds_values_errors_diagnosis_and_certificate(cli, tmp_path):
    (tmp_path / "measures.json").write_text(json.dumps(MEASURES))
    (tmp_path / "certificate.json").write_text(json.dumps(CERTIFICATE))
    readme = tmp_path / "README.md"
    readme.write_text("---\nlicense: mit\n---\n# My model\n")
    assert cli("card", str(tmp_path), "--output", str(readme))[0] == 0
    text = readme.read_text()
    assert text.startswith("---\nlicense: mit\n---\n# My model\n")
    assert "| fisher\\_trace | 2.5 | 0.12 | lower |" in text
    assert "Certificate: error &lt;= 0.0103" in text and "the loss lies in \\[0, 1\\]" in text
    assert "labels \\| are &lt;not&gt; fitted" in text and "no \\* classes" in text and "1,200 samples" in text
    assert cli("card", str(tmp_path), "--output", str(readme))[0] == 0
    assert readme.read_text() == text  # in place of the section that was there
    assert cli("card", str(tmp_path))[0] == 0 and (tmp_path / "card.md").is_file()


def test_what_a_card_cannot_be_made_from(cli, tmp_path):
    code, err = cli("card", str(tmp_path))
    assert code == 2 and "holds neither measures.json nor certificate.json" in err
    assert cli("card", str(tmp_path / "absent"))[0] == 2
    (tmp_path / "measures.json").write_text('{"measures": 3}')
    code, err = cli("card", str(tmp_path))
    assert code == 2 and len(err.strip().splitlines()) == 1 and not (tmp_path / "card.md").exists()


def test_a_section_replaces_only_itself():
    one, two = card(MEASURES, None), card(None, CERTIFICATE)
    whole = put(one, "before\n") + "after\n"
    changed = put(two, whole)
    assert changed.startswith("before\n") and changed.endswith("after\n")
    assert "fisher" not in changed and "Certificate" in changed and changed.count("<!-- flatminima -->") == 1


def test_a_folder_of_studies_has_its_page_again(cli, tmp_path):
    """The table and index.html of `reproduce`, from the results.json that it left; a run computes nothing."""
    study = Path(__file__).parents[2] / "results" / "studies" / "wang-toy"
    (tmp_path / "wang-toy").mkdir()
    for name in ("results.json", "figure.png"):
        (tmp_path / "wang-toy" / name).write_bytes((study / name).read_bytes())
    code, err = cli("report", str(tmp_path))
    assert code == 0, err
    assert "wang-toy" in (tmp_path / "index.html").read_text() and "index.html" in err


def test_the_folder_of_one_study_has_the_page_of_its_folder(cli, tmp_path):
    """results.json is a name of the demo's too, and the page of that failed on a study's."""
    study = Path(__file__).parents[2] / "results" / "studies" / "wang-toy"
    (tmp_path / "wang-toy").mkdir()
    for name in ("results.json", "figure.png"):
        (tmp_path / "wang-toy" / name).write_bytes((study / name).read_bytes())
    code, err = cli("report", str(tmp_path / "wang-toy"))
    assert code == 0, err
    assert "wang-toy" in (tmp_path / "index.html").read_text()


def test_a_ranking_of_broken_networks_does_not_deny_its_held_out_labels(tmp_path):
    candidate = {"train_error": 0.9, "test_error": 0.9, "left_out": "untrained"}
    assert _held_out({"test_samples": 0, "candidates": [candidate]}) == ""
    assert _held_out({"test_samples": 0, "candidates": [candidate | {"test_error": None}]}) == ", no held-out labels"


def test_numbers_and_their_head_are_set_to_the_right():
    """A head on the left of a wide column of numbers seems to be another column's; a gap is no text."""
    page = folder_page("landscape.json", LANDSCAPE, Path("."))
    assert '<th>axis</th><th class="n">curvature</th><th class="n">length</th>' in page
    assert '<td class="n">–</td>' in page


def test_names_of_candidates_fit_beside_the_figure():
    assert _labels(["runs/a/best.pt", "runs/b/best.pt"]) == ["runs/a", "runs/b"]
    assert _labels(["a/best.pt", "b/last.pt"]) == ["a/best.pt", "b/last.pt"]
    (long,) = _labels(["a" * 30 + "1"])
    assert len(long) == 16 and long.endswith("1") and "…" in long
