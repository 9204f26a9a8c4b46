"""The comparison on the half scale trains what the study trains, and tests what validation has chosen."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from flatminima.studies import wang_pertopt


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    yield importlib.import_module("compare_half")
    for name in ("compare_half", "timing"):
        sys.modules.pop(name, None)


@pytest.fixture
def small(script, monkeypatch, tmp_path):
    """The study's smoke scale, with images of its own for each seed as at its half scale."""
    config = {key: v for key, v in script.shared("smoke").items()} | {"fresh_data": True, "epochs": 1}
    monkeypatch.setattr(script, "shared", lambda: config)
    monkeypatch.setattr(script, "SEEDS", range(2))
    monkeypatch.setattr(script, "TUNED", range(1))
    monkeypatch.setattr(script, "MEASURES", ("fisher_trace",))
    monkeypatch.setattr(script, "MEASURED", 40)
    monkeypatch.setattr(script, "STORED", tmp_path / "stored.json")
    return config


@pytest.mark.parametrize(
    ("name", "strength", "of"),
    [
        ("base", 0.0, {"method": "base"}),
        ("dropout", 0.3, {"method": "dropout", "rate": 0.3}),
        ("PertOPT", 0.1, {"method": "PertOPT", "gamma": 0.1, "eta": 0.01}),
    ],
)
def test_its_runs_are_the_studys(script, small, name, strength, of):
    torch.set_num_threads(1)
    expected = wang_pertopt.run({**small, "seed": 1, **of}, {"digits": "digits"})
    model, found = script.trained(small, name, strength, 1, script.Data(small, "digits", 1), batch=32)
    for key in ("train_loss", "train_error", "validation_error"):
        assert found[key] == expected[key], key
    assert script.tested(model, script.Data(small, "digits", 1), 1)["test_error"] == expected["test_error"]


def test_runs_are_kept_and_the_table_is_stored(script, small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "find", lambda names, data: {"cifar10": "digits"})
    monkeypatch.setattr(script, "STRENGTHS", {"base": (0.0,), "SAM": (0.05, 5.0)})
    assert script.main([str(tmp_path / "runs"), "--data", "x"]) == 0
    table = capsys.readouterr().out
    rows = json.loads((tmp_path / "stored.json").read_text())["rows"]
    errors = rows["SAM"]["validation"]
    assert rows["SAM"]["strength"] == min((0.05, 5.0), key=lambda s: errors[f"{s:g}"])
    assert len(rows["SAM"]["runs"]) == 2 and len(list((tmp_path / "runs").glob("*.test.json"))) == 4
    monkeypatch.setattr(script, "trained", None)
    assert script.main([str(tmp_path / "runs"), "--data", "x"]) == 0
    assert capsys.readouterr().out == table
    assert script.main(["--show"]) == 0 and capsys.readouterr().out == table
