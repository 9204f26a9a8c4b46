"""The doctor: what it says of this machine is true, and of machines that are broken in known ways."""

from __future__ import annotations

import contextlib
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from flatminima import doctor
from flatminima.cli.doctor import BROKEN, doctor as command
from flatminima.core.minimum import Minimum
from flatminima.statistics import Gram


def by_name(findings: Any) -> dict[str, doctor.Examination]:
    return {f.what: f for f in findings}


def test_here() -> None:
    state = torch.get_rng_state()
    found = by_name(doctor.examine())
    assert found["torch"].found == torch.__version__
    assert found["measures on cpu"].status == "works"
    assert found["attention, second derivative"].status == "works"
    assert not [f for f in found.values() if f.status == "broken"]
    assert all(f.do for f in found.values() if f.status == "caution")
    assert torch.equal(torch.get_rng_state(), state)


def test_it_compares_with_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is wrong by a percent, or raises, is named with the way out."""
    right = Minimum.__getitem__

    def wrong(self: Minimum, key: Any) -> Any:
        value = right(self, key)
        return value if isinstance(key, Gram) else 1.01 * value

    monkeypatch.setattr(Minimum, "__getitem__", wrong)
    found = by_name(doctor.devices())["measures on cpu"]
    assert (found.status, found.do) == ("broken", "use --device cpu") and "off by 1.0e-02" in found.found

    def failing(self: Minimum, key: Any) -> Any:
        raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr(Minimum, "__getitem__", failing)
    assert by_name(doctor.devices())["measures on cpu"].found == "no kernel image"


def test_a_torchvision_of_another_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Installed, and its import fails as PyPI's does beside a CPU torch; the import is tried for real."""
    (tmp_path / "torchvision").mkdir()
    broken = tmp_path / "torchvision/__init__.py"
    broken.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.99" if name == "torchvision" else real(name))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = doctor.torchvision()
    assert found.status == "broken" and "nms does not exist" in found.found and "pip uninstall" in found.do
    broken.write_text("")
    (found,) = doctor.torchvision()
    assert found.status == "works"


def test_versions_that_are_too_old_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["torch>=2.6", "numpy>=1.26", "nothing-of-the-kind>=1", "pytest>=8; extra == 'test'"]
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.5.1+cpu" if name == "torch" else real(name))
    found = by_name(doctor.examined_versions())
    assert found["torch"].status == "broken" and found["torch"].do == "pip install -U 'torch>=2.6'"
    assert found["numpy"].status == "works"
    assert found["nothing-of-the-kind"].found == "not installed"
    assert "pytest" not in found


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    for used, status in ((1, "works"), (2, "works"), (64, "caution")):
        monkeypatch.setattr(torch, "get_num_threads", lambda used=used: used)
        (found,) = doctor.threads()
        assert found.status == status
    assert "OMP_NUM_THREADS=2" in found.do


def test_attention_without_a_second_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that no longer chooses the kernel that has one."""
    monkeypatch.setattr(doctor, "differentiable", lambda model: contextlib.nullcontext())

    def fused(*args: Any) -> Any:
        raise NotImplementedError("derivative is not implemented")

    monkeypatch.setattr(doctor, "scaled_dot_product_attention", fused)
    (found,) = doctor.attention()
    assert found.status == "broken" and "not implemented" in found.found


def test_a_trial_that_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Any:
        raise ValueError("boom\nagain")

    monkeypatch.setattr(doctor, "threads", failing)
    monkeypatch.setattr(doctor, "torchvision", lambda: [])
    found = by_name(doctor.examine())["failing"]
    assert (found.status, found.found) == ("broken", "boom again")


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fine = doctor.Examination("a", "works", "1.0")
    monkeypatch.setattr(doctor, "examine", lambda: [fine])
    command(as_json=False)
    assert capsys.readouterr().out == "ok  a: 1.0\n\nNothing is broken.\n"
    monkeypatch.setattr(doctor, "examine", lambda: [fine, doctor.Examination("b", "broken", "no", "mend it")])
    for as_json in (False, True):
        with pytest.raises(typer.Exit) as stop:
            command(as_json=as_json)
        assert stop.value.exit_code == BROKEN
        printed = capsys.readouterr().out
        if as_json:
            assert json.loads(printed)["broken"] == ["b"]
        else:
            assert " X  b: no\n      -> mend it\n" in printed and "b broken" in printed


def test_an_import_is_tried_in_a_process_of_its_own() -> None:
    assert doctor.imports_in_a_process("import json") is None
    assert "No module named 'nothing_of_the_kind'" in str(doctor.imports_in_a_process("import nothing_of_the_kind"))
    assert "nothing_of_the_kind" not in sys.modules
