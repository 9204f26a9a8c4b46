"""The command line: results on stdout, notes on stderr, one-line errors, exit codes, and no torch before its time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flatminima import budgets, catalog
from flatminima.catalog.choices import LOSSES
from flatminima.cli import factory
from flatminima.cli.app import app, main
from flatminima.core.losses.recognise import BUILT_IN
from flatminima.errors import UsageError

DIGITS = ["--data", "digits", "--limit", "150", "--model-arg", "widths=(64,16,10)", "--subset", "20"]
USER = ["measure", "--data", "digits", "--model"]
MODEL = ["measure", "--model", "a.b:c", "--data", "digits"]
MLP = ["measure", "--model", "flatminima.models:mlp", *DIGITS]


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `main`, as a shell would see them."""
    monkeypatch.setattr(sys, "argv", ["flatminima", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


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


@pytest.fixture
def user_modules(tmp_path: Path) -> Path:
    (tmp_path / "usermodels.py").write_text(
        "import torch\n"
        "number = 3\n"
        "def net(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "def string(): return 'no module'\n"
        "def broken(): raise RuntimeError('broken\\non purpose')\n"
        "def nan():\n    m = net()\n    m[1].weight.data[0, 0] = float('nan')\n    return m\n"
        "def narrow(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))\n"
        "def wrong(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(63, 10))\n"
        "def frozen(): return net().requires_grad_(False)\n"
        "def leaves(): raise SystemExit(7)\n"
        "ready = net()\n"
        "class Loud(torch.nn.Linear):\n"
        "    def forward(self, x):\n        print('forward'); return super().forward(x.flatten(1))\n"
        "def loud(): print('building'); return Loud(64, 10)\n"
        "def odd_names():\n"
        "    m = torch.nn.Sequential(torch.nn.Flatten())\n"
        "    m.add_module('$\\\\frac{$<script>', torch.nn.Linear(64, 10)); return m\n"
    )
    (tmp_path / "raises_inside.py").write_text("import no_such_package_at_all\n")
    return tmp_path


BAD_FACTORIES = [
    ("noformat", 2, "expected package.module:factory"),
    ("a b:c", 2, "expected package.module:factory"),
    ("no_such_module_here:net", 2, "no module 'no_such_module_here'"),
    ("usermodels:nothing", 2, "has no 'nothing'"),
    ("usermodels:number", 2, "must name something that can be called"),
    ("usermodels:string", 1, "must return a torch.nn.Module"),
    ("usermodels:broken", 1, "raised RuntimeError: broken on purpose"),
    ("usermodels:leaves", 1, "raised SystemExit: 7"),
    ("usermodels:ready", 2, "is a network already"),
    ("usermodels:brokn", 2, "did you mean 'broken'?"),
    ("usermodels:wrong", 2, "1, 8, 8)"),
    ("raises_inside:net", 1, "importing 'raises_inside' failed"),
    ("usermodels:nan", 1, "holds NaN or Inf"),
    ("usermodels:narrow", 2, "out of range"),
    ("usermodels:frozen", 2, "no trainable parameter"),
]


@pytest.mark.parametrize(("target", "code", "says"), BAD_FACTORIES, ids=[b[0] for b in BAD_FACTORIES])
def test_bad_models_are_one_line(cli, user_modules: Path, target: str, code: int, says: str) -> None:
    found, out, err = cli("measure", "--model", target, "--data", "digits", "--app-dir", str(user_modules))
    assert (found, out) == (code, "")
    assert err.startswith("flatminima: ")
    assert says in err
    assert err.count("\n") == 1


def test_options_that_the_factory_does_not_take_are_refused(cli, user_modules: Path) -> None:
    code, _, err = cli(*USER, "usermodels:net", "--app-dir", str(user_modules), "--model-arg", "depth=3")
    assert code == 2
    assert err == (
        "flatminima: usermodels:net got an unexpected keyword argument 'depth': it takes nothing; "
        "check --model-arg key=value\n"
    )


def test_what_the_network_prints_stays_out_of_the_result(cli, user_modules: Path) -> None:
    """Would catch a user's print() that breaks the JSON on stdout."""
    arguments = ["usermodels:loud", "--app-dir", str(user_modules), "--measures", "margin", "--json"]
    code, out, err = cli(*USER, *arguments)
    assert code == 0
    assert json.loads(out)["measures"]["margin"]["value"] is not None
    assert "building" in err
    assert "forward" in err


def test_a_layer_named_like_a_formula_or_a_tag_is_drawn(cli, user_modules: Path, tmp_path: Path) -> None:
    """Dollars start a formula in matplotlib; this one does not parse."""
    arguments = ["usermodels:odd_names", "--app-dir", str(user_modules), "--measures", "pacgen", "--limit", "60"]
    code, _, _ = cli(*USER, *arguments, "--output", str(tmp_path / "made"))
    assert code == 0
    text = (tmp_path / "made" / "report.html").read_text()
    assert "$\\frac{$&lt;script&gt;" in text
    assert "<script" not in text


def test_the_module_run_from_a_folder_does_not_import_from_it(user_modules: Path) -> None:
    """`python -m` puts the current folder on the path; the installed command does not."""
    command = [sys.executable, "-m", "flatminima", *USER, "raises_inside:net"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=user_modules)
    assert done.returncode == 2, done.stderr
    assert "no module 'raises_inside'" in done.stderr


def test_factory_arguments_are_literals_or_text() -> None:
    found = factory.arguments(["a=3", "b=(1, 2)", "c=relu", "d=true", "e=None", "f=x=y"])
    assert found == {"a": 3, "b": (1, 2), "c": "relu", "d": True, "e": None, "f": "x=y"}
    with pytest.raises(UsageError, match="twice"):
        factory.arguments(["a=1", "a=2"])


def test_the_current_folder_is_not_on_the_path_by_itself(
    cli, user_modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code comes only from what the user typed: --app-dir is needed."""
    monkeypatch.chdir(user_modules)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p and not (Path(p) / "usermodels.py").exists()])
    monkeypatch.delitem(sys.modules, "usermodels", raising=False)
    code, _, err = cli("measure", "--model", "usermodels:net", "--data", "digits")
    assert code == 2
    assert "--app-dir" in err


BAD_ARGUMENTS = [
    (["--split", "nonsense"], "nonsense"),
    (["--device", "cuda:99"], "cannot be used here"),
    (["--device", "meta"], "cannot be used here"),
    (["--subset", "5000"], "5000"),
    (["--mode", "RGB"], "the embedded digits take no"),
]


@pytest.mark.parametrize(("extra", "says"), BAD_ARGUMENTS, ids=[" ".join(b[0]) for b in BAD_ARGUMENTS])
def test_bad_arguments_exit_2_with_one_line(cli, extra: list[str], says: str) -> None:
    code, out, err = cli(*MLP, *extra)
    assert (code, out) == (2, "")
    assert says in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_pickle_that_needs_code_is_refused_and_does_not_run(cli, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Bad:
        def __reduce__(self):
            return (Path.touch, (canary,))

    torch.save({"weight": Bad()}, tmp_path / "bad.pt")
    code, _, err = cli(*MLP, "--checkpoint", str(tmp_path / "bad.pt"))
    assert code == 2
    assert err.count("\n") == 1
    assert not canary.exists()


def test_keys_that_do_not_fit_are_named(cli, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"other.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    code, _, err = cli(*MLP, "--checkpoint", str(tmp_path / "other.safetensors"))
    assert code == 2
    assert "other.weight" in err


def test_an_output_that_cannot_be_written_fails_before_the_work(cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = cli(*MLP, "--output", str(tmp_path / "file" / "folder"))
    assert (code, out) == (2, "")
    assert "cannot write" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("extra", [["--dry-run"], ["--split", "nonsense"]], ids=["dry run", "refused"])
def test_nothing_is_left_where_nothing_was_measured(cli, tmp_path: Path, extra: list[str]) -> None:
    cli(*MLP, *extra, "--output", str(tmp_path / "deep" / "folder"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_the_report_is_refused_before_the_work(cli, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    code, out, err = cli(*MLP, "--output", str(tmp_path))
    assert (code, out) == (2, "")
    assert "report.html is a folder" in err


def test_debug_shows_the_traceback(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATMINIMA_DEBUG", "1")
    code, _, err = cli(*MLP, "--loss", "mean")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("flatminima: unknown loss 'mean'")


RAISED = [
    (RuntimeError("two\nlines"), "flatminima: RuntimeError: two lines; FLATMINIMA_DEBUG=1 shows where\n"),
    (torch.OutOfMemoryError("9 GB"), "flatminima: out of memory (9 GB); try a smaller --batch-size"),
    (MemoryError(), "flatminima: out of memory"),
]


@pytest.mark.parametrize(("error", "says"), RAISED, ids=[type(e).__name__ for e, _ in RAISED])
def test_what_nobody_foresaw_is_one_line_too(cli, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("flatminima.measuring.measure", fail)
    code, out, err = cli(*MLP, "--measures", "margin")
    assert (code, out) == (1, "")
    assert err.splitlines(keepends=True)[-1].startswith(says)
    assert "Traceback" not in err


def test_interrupt_exits_130(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through typer, which would swallow it without a word."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flatminima.measuring.measure", interrupted)
    code, out, err = cli(*MLP, "--measures", "margin")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("flatminima: interrupted")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["list"], ["--help"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_error(arguments: list[str], unbuffered: str) -> None:
    """`flatminima list | head -1`: quiet, exit 0, whether the pipe breaks in a print or at the end."""
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "flatminima", *arguments]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_ansi_outside_a_terminal() -> None:
    result = CliRunner().invoke(app, ["list"])
    assert "\x1b" not in result.output


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=lambda e: next(iter(e)))
def test_no_ansi_on_a_terminal_that_wants_none(environment: dict[str, str]) -> None:
    """NO_COLOR alone would leave rich's bold."""
    assert b"\x1b" not in on_a_terminal(["list"], environment)
    assert b"\x1b" not in on_a_terminal(["measure", "--help"], environment)


def on_a_terminal(arguments: list[str], environment: dict[str, str]) -> bytes:
    """What is written to a pseudo-terminal."""
    primary, secondary = os.openpty()
    environment = {"TERM": "xterm"} | {k: v for k, v in os.environ.items() if k != "TERM"} | environment
    command = [sys.executable, "-m", "flatminima", *arguments]
    with subprocess.Popen(command, stdout=secondary, stderr=secondary, env=environment):
        os.close(secondary)
        written = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while more := os.read(primary, 4096):
                written += more
    os.close(primary)
    assert b"measure" in written
    return written


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
