"""Killed at any moment, the same command ends with the same result and leaves no half file."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from flatminima.models import mlp
from flatminima.training import save_checkpoint

KILLS = 3


def plain(document: Any) -> Any:
    """Without what differs from run to run: seconds and the folder."""
    if isinstance(document, dict):
        return {k: plain(v) for k, v in document.items() if k not in ("seconds", "output")}
    return [plain(v) for v in document] if isinstance(document, list) else document


def run(arguments: list[str], kill_after: float | None = None) -> int:
    command = [sys.executable, "-m", "flatminima", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    if kill_after is None:
        return process.wait(timeout=300)
    try:
        return process.wait(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def whole(folder: Path) -> None:
    """Every JSON file that is there can be read; what was being written has another name."""
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_rank(tmp_path: Path) -> None:
    names = []
    for i in range(6):
        torch.manual_seed(i)
        save_checkpoint(mlp((64, 32, 10)), tmp_path / f"{i}.safetensors")
        names.append(str(tmp_path / f"{i}.safetensors"))
    asked = [
        *("rank", *names, "--model", "flatminima.models:mlp", "--model-arg", "widths=(64,32,10)", "--data", "digits"),
        *("--limit", "300", "--subset", "30", "--measures", "fisher_trace,pacgen,expected_sharpness,robustness"),
        *("--by", "fisher_trace,robustness", "--output"),
    ]
    started = time.perf_counter()
    assert run([*asked, str(tmp_path / "calm")]) == 0
    took = time.perf_counter() - started
    moments = random.Random(0)
    for _ in range(KILLS):
        run([*asked, str(tmp_path / "killed")], kill_after=took * moments.uniform(0.5, 1.0))
        whole(tmp_path / "killed")
    assert run([*asked, str(tmp_path / "killed")]) == 0
    calm, killed = (json.loads((tmp_path / f / "rank.json").read_text()) for f in ("calm", "killed"))
    assert plain(calm) == plain(killed)
