"""The command line: results on stdout, notes on stderr, one-line errors, exit codes, and no torch before its time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flatminima import catalog
from flatminima.cli.app import app, main
from flatminima.errors import UsageError

DIGITS = ["--data", "digits", "--limit", "150", "--model-arg", "widths=(64,16,10)", "--subset", "20"]
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


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["list"], ["list", "--json"], ["measure", "--help"], ["measure"], ["nonsense"]],
    ids=" ".join,
)
def test_help_list_and_usage_errors_do_not_import_torch(arguments: list[str]) -> None:
    """Would catch an import of torch (3 s) creeping into the path of a help text."""
    code = (
        "import sys\nfrom flatminima.cli import main\n"
        f"sys.argv = ['flatminima', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_measure_is_refused_without_torch() -> None:
    code = (
        "import sys\nfrom flatminima.cli import main\n"
        "sys.argv = ['flatminima', 'measure', '--model', 'a.b:c', '--data', 'digits', '--measures', 'pacgne']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "flatminima: unknown measure 'pacgne': did you mean 'pacgen'? (see `flatminima list`)\n"


def test_list_shows_every_measure_within_80_columns(cli) -> None:
    code, out, err = cli("list")
    assert (code, err) == (0, "")
    assert all(name in out for name in catalog.MEASURES)
    assert max(map(len, out.splitlines())) <= 80


def test_list_json_carries_what_a_reader_asks_for(cli) -> None:
    _, out, _ = cli("list", "--json")
    document = json.loads(out)
    assert document["schema"] == 1
    assert {m["name"] for m in document["measures"]} == set(catalog.MEASURES)
    assert set(document["measures"][0]) >= {"paper", "equation", "direction", "needs", "invariant"}


def test_measure_prints_a_table_of_80_columns(cli) -> None:
    code, out, err = cli(*MLP)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert all(name in out for name in catalog.MEASURES)
    assert "no --checkpoint" in err


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
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["measures.json", "report.html"]


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
    (["--data", "/no/such/folder"], "/no/such/folder"),
    (["--checkpoint", "/no/such.safetensors"], "/no/such.safetensors"),
    (["--split", "nonsense"], "nonsense"),
    (["--loss", "mean"], "unknown loss"),
    (["--device", "cuda:99"], "cannot be used here"),
    (["--model-arg", "widths"], "expected key=value"),
    (["--measures", ","], "name at least one"),
    (["--subset", "5000"], "5000"),
    (["--scaling", "odd"], "odd"),
]


@pytest.mark.parametrize(("extra", "says"), BAD_ARGUMENTS, ids=[" ".join(b[0]) for b in BAD_ARGUMENTS])
def test_bad_arguments_exit_2_with_one_line(cli, extra: list[str], says: str) -> None:
    code, out, err = cli(*MLP, *extra)
    assert (code, out) == (2, "")
    assert says in err.splitlines()[-1]


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


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATMINIMA_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["flatminima", *MLP, "--loss", "mean"])
    with pytest.raises(UsageError):
        main()


def test_interrupt_exits_130(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flatminima.cli.app.app", interrupted)
    code, _, err = cli("list")
    assert code == 130
    assert "interrupted" in err


def test_no_ansi_outside_a_terminal() -> None:
    result = CliRunner().invoke(app, ["list"])
    assert "\x1b" not in result.output
