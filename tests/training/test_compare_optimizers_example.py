"""The comparison in examples/: runs are kept and read again, and its intervals are Student's."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

from flatminima.models import mlp


@pytest.fixture
def example(monkeypatch):
    path = Path(__file__).resolve().parents[2] / "examples" / "compare_optimizers.py"
    spec = importlib.util.spec_from_file_location("compare_optimizers", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_optimizers", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    task = module.Task("mnist", lambda rate: mlp((64, 8, 10)), 128, None, 1, (1e-2,), (100,), 100)
    monkeypatch.setattr(module, "TASKS", {"mnist": task})
    monkeypatch.setattr(module, "VALIDATION", 300)
    monkeypatch.setattr(module, "SEEDS", (0, 1))
    monkeypatch.setattr(module, "MEASURES", ("fisher_trace",))
    monkeypatch.setattr(module, "STRENGTHS", {name: values[:2] for name, values in module.STRENGTHS.items()})
    return module


def test_runs_are_kept_and_read_again(example, tmp_path, monkeypatch, capsys):
    threads = torch.get_num_threads()
    published = tmp_path / "table.json"
    arguments = ["mnist", "--data", "digits", "--output", str(tmp_path / "runs")]
    assert example.main([*arguments, "--methods", "base"]) == 0
    assert capsys.readouterr().out == ""
    assert example.main([*arguments, "--publish", str(published)]) == 0
    table = capsys.readouterr().out
    assert len(list((tmp_path / "runs").glob("*.json"))) == 5 * (2 + 2)
    monkeypatch.setattr(example, "execute", None)
    assert example.main(arguments) == 0
    assert capsys.readouterr().out == table
    rows = json.loads(published.read_text())["rows"]
    for method, row in rows.items():
        best = min(row["grid"], key=lambda tried: tried["validation_error"])
        assert (row["strength"], row["lr"]) == (best["strength"], best["lr"])
        assert [r["run"]["seed"] for r in row["runs"]] == [0, 1] and f"| {method} |" in table
    torch.set_num_threads(threads)


def test_no_training_image_is_a_validation_image(example):
    data = example.Data(example.TASKS["mnist"], "digits")
    run = example.Run("mnist", "base", 0.0, 0.1, 3, True, 64, None, 1)
    assert not set(data.pool.tolist()) & set(data.validation.tolist())
    x, _ = data.training(run)
    other, _ = data.training(example.Run("mnist", "SAM", 0.1, 0.1, 3, True, 64, None, 1))
    assert torch.equal(x, other), "methods are paired"


def test_intervals_are_students(example):
    values = [1.0, 2.0, 4.0, 4.5, 7.0]
    mean, width = example.interval(values)
    low, high = stats.t.interval(0.95, 4, loc=mean, scale=stats.sem(values))
    assert (mean - width, mean + width) == pytest.approx((low, high), rel=1e-3)
