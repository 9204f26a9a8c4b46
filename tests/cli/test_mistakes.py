"""Mistakes that beginners make with data and models of their own: one line each, in the command line's words, exit
2."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flatminima.cli.app import main

MODELS = """
import torch
def net(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
def table(): return torch.nn.Linear(2, 2)
def load(): return torch.randn(20, 12), torch.arange(20) % 3
def none(split): return None
def shuffled(split):
    data = torch.utils.data.TensorDataset(torch.randn(20, 12), torch.arange(20) % 3)
    return torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
def words(split): return [("text", 0)] * 6
"""
CSV = "x1,x2,label\n" + "".join(f"{i},{i % 3},{'no' if i % 2 else 'yes'}\n" for i in range(12))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(MODELS)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 2, 2, 3), dtype=np.uint8), np.arange(12) % 3
    np.savez("good.npz", x=images, y=labels)
    np.savez("several.npz", picture=images, age=np.arange(12.0), label=labels)
    np.savez("short.npz", x=images, y=labels[:5])
    np.savez("open.npz", x=rng.integers(0, 256, (12, 3, 4, 1), dtype=np.uint8), y=labels)
    np.savez("counted.npz", x=images, y=labels + 1)
    np.savez("soft.npz", x=images, y=rng.dirichlet(np.ones(3), 12))
    np.savez("hidden.npz", x=images, y=np.full(12, -1))
    np.savez("nan.npz", x=np.full((12, 12), np.nan), y=labels)
    np.save("one.npy", images)
    Path("good.csv").write_text(CSV)
    Path("named.csv").write_text(CSV.replace("x2", "name").replace(",1,", ",bob,"))
    Path("gap.csv").write_text(CSV.replace("3,0,", ",0,"))
    Path("lost.csv").write_text(CSV.replace("label", "outcome"))
    Path("bare.csv").write_text("1,2,0\n3,4,1\n")
    Path("semicolon.csv").write_text(CSV.replace(",", ";"))
    Path("price.csv").write_text("x1,x2,label\n1,2,3.5\n2,3,4.25\n")
    Path("data.xlsx").write_bytes(b"PK")
    Path("broken.jsonl").write_text('{"x": [1, 2], "label": 0}\n{"x": [1, 2], "label"\n')
    torch.save(torch.nn.Linear(2, 2), "model.pt")
    torch.save(torch.randn(4, 2), "tensor.pt")
    return tmp_path


@pytest.fixture
def cli(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flatminima", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


NET, TABLE = ["measure", "--measures", "margin", "--model", "mine:net", "--app-dir", "."], "mine:table"
# ruff: noqa: E501
MISTAKES = [
    ("a file that is not there", [*NET, "--data", "god.npz"], "no file god.npz for --data; check the path"),
    ("a folder that is not there", [*NET, "--data", "./images"], "no folder ./images for --data; check the path"),
    ("a format that is not read", [*NET, "--data", "data.xlsx"], "data.xlsx is a .xlsx file: data is read from .npz"),
    ("inputs without labels", [*NET, "--data", "one.npy"], "put inputs and labels in one file, numpy.savez"),
    ("a tensor without labels", [*NET, "--data", "tensor.pt"], "save inputs and labels together, torch.save((x, y), path)"),
    ("a model where data is due", [*NET, "--data", "model.pt"], "loading it could run code: save tensors"),
    ("lengths that differ", [*NET, "--data", "short.npz"], "columns of different lengths (x 12, y 5)"),
    ("channels first or last", [*NET, "--data", "open.npz"], "pass --layout chw or --layout hwc"),
    ("labels from 1", [*NET, "--data", "counted.npz"], "label 3"),
    ("soft labels", [*NET, "--data", "soft.npz"], "not one class: pass --loss mse"),
    ("labels that are hidden", [*NET, "--data", "hidden.npz"], "row 0 of hidden.npz train has no label"),
    ("missing pixels", [*NET, "--data", "nan.npz"], "row 0 of nan.npz train has NaN or Inf in 'x'"),
    ("a column of text", [*NET, "--data", "named.csv"], "leave it out: pass --columns x1"),
    ("a column of text that is asked for", [*NET, "--data", "named.csv", "--columns", "name,x1"], "not a number: encode it, or leave it out: pass --columns x1"),
    ("only a column of text", [*NET, "--data", "named.csv", "--columns", "name"], "not a number: encode it as numbers"),
    ("an image among the columns of a table", [*NET, "--data", "several.npz", "--columns", "age,picture"], "by a semicolon: pass --columns 'picture;age'"),
    ("a column that is not there", [*NET, "--data", "good.csv", "--columns", "x1,x3"], "unknown column 'x3'"),
    ("an empty cell", [*NET, "--data", "gap.csv"], "row 3 of gap.csv train has no value in 'x1'"),
    ("no column called label", [*NET, "--data", "lost.csv"], "(columns x1, x2, outcome): pass --label-column"),
    ("a label column misspelt", [*NET, "--data", "lost.csv", "--label-column", "outcom"], "did you mean 'outcome'"),
    ("no line of names", [*NET, "--data", "bare.csv"], "holds numbers, not names of columns"),
    ("semicolons", [*NET, "--data", "semicolon.csv"], "separate its columns by commas"),
    ("prices as classes", [*NET, "--data", "price.csv"], "a fraction and no class: pass --loss mse for regression"),
    ("a broken line", [*NET, "--data", "broken.jsonl"], "line 2 of broken.jsonl is no JSON"),
    ("a split that is not there", [*NET, "--data", "good.npz", "--split", "tset"], "unknown split 'tset'"),
    ("classes that are not all", [*NET, "--data", "good.csv", "--classes", "yes,nope"], "pass --classes, every name in order"),
    ("a mean without a deviation", [*NET, "--data", "good.npz", "--mean", "0.5"], "--mean and --std go together"),
    ("a mean that is no number", [*NET, "--data", "good.npz", "--mean", "a", "--std", "1"], "got --mean a; expected a number"),
    ("three means for one channel", [*NET, "--data", "good.csv", "--scaling", "imagenet"], "has 2 channels"),
    ("inputs of another size", [*NET[:4], TABLE, *NET[5:], "--data", "good.npz"], "got an output of shape (3, 2, 2) a sample; cross_entropy needs logits"),
    ("no data at all", NET, "measure needs --data, the samples that the network was trained on, or --no-data"),
    ("data that is not needed", [*NET[:1], *NET[3:], "--no-data", "--measures", "margin"], "margin cannot be measured with"),
    ("a function that does not exist", [*NET, "--data", "mine:laod"], "has no 'laod': did you mean 'load'?"),
    ("a function without splits", [*NET, "--data", "mine:load", "--split", "test"], "takes no argument split"),
    ("a function that returns nothing", [*NET, "--data", "mine:none"], "it must return (inputs, targets)"),
    ("a loader that shuffles", [*NET, "--data", "mine:shuffled"], "build it with shuffle=False"),
    ("text for a network of numbers", [*NET, "--data", "mine:words"], "got an input of type"),
    ("a file for a module", ["measure", "--model", "nets.py:net", "--data", "digits"], "no file nets.py for --model nets.py:net"),
    ("a configuration that is not there", [*NET, "--data", "digits", "--model-config", "c.json"], "no file c.json for --model-config"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "says"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_answered_in_one_line(
    cli: Callable[..., tuple[int, str, str]], arguments: list[str], says: str
) -> None:
    """Exit code 2, nothing on stdout, the last line says what to do; no traceback, no name of a Python argument."""
    code, out, err = cli(*arguments)
    line = err.strip().splitlines()[-1]
    assert (code, out) == (2, ""), err
    assert says in line and line.startswith("flatminima"), err
    assert "Traceback" not in err and len(line) < 330
    assert not any(word in line for word in ("label_column", "image_column", "targets=", "columns=", "layout=")), line


def test_there_are_twenty() -> None:
    assert len(MISTAKES) >= 20


def test_what_was_understood_is_said_in_one_line(cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = cli(*NET, "--data", "good.npz", "--json")
    assert code == 0, err
    assert "data: 12 images 2x2x3, 3 classes, scaled by 1/255" in err
    assert json.loads(out)["samples"] == 12
