"""The command line: one-line errors, exit codes, readers that leave, terminals without colours."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import MLP, USER
from typer.testing import CliRunner

from flatminima.cli import factory
from flatminima.cli.app import app
from flatminima.errors import UsageError


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
