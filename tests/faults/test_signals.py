"""SIGTERM and SIGINT: state is kept, nothing is printed but lines, the exit code is the signal's."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flatminima.training import read_weights
from processes import fork_workers, run, start

pytestmark = [pytest.mark.apart, pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")]

TRAIN = (
    "train",
    "--model",
    "flatminima.models:mlp",
    "--model-arg",
    "widths=(64,32,10)",
    "--data",
    "digits",
    "--lr",
    "1e-3",
)
STUDY = """
import time, torch
from flatminima.studies import Study, train
from flatminima.training import TrainConfig
from flatminima.models import build
def run(config, sources):
    x, y = torch.randn(200, 20), torch.arange(200) % 3
    train(build("mlp", seed=0, widths=(20, 30, 3)), x, y, config=TrainConfig(epochs=100_000, lr=1e-4))
    return {"seed": config["seed"]}
def figure(results):
    from matplotlib.figure import Figure
    return Figure()
STUDY = Study("endless", "-", "A study", (), lambda scale: [{"seed": i} for i in range(3)], run, lambda results: [],
              figure, {"smoke": "-", "cpu": "-", "paper": "-"})
"""
EXITING = """
import sys
from flatminima.studies import Study
def run(config, sources):
    if config["seed"] == 1:
        sys.exit("bad arguments")
    return {"seed": config["seed"]}
def figure(results):
    from matplotlib.figure import Figure
    return Figure()
STUDY = Study("exiting", "-", "A study", (), lambda scale: [{"seed": i} for i in range(3)], run, lambda results: [],
              figure, {"smoke": "-", "cpu": "-", "paper": "-"})
"""


def signalled(
    folder: Path,
    arguments: list[str],
    number: int,
    ready: Callable[[], bool],
    *,
    group: bool = False,
    prepare: Callable[[], None] | None = None,
) -> tuple[int, str]:
    """Exit code and stderr of a command that got a signal once it was ready."""
    process = start(*arguments, stderr=folder / "stderr", prepare=prepare)
    assert process.pid is not None
    try:
        for _ in range(12_000):
            if ready() or process.exitcode is not None:
                break
            time.sleep(0.01)
        assert process.exitcode is None, (folder / "stderr").read_text()
        (os.killpg if group else os.kill)(process.pid, number)
        process.join(120)
    finally:
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.exitcode is not None, "it goes on"
    return process.exitcode, (folder / "stderr").read_text()


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_training_that_is_stopped_goes_on_from_that_step(tmp_path: Path, number: int) -> None:
    """With checkpoints an hour apart: what is kept was written because of the signal."""
    folder = tmp_path / "run"
    arguments = [*TRAIN, "--epochs", "100000", "--save-every", "3600", "--output", str(folder)]
    code, said = signalled(tmp_path, arguments, number, lambda: lines(folder / "metrics.jsonl") > 2)
    assert code == 128 + number and "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("flatminima: interrupted; step ") and last.endswith("the same command goes on from there")
    step = int(last.split("step ")[1].split()[0])
    import torch

    state = torch.load(folder / "state.pt", weights_only=True)
    assert state["position"][2] == step > 0 and not (folder / "result.json").exists()
    epochs = step // 20 + 2
    document = json.loads((folder / "run.json").read_text()) | {"epochs": epochs}
    (folder / "run.json").write_text(json.dumps(document))  # so that the rest takes a moment, and not an hour
    whole = tmp_path / "whole"
    for output in (folder, whole):
        command = [*TRAIN, "--epochs", str(epochs), "--save-every", "3600", "--output", str(output)]
        assert run(*command) == 0
    a, b = (read_weights(output / "weights.safetensors") for output in (folder, whole))
    assert all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, True)])
def test_workers_keep_their_state_and_print_no_tracebacks(tmp_path: Path, number: int, group: bool) -> None:
    """Ctrl-C reaches the whole group; a scheduler signals the parent, or every process."""
    (tmp_path / "endless.py").write_text(STUDY)
    output = tmp_path / "out"
    arguments = ["study", str(tmp_path / "endless.py"), "-j", "2", "--output", str(output)]
    code, said = signalled(
        tmp_path,
        arguments,
        number,
        lambda: sum(lines(p) > 2 for p in output.rglob("metrics.jsonl")) == 2,
        group=group,
        prepare=fork_workers if number == signal.SIGTERM else None,  # once spawned, as a user's are
    )
    assert code == 128 + number, said
    assert said.strip().splitlines()[-1].startswith("flatminima: interrupted; what was finished is kept")
    assert "Traceback" not in said and "Process" not in said
    assert len(list(output.rglob("state.pt"))) == 2, "each of the two trainings under way"


def test_a_command_that_keeps_nothing_says_so(tmp_path: Path) -> None:
    flag = tmp_path / "begun"
    (tmp_path / "slow.py").write_text(
        "import time, pathlib\nfrom flatminima.models import mlp\n"
        f"def build():\n    pathlib.Path({str(flag)!r}).touch()\n    time.sleep(100)\n    return mlp((64, 10))\n"
    )
    arguments = ["measure", "--model", "slow:build", "--app-dir", str(tmp_path), "--data", "digits"]
    code, said = signalled(tmp_path, arguments, signal.SIGTERM, flag.exists)
    assert code == 143 and said.strip().splitlines()[-1] == "flatminima: interrupted; nothing is kept"


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """Where the first waits for the end of a step that never ends."""
    flag = tmp_path / "begun"
    (tmp_path / "stuck.py").write_text(
        "import time, pathlib, torch\n"
        "class Stuck(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer = torch.nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        if self.training and torch.is_grad_enabled():\n"
        f"            pathlib.Path({str(flag)!r}).touch()\n            time.sleep(300)\n"
        "        return self.layer(x.flatten(1))\n"
    )
    said = tmp_path / "stderr"
    process = start(
        *("train", "--model", "stuck:Stuck", "--app-dir", str(tmp_path), "--data", "digits"),
        *("--output", str(tmp_path / "out")),
        stderr=said,
    )
    assert process.pid is not None
    while not flag.exists():
        assert process.exitcode is None, said.read_text()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    while "once more stops at once" not in said.read_text():
        assert process.exitcode is None, said.read_text()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == -signal.SIGTERM


@pytest.mark.parametrize("jobs", ["2"])
def test_a_run_that_exits_is_recorded_and_ends_nothing(tmp_path: Path, jobs: str) -> None:
    """Scripts with argparse do; it took the whole study with it, and no line said which run."""
    (tmp_path / "exiting.py").write_text(EXITING)
    command = ["study", str(tmp_path / "exiting.py"), "-j", jobs, "--output", str(tmp_path / "out")]
    run(*command, prepare=fork_workers)
    runs = json.loads((tmp_path / "out" / "exiting" / "results.json").read_text())["runs"]
    assert sorted(run.get("error", "") for run in runs) == ["", "", "SystemExit: bad arguments"]
