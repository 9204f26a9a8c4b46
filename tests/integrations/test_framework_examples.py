"""The examples of ten lines run, each in its framework."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "frameworks"
NEEDS = {
    "with_lightning": "lightning.pytorch", "with_fabric": "lightning.fabric", "with_accelerate": "accelerate",
    "with_huggingface": "transformers", "with_checkpoints": "torch",
}  # fmt: skip


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NEEDS)
def test_it_runs(name):
    pytest.importorskip(NEEDS[name])
    torch.manual_seed(0)
    found = load(name).main(*(() if name == "with_checkpoints" else (1,)))
    assert found is True if name == "with_checkpoints" else 0 < found < 2.6


def test_every_example_is_run():
    assert sorted(p.stem for p in FOLDER.glob("*.py")) == sorted(NEEDS)
