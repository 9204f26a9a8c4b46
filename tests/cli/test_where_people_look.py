"""Pipes, stopped work, and the files with which others call the command line: an Action, a hook, an image."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flatminima import measuring
from flatminima.cli import main, terminal
from flatminima.interrupts import Interrupted

ROOT = Path(__file__).resolve().parents[2]
MEASURE = [
    "measure", "--model", "flatminima.models:mlp", "--model-arg", "widths=(64,8,10)", "--data", "digits", "--limit",
    "60", "--subset", "20",
]  # fmt: skip


@pytest.fixture
def cli(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["flatminima", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def test_a_pipe_gets_a_line_a_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    lines = terminal._Lines()
    for second in range(0, 301, 10):
        now[0] = float(second)
        lines("sweep", second, 600)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5 and said[0] == "sweep: 10%, 0:09:00 left" and said[-1] == "sweep: 50%, 0:05:00 left"


def test_short_work_says_nothing_in_a_pipe(cli):
    code, _, err = cli(*MEASURE, "--measures", "fisher_trace", "--json")
    assert code == 0 and "%" not in err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_what_was_measured_is_kept_when_it_is_stopped(cli, monkeypatch, tmp_path, signum):
    whole = measuring.measure

    def stopped(minimum, wanted):
        whole(minimum, wanted[:2])
        raise Interrupted(signum)

    monkeypatch.setattr(measuring, "measure", stopped)
    code, _, err = cli(*MEASURE, "--measures", "fisher_trace,margin,hessian_trace", "--output", str(tmp_path))
    assert code == 128 + signum
    assert "2 of 3 measures are in" in err.splitlines()[-1]
    document = json.loads((tmp_path / "measures.json").read_text())
    monkeypatch.setattr(measuring, "measure", whole)
    code, out, _ = cli(*MEASURE, "--measures", "fisher_trace,margin", "--json")
    assert document["measures"] == json.loads(out)["measures"]
    assert "not measured: hessian_trace" in document["notes"][-1]
    assert (tmp_path / "report.html").is_file()


def test_a_whole_table_is_kept_when_its_audit_is_stopped(cli, monkeypatch, tmp_path):
    from flatminima import rescaling

    def stopped(minimum, wanted):
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(rescaling, "audit", stopped)
    code, _, err = cli(*MEASURE, "--measures", "fisher_trace,margin", "--audit", "--output", str(tmp_path))
    assert code == 130 and "2 of 2 measures are in" in err.splitlines()[-1]
    assert json.loads((tmp_path / "measures.json").read_text())["measures"]["margin"]["value"] is not None


def test_without_a_folder_or_a_number_nothing_is_kept(cli, monkeypatch, tmp_path):
    def stopped(minimum, wanted):
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(measuring, "measure", stopped)
    code, _, err = cli(*MEASURE, "--measures", "fisher_trace", "--output", str(tmp_path))
    assert code == 130 and "nothing is kept" in err and not list(tmp_path.iterdir())


def test_the_actions_step_hands_every_word_on(tmp_path):
    yaml = pytest.importorskip("yaml")
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    step = next(s for s in action["runs"]["steps"] if "arguments=" in s["run"])
    fake = tmp_path / "flatminima"
    fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\nexit 3\n')
    fake.chmod(0o755)
    given = {
        "model": "nets:net", "data": "my data", "checkpoint": "a b.safetensors", "app-dir": "", "output": "out",
        "fail-if": "fisher_trace>50\nmargin < 0\n", "options": "--limit\n100\n",
    }  # fmt: skip
    assert set(given) == set(action["inputs"])
    names = {k: re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", v)[1] for k, v in step["env"].items()}
    environment = {k: given[v] for k, v in names.items()} | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-c", step["run"]], env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines() == [
        "measure", "--model", "nets:net", "--data", "my data", "--output", "out", "--checkpoint", "a b.safetensors",
        "--fail-if", "fisher_trace>50", "--fail-if", "margin < 0", "--limit", "100",
    ]  # fmt: skip


def test_the_hook_calls_what_there_is(cli):
    yaml = pytest.importorskip("yaml")
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    words = hook["entry"].split()
    assert words[0] == "flatminima" and hook["pass_filenames"] is False
    code, out, _ = cli(*words[1:], "--help")
    assert code == 0 and "--fail-if" in out
    assert re.search(hook["files"], "net.safetensors") and not re.search(hook["files"], "net.py")


def test_the_image_is_made_from_what_there_is():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    extras = re.findall(r'"/src\[([\w,]+)\]"', "\n".join(lines))[0].split(",")
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in extras)
    for line in lines:
        if line.startswith("COPY"):
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line
    assert 'ENTRYPOINT ["flatminima"]' in lines and "USER user" in lines
