"""`flatminima report` for the folder of every command, and `flatminima card`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flatminima.certification import Assumption, Certificate
from flatminima.certification.certificate import CONDITIONS
from flatminima.certification.pipeline import arithmetic
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
COUNTS = Certificate(
    risk_bound=1.0, empirical_risk=0.006, monte_carlo_upper=1.0, kl=0.5, sigma=0.01, n=30_000, draws=300_000,
    delta=1e-8, delta_mc=2e-9, candidates=1, evaluations=8, holdout_bound=0.0101, holdout_network="the mean network",
    prior="none", constant_error=0.5, assumptions=tuple(Assumption(text, True, "0-1 error") for text in CONDITIONS),
)  # fmt: skip
CERTIFICATE = replace(COUNTS, **arithmetic(COUNTS)).to_dict()
BOUND = CERTIFICATE["risk_bound"]
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
    "certificate.json": (CERTIFICATE, ["Certificate: error &lt;= 0.0112", "the loss lies in [0, 1]"]),
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
    (tmp_path / "landscape.svg").write_text("<svg></svg>")
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
    assert "Certificate: error &lt;= 0.0112" in text and "the loss lies in \\[0, 1\\]" in text
    assert "labels \\| are &lt;not&gt; fitted" in text and "no \\* classes" in text and "1,200 samples" in text
    assert cli("card", str(tmp_path), "--output", str(readme))[0] == 0
    assert readme.read_text() == text  # in place of the section that was there
    assert cli("card", str(tmp_path))[0] == 0 and (tmp_path / "card.md").is_file()


WRITTEN_IN = "Certificate: error <= 0.0001 (probability 0.999999), fresh weights per prediction"


@pytest.mark.parametrize(("command", "file"), [("card", "card.md"), ("report", "report.html")])
def test_a_verdict_that_was_written_in_is_not_printed(cli, tmp_path, command, file):
    """Statement and standing are derived from the counts; a bound that these do not give is one line and exit 2."""
    record, page = tmp_path / "certificate.json", tmp_path / file
    failed = [CERTIFICATE["assumptions"][0] | {"holds": False}, *CERTIFICATE["assumptions"][1:]]
    record.write_text(json.dumps(CERTIFICATE | {"statement": WRITTEN_IN, "assumptions": failed}))
    assert cli(command, str(tmp_path))[0] == 0
    text = page.read_text()
    assert "0.0001" not in text and "Score, not a certificate: fails: the loss lies in" in text
    assert "certify --verify recomputes" in text
    page.unlink()
    for name in ("risk_bound", "monte_carlo_upper", "holdout_bound", "kl", "n", "delta", "assumptions", "together"):
        value = {"n": 90_000, "delta": 0.5, "together": "x", "assumptions": [{"holds": "yes"}]}.get(name, 1e-4)
        record.write_text(json.dumps(CERTIFICATE | {"statement": WRITTEN_IN, name: value}))
        code, err = cli(command, str(tmp_path))
        assert code == 2 and not page.exists(), name
        assert len(err.strip().splitlines()) == 1 and ("its own counts give" in err or "is not what this" in err), err


def test_a_figure_that_was_edited_is_drawn_again_or_left_out(cli, tmp_path):
    """In the page of a certificate, and in that of the measures that lie beside it."""
    plot, record = tmp_path / "certificate.svg", tmp_path / "certificate.json"
    (tmp_path / "measures.json").write_text(json.dumps(MEASURES))
    plot.write_text("<svg>error <= 0.0001</svg>")
    assert cli("report", str(tmp_path))[0] == 0
    assert "data:image/svg+xml" not in (tmp_path / "report.html").read_text()  # no record stands behind it
    record.write_text(json.dumps(CERTIFICATE))
    assert cli("report", str(tmp_path))[0] == 0
    assert "0.0001" not in plot.read_text() and CERTIFICATE["statement"][:24].split("<=")[0] in plot.read_text()
    assert "data:image/svg+xml" in (tmp_path / "report.html").read_text()
    record.write_text(json.dumps(CERTIFICATE | {"risk_bound": 1e-4}))
    code, err = cli("report", str(tmp_path))
    assert code == 2 and f"risk_bound is 0.0001, its own counts give {BOUND:.8g}" in err


def test_bounds_are_rounded_up_on_the_page_of_a_certificate():
    """To four digits it would be read as 0.01114, and as 0.0111."""
    page = folder_page(
        "certificate.json", CERTIFICATE | {"monte_carlo_upper": 0.0070301, "delta": 0.0500001}, Path(".")
    )
    assert '<td class="n">0.0112</td>' in page and 0.0111 < BOUND < 0.01115
    assert '<td class="n">0.0071</td>' in page and '<td class="n">0.05001</td>' in page
    assert "(probability 1 - 1e-08)" in page


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
