"""Networks of one output on the command line: files give one number a sample, in a column or not."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flatminima import Minimum, measures

CODE = """
import torch
from torch import nn

def column():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
def flat(): return nn.Sequential(column(), nn.Flatten(0))
def three(): return nn.Linear(4, 3)
"""
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
NUMBER = X.sum(1)
FORMS = ("column", "flat", "csv", "integers", "words")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The networks as `one_output`, and every form of the numbers as a file of this name."""
    (tmp_path / "one_output.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    np.savez(tmp_path / "column.npz", x_train=X, y_train=NUMBER[:, None])
    np.savez(tmp_path / "flat.npz", x_train=X, y_train=NUMBER)
    np.savez(tmp_path / "integers.npz", x_train=X, y_train=(NUMBER > 0).astype(int))
    for name, values in (("csv", NUMBER.tolist()), ("words", np.where(NUMBER > 0, "yes", "no").tolist())):
        rows = [",".join(map(repr, x)) + f",{y}" for x, y in zip(X.tolist(), values, strict=True)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,c,d,y", *rows]) + "\n")
    return tmp_path


def asked(folder: Path, form: str, network: str, loss: str) -> list[str]:
    path = folder / (f"{form}.csv" if form in ("csv", "words") else f"{form}.npz")
    arguments = ["measure", "--model", f"one_output:{network}", "--app-dir", str(folder), "--data", str(path)]
    return [*arguments, "--loss", loss, "--measures", "fisher_trace", "--json"]


@pytest.mark.parametrize("network", ["column", "flat"])
@pytest.mark.parametrize("form", FORMS)
def test_one_number_a_sample_is_measured(cli, folder: Path, form: str, network: str) -> None:  # type: ignore[no-untyped-def]
    """Outputs (n, 1) could be measured with no file; outputs (n,) could with some."""
    labels = form in ("integers", "words")
    loss = "binary_cross_entropy" if labels else "mse"
    code, out, err = cli(*asked(folder, form, network, loss))
    assert code == 0, err
    model = getattr(importlib.import_module("one_output"), network)().eval()
    y = torch.from_numpy((NUMBER > 0).astype(np.float32) if labels else NUMBER)
    minimum = Minimum(model, (torch.from_numpy(X), y if network == "flat" else y[:, None]), loss)
    truth = float(measures.fisher_trace(minimum))
    assert json.loads(out)["measures"]["fisher_trace"]["value"] == pytest.approx(truth, rel=1e-5)


def test_nothing_is_broadcast_to_more_outputs(cli, folder: Path) -> None:  # type: ignore[no-untyped-def]
    for form in ("column", "flat"):
        code, _, err = cli(*asked(folder, form, "three", "mse"))
        assert code == 2 and "mse needs equal shapes" in err


def test_a_dead_network_of_one_logit_is_left_out(cli, folder: Path) -> None:  # type: ignore[no-untyped-def]
    """`rank` from files: labels 0 and 1, in one column, which no loss calls labels."""
    module = importlib.import_module("one_output")
    model = module.column()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    y = torch.from_numpy((NUMBER > 0).astype(np.float32))[:, None]
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(torch.from_numpy(X)), y).backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / "good.pt")
    torch.save({name: torch.zeros_like(t) for name, t in model.state_dict().items()}, folder / "dead.pt")
    arguments = asked(folder, "integers", "column", "binary_cross_entropy")[1:]
    code, out, err = cli("rank", str(folder / "dead.pt"), str(folder / "good.pt"), *arguments)
    assert code == 0, err
    found = json.loads(out)["choice"]
    assert found["ship"] == ["good"] and "no better than" in found["candidates"][0]["left_out"]
