"""The command line: results on stdout, notes on stderr, and no torch before its time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import MLP, MODEL

from flatminima import budgets, catalog
from flatminima.catalog.choices import LOSSES
from flatminima.core.losses.recognise import BUILT_IN

NO_TORCH = [
    ([], 0, ""),
    (["--help"], 0, ""),
    (["--version"], 0, ""),
    (["list"], 0, ""),
    (["list", "--json"], 0, ""),
    (["demo", "--help"], 0, ""),
    (["measure", "--help"], 0, ""),
    (["train", "--help"], 0, ""),
    (["train", "--model", "a.b:c", "--data", "digits"], 2, "flatminima train: Missing option '--output'."),
    (["train", *MODEL[1:], "--output", "x", "--method", "sma"], 2, "flatminima: unknown method 'sma': did you mean"),
    (["rank", "--help"], 0, ""),
    (["report", "--help"], 0, ""),
    (["report", "absent"], 2, "flatminima: no folder absent"),
    (["certify", "--help"], 0, ""),
    (["certify"], 2, "flatminima: certify needs --model and --data, or --verify"),
    (["certify", "--model", "a.b:c", "--data", "digits", "--delta", "2"], 2, "flatminima: got --delta 2.0"),
    (["certify", "--model", "a.b:c", "--data", "digits", "--objective", "k"], 2, "flatminima: unknown objective 'k'"),
    (["measure"], 2, "flatminima measure: Missing option '--model'."),
    (["nonsense"], 2, "flatminima: No such command 'nonsense'."),
    (["measure", "--nope"], 2, "flatminima measure: No such option: --nope"),
    ([*MODEL, "--batch-size", "0"], 2, "flatminima measure: Invalid value for '--batch-size'"),
    ([*MODEL, "--measures", "pacgne"], 2, "flatminima: unknown measure 'pacgne': did you mean 'pacgen'?"),
    ([*MODEL, "--measures", ","], 2, "flatminima: got --measures ','; name at least one"),
    ([*MODEL, "--loss", "cross-entropy"], 2, "flatminima: unknown loss 'cross-entropy': did you mean 'cross_entropy'?"),
    ([*MODEL, "--scaling", "unti"], 2, "flatminima: unknown scaling 'unti': did you mean 'unit'?"),
    ([*MODEL, "--model-arg", "widths"], 2, "flatminima: got --model-arg 'widths'; expected key=value"),
    ([*MODEL, "--checkpoint", "/no/such.pt"], 2, "flatminima: no file /no/such.pt for --checkpoint"),
    ([*MODEL, "--app-dir", "/no/such"], 2, "flatminima: no folder /no/such for --app-dir"),
    (["measure", "--model", "a.b:c", "--data", "/no/such"], 2, "flatminima: no folder /no/such for --data"),
    (["measure", "--model", "noformat", "--data", "digits"], 2, "flatminima: got --model 'noformat'; expected"),
    ([*MODEL, "--output", "/dev/null/x"], 2, "flatminima: cannot write to /dev/null/x"),
]


def test_help_list_and_usage_errors_do_not_import_torch() -> None:
    """Would catch an import of torch (3 s) creeping into a help text, and an error of more than one line."""
    code = (
        "import contextlib, io, json, sys\nfrom flatminima.cli import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['flatminima', *arguments]\n"
        "    err = io.StringIO()\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):\n"
        "        try:\n            main()\n        except SystemExit as stop:\n            code = stop.code\n"
        "    print(json.dumps([code, err.getvalue(), 'torch' in sys.modules]))\n"
    )
    asked = json.dumps([arguments for arguments, _, _ in NO_TORCH])
    done = subprocess.run([sys.executable, "-c", code, asked], capture_output=True, text=True, check=True)
    for (arguments, code_due, says), line in zip(NO_TORCH, done.stdout.splitlines(), strict=True):
        found, err, torch_imported = json.loads(line)
        assert found == code_due, (arguments, err)
        assert err.startswith(says), arguments
        assert err.count("\n") == (1 if says else 0), err
        assert not torch_imported, arguments


def test_names_checked_without_torch_are_the_ones_torch_knows() -> None:
    """The command line repeats them; would catch a loss that it does not let through."""
    assert set(LOSSES) == set(BUILT_IN)


def test_list_shows_every_measure_within_80_columns(cli) -> None:
    code, out, err = cli("list")
    assert (code, err) == (0, "")
    assert all(name in out for name in catalog.MEASURES)
    first, rest = out.split("All measures", 1)
    assert all(f"{name}\n    {question}" in first for name, question in catalog.FIRST.items())
    assert "rescaling-invariant" in rest.split("fisher_trace", 1)[1].split("budget", 1)[0]
    assert max(map(len, out.splitlines())) <= 80


def test_list_shows_every_statistic_and_who_uses_it(cli) -> None:
    code, out, err = cli("list", "--statistics")
    assert (code, err) == (0, "")
    assert all(f"{name}\n    " in out for name in catalog.STATISTICS)
    assert "used by: power_law_exponent" in out.split("WeightSpectra", 1)[1].split("Weights\n", 1)[0]
    assert max(map(len, out.splitlines())) <= 80


def test_list_json_carries_what_a_reader_asks_for(cli) -> None:
    _, out, _ = cli("list", "--json")
    document = json.loads(out)
    assert document["schema"] == 1
    assert {m["name"] for m in document["measures"]} == set(catalog.MEASURES)
    assert {s["name"] for s in document["statistics"]} == set(catalog.STATISTICS)
    assert set(document["measures"][0]) >= {"paper", "equation", "direction", "needs", "invariant"}


def test_measure_prints_a_table_of_80_columns(cli) -> None:
    code, out, err = cli(*MLP)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert all(name in out for name in budgets.names("default"))
    assert "no --checkpoint" in err


def test_a_budget_chooses_the_measures_and_their_counts(cli) -> None:
    _, out, _ = cli(*MLP, "--json", "--budget", "fast")
    document = json.loads(out)
    assert set(document["measures"]) == set(budgets.names("fast")) and document["command"]["budget"] == "fast"
    assert document["measures"]["expected_sharpness"]["details"]["n"] == 20
    code, _, err = cli(*MLP, "--budget", "fats")
    assert code == 2 and "did you mean 'fast'" in err


def test_explain_fills_one_page_that_report_makes_again(cli, tmp_path) -> None:
    code, _, said = cli(*MLP, "--measures", "margin", "--explain", "--output", str(tmp_path))
    assert code == 0, said
    document = json.loads((tmp_path / "measures.json").read_text())
    assert [*document["measures"]] == ["margin", "bicriteria", "effective_dimension"] and document["audit"]
    planes = document["landscapes"]
    assert {name: len(one["positions"]) for name, one in planes.items()} == {
        "landscape-line": 51, "landscape-plane": 17, "landscape-eigenvector": 51, "landscape-eigenvectors": 17,
    }  # fmt: skip
    assert planes["landscape-eigenvector"]["curvatures"][0] > 0 and planes["landscape-line"]["curvatures"] == [None]
    page = (tmp_path / "report.html").read_text()
    for part in ("spectrum", "bicriteria", "audit", "Provenance"):
        assert part in page
    assert page.count("data:image/svg+xml") == 4 and "--explain" in page
    (tmp_path / "report.html").unlink()
    assert cli("report", str(tmp_path))[0] == 0 and (tmp_path / "report.html").read_text() == page


def test_the_audit_is_printed_and_written(cli, tmp_path) -> None:
    code, out, _ = cli(*MLP, "--measures", "parameter_count,fisher_trace", "--audit")
    assert code == 0 and "same" in out and "moves" in out and max(map(len, out.splitlines())) <= 80
    _, out, _ = cli(*MLP, "--measures", "parameter_count,fisher_trace", "--audit", "--json")
    (found,) = json.loads(out)["audit"]["rescalings"]
    assert found["measures"]["parameter_count"]["invariant"] and not found["measures"]["fisher_trace"]["invariant"]


def test_measure_json_is_one_strict_document(cli) -> None:
    """Would catch a note on stdout, or NaN in the JSON."""
    _, out, _ = cli(*MLP, "--json", "--measures", "fisher_trace,margin,path_norm")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    document = json.loads(out, parse_constant=refuse)
    assert document["schema"] == 1
    assert list(document["measures"]) == ["fisher_trace", "margin", "path_norm"]
    assert document["samples"] == 150


def test_measure_agrees_with_python(cli, tmp_path: Path) -> None:
    """A checkpoint measured from the command line gives the numbers that Python gives."""
    from flatminima import Minimum, measures
    from flatminima.data import load_tensors
    from flatminima.models import build
    from flatminima.training import save_checkpoint

    model = build("mlp", seed=3, widths=(64, 16, 10))
    path = tmp_path / "mlp.safetensors"
    save_checkpoint(model, path)
    _, out, _ = cli(*MLP, "--json", "--measures", "fisher_trace", "--checkpoint", str(path), "--seed", "4")
    minimum = Minimum(model.eval(), load_tensors("digits", "train", limit=150), seed=4)
    expected = measures.fisher_trace(minimum, subset=20)
    found = json.loads(out)["measures"]["fisher_trace"]
    assert found["value"] == expected.value
    assert found["stderr"] == expected.stderr


def test_dry_run_measures_nothing(cli) -> None:
    code, out, _ = cli(*MLP, "--dry-run")
    assert code == 0
    assert "nothing was measured" in out
    assert "forward" in out


def test_dry_run_json(cli) -> None:
    _, out, _ = cli(*MLP, "--dry-run", "--json")
    assert json.loads(out)["cost"]["backward"] > 0


def test_output_writes_a_report_and_the_numbers(cli, tmp_path: Path) -> None:
    code, _, err = cli(*MLP, "--output", str(tmp_path / "made"), "--measures", "pacgen,margin")
    assert code == 0
    assert "report.html" in err
    assert json.loads((tmp_path / "made" / "measures.json").read_text())["measures"]["pacgen"]["value"] is not None
    assert "<svg" in (tmp_path / "made" / "report.html").read_text()
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == [".lock", "measures.json", "report.html"]
    document = json.loads((tmp_path / "made" / "measures.json").read_text())
    assert document["versions"]["torch"] == str(torch.__version__)
    page = (tmp_path / "made" / "report.html").read_text()
    for word in ("--limit 150", "--subset 20", "--measures pacgen,margin", "(64,16,10)"):
        assert word in page, "the command in the report makes the report again"


def test_thresholds_decide_the_exit_code(cli, tmp_path) -> None:
    asked = [*MLP, "--measures", "fisher_trace,path_norm"]
    assert cli(*asked, "--fail-if", "fisher_trace>1e9")[0] == 0
    code, out, err = cli(*asked, "--fail-if", "fisher_trace > 0.001", "--output", str(tmp_path / "o"))
    assert code == 3 and "threshold: fisher_trace = " in err and "fisher_trace" in out
    assert (tmp_path / "o" / "report.html").exists(), "what was measured is kept"
    code, _, err = cli(*asked, "--fail-if", "path_norm>5")
    assert code == 3 and "path_norm > 5 cannot be told: the margin" in err
    assert cli(*asked, "--fail-if", "fisher_trace<0")[0] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fisher_trace", "expected MEASURE>VALUE"),
        ("fisher_trace>x", "expected MEASURE>VALUE"),
        ("fisher_trace>nan", "expected MEASURE>VALUE"),
        ("fisher_trac>1", "did you mean 'fisher_trace'"),
        ("margin>1", "not among the measures"),
    ],
)
def test_a_bad_threshold_is_refused_before_the_work(cli, text: str, words: str) -> None:
    code, out, err = cli(*MODEL, "--measures", "fisher_trace", "--fail-if", text)
    assert (code, out) == (2, "") and words in err


def test_the_page_again_without_measuring(cli, tmp_path) -> None:
    folder = tmp_path / "o"
    assert cli(*MLP, "--measures", "fisher_trace", "--output", str(folder))[0] == 0
    page = folder / "report.html"
    first = page.read_text()
    assert "not fitted" not in first, "margin was not measured"
    page.unlink()
    code, _, err = cli("report", str(folder))
    assert code == 0 and page.read_text() == first and "report.html" in err
    (folder / "measures.json").write_text('{"measures": ')
    assert cli("report", str(folder))[0] == 2 and page.read_text() == first
    (folder / "measures.json").write_text('{"measures": {}}')
    code, _, err = cli("report", str(folder))
    assert code == 2 and "not what this version writes" in err
    code, _, err = cli("report", str(tmp_path))
    assert code == 2 and "holds none of measures.json, results.json" in err
    assert cli("report", str(tmp_path / "absent"))[0] == 2
