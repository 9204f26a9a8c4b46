"""`flatminima train --track`: a log in the run's folder, and the weights of a run without it."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import equal
from typer.testing import CliRunner

from flatminima.cli.app import app

COMMAND = [
    "train", "--model", "flatminima.models:mlp", "--model-arg", "widths=(64,16,10)", "--data", "digits",
    "--limit", "96", "--batch-size", "32", "--optimizer", "adam", "--lr", "0.01",
]  # fmt: skip


def _run(folder: Path, *more: str) -> None:
    done = CliRunner().invoke(app, [*COMMAND, "--output", str(folder), *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def _steps(folder: Path) -> list[int]:
    lines = [json.loads(line) for line in (folder / "track.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "step" in line]


def test_the_weights_are_the_same_and_a_longer_run_goes_on(tmp_path: Path) -> None:
    _run(tmp_path / "plain", "--epochs", "3")
    _run(tmp_path / "tracked", "--epochs", "2", "--track", "4")
    assert _steps(tmp_path / "tracked") == [0, 4]
    _run(tmp_path / "tracked", "--epochs", "3", "--track", "4")
    assert _steps(tmp_path / "tracked") == [0, 4, 8]
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("plain", "tracked"))
    assert all(equal(one[key], two[key]) for key in one)
    last = json.loads((tmp_path / "tracked" / "track.jsonl").read_text().splitlines()[-1])
    assert last["values"]["preconditioned"] > 0 and not last["details"]["eigenvalue"]["fresh"]
    assert CliRunner().invoke(app, ["track", str(tmp_path / "tracked")]).exit_code == 0
    assert "threshold of stability" in (tmp_path / "tracked" / "track.html").read_text()


def test_a_fresh_run_begins_a_new_log(tmp_path: Path) -> None:
    _run(tmp_path, "--epochs", "2", "--track", "2", "--method", "sam")
    _run(tmp_path, "--epochs", "1", "--track", "2", "--fresh")
    assert _steps(tmp_path) == [0, 2]
