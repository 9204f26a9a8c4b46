"""kill -9 at random moments: the same command then ends with the same result and leaves no half file.

FLATMINIMA_KILLS says how often each of the eight commands is killed, by the clock; it is 0 here, where the moment of a
kill is a write instead (`test_a_process_killed_at_a_write`, and `test_crash.py` for the other writes).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flatminima.data import load_tensors
from flatminima.models import mlp
from flatminima.training import TrainConfig, read_weights, save_checkpoint, train
from hostile import call
from processes import run, start

_MOMENT = 0.01  # seconds
KILLS = int(os.environ.get("FLATMINIMA_KILLS", "0"))

MLP = ("--model", "flatminima.models:mlp", "--model-arg", "widths=(64,32,10)", "--data", "digits")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def plain(document: Any) -> Any:
    """Without what differs from run to run: seconds and the folder."""
    if isinstance(document, dict):
        return {
            k: plain(v) for k, v in document.items() if k not in ("seconds", "cpu_seconds", "core_seconds", "output")
        }
    return [plain(v) for v in document] if isinstance(document, list) else document


def killed_after(arguments: list[str], seconds: float) -> bool:
    """Whether the command was still running then, and was killed with all of its group."""
    process = start(*arguments)
    assert process.pid is not None
    try:
        while process.exitcode is None and os.getpgid(process.pid) != process.pid:  # not yet the leader of a group
            time.sleep(_MOMENT)
        process.join(seconds)
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has just ended
        pass
    process.join()
    return process.exitcode == -signal.SIGKILL


def whole(folder: Path) -> None:
    """Every document that is there can be read; what was being written has another name."""
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    for path in folder.rglob("*.safetensors"):
        read_weights(path)


def document(name: str) -> Callable[[Path], Any]:
    return lambda folder: plain(json.loads((folder / name).read_text(encoding="utf-8")))


def trained(folder: Path) -> Any:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = {name: t.tolist() for name, t in read_weights(folder / "weights.safetensors").items()}
    return plain(rows), weights


def certified(folder: Path) -> Any:
    """All numbers and weights; that the prior's training was read from a file, which a killed run says, is left out."""
    weights = {name: t.tolist() for name, t in read_weights(folder / "weights.safetensors").items()}
    found = document("certificate.json")(folder)
    words = ("statement", "standing", "is_certificate", "assumptions")
    return {key: value for key, value in found.items() if key not in words}, weights


def studied(folder: Path) -> Any:
    return document("wang-rescaling/results.json")(folder)


def study(folder: Path) -> list[str]:
    name = f"killed_{folder.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(STUDY)
    return ["study", str(folder / f"{name}.py")]


STUDY = """
import torch
from flatminima.models import build
from flatminima.studies import Study, train
from flatminima.training import TrainConfig
def run(config, sources):
    x, y = torch.linspace(-1, 1, 400).reshape(40, 10), torch.arange(40) % 3
    train(build("mlp", seed=0, widths=(10, 9, 3)), x, y, config=TrainConfig(epochs=40, lr=1e-2))
    return {"seed": config["seed"]}
def figure(results):
    from matplotlib.figure import Figure
    return Figure()
STUDY = Study("killed", "-", "A study", (), lambda scale: [{"seed": i} for i in range(3)], run, lambda results: [],
              figure, {"smoke": "-", "cpu": "-", "paper": "-"})
"""


def checkpoints(folder: Path) -> list[str]:
    names = []
    for i in range(6):
        torch.manual_seed(i)
        names.append(str(folder / f"{i}.safetensors"))
        network = mlp((64, 32, 10))
        train(network, *load_tensors("digits", limit=300), config=TrainConfig(lr=0.1, epochs=15))
        save_checkpoint(network, names[-1])
    return names


COMMANDS: dict[str, tuple[Callable[[Path], list[str]], Callable[[Path], Any]]] = {
    "rank": (
        lambda folder: [
            *("rank", *checkpoints(folder), *MLP, "--limit", "300", "--subset", "30"),
            *("--measures", "fisher_trace,pacgen,expected_sharpness,robustness", "--by", "fisher_trace,robustness"),
        ],
        document("rank.json"),
    ),
    "train": (lambda folder: ["train", *MLP, "--epochs", "30", "--save-every", "0"], trained),
    "certify": (
        lambda folder: [
            *("certify", *MLP, "--limit", "600", "--epochs", "10", "--prior-epochs", "20", "--draws", "300"),
            *("--passes", "5"),
        ],
        certified,
    ),
    "reproduce": (lambda folder: ["reproduce", "wang-rescaling"], studied),
    "demo": (lambda folder: ["demo", "--quick"], document("results.json")),
    "measure": (
        lambda folder: ["measure", *MLP, "--limit", "300", "--measures", "fisher_trace,hessian_trace,sharpness"],
        lambda folder: document("measures.json")(folder)["measures"],
    ),
    "landscape": (
        lambda folder: ["landscape", *MLP, "--limit", "300", "--steps", "9"],
        document("landscape.json"),
    ),
    "study": (study, lambda folder: document("killed/results.json")(folder)),
}


@pytest.mark.skipif(not KILLS, reason="by the clock; set FLATMINIMA_KILLS=20")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_command_ends_with_the_same_result(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    arguments, result = COMMANDS[name]
    asked = [*arguments(tmp_path), "--output"]
    started = time.perf_counter()
    assert run(*asked, str(tmp_path / "calm")) == 0
    took = time.perf_counter() - started
    moments, truth, folder = random.Random(name), result(tmp_path / "calm"), tmp_path / "killed"
    killed = ended = 0
    while killed < KILLS and ended < 2 * KILLS:
        if killed_after([*asked, str(folder)], took * moments.random()):
            killed += 1
            if folder.exists():
                whole(folder)
        else:  # it was over before its moment: then it has gone on to the same result, and the next begins anew
            ended += 1
            assert result(folder) == truth
            shutil.rmtree(folder)
    record_property("killed", killed)
    assert killed, "each run was over before its moment"
    assert run(*asked, str(folder)) == 0
    assert result(folder) == truth
    assert len(list(folder.rglob(".*.tmp"))) <= killed  # each leaves one at most, and nothing reads it


KILLED = """
import os, signal, sys
left, real = int(sys.argv.pop(1)), os.replace
def replaced(*paths, **options):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*paths, **options)
os.replace = replaced
from flatminima.cli import main
main()
"""


def test_a_process_killed_at_a_write_leaves_what_the_same_command_goes_on_from(tmp_path: Path) -> None:
    """SIGKILL itself, at the moment of a renaming: no handler and no clean-up of Python's runs."""
    (tmp_path / "killed.py").write_text(KILLED)
    asked = ["train", *MLP, "--limit", "100", "--epochs", "3", "--save-every", "0", "--output"]
    command = [sys.executable, str(tmp_path / "killed.py"), "9", *asked, str(tmp_path / "killed")]
    found = subprocess.run(command, capture_output=True, timeout=300, check=False)
    assert found.returncode == -signal.SIGKILL, found.stderr
    whole(tmp_path / "killed")
    for folder in ("killed", "calm"):
        code, said = call(*asked, str(tmp_path / folder))
        assert code == 0, said
    assert trained(tmp_path / "calm") == trained(tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*.tmp"))
