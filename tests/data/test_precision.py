"""Numbers that float32 or int64 does not hold are refused with their row: they became Inf, wrapped, or a raw error."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flatminima.data import prepare
from flatminima.errors import DataError


def written(folder: Path, kind: str, x: Any, y: Any) -> Path:
    path = folder / f"data.{kind}"
    if kind == "npz":
        np.savez(path, x=np.asarray(x), label=np.asarray(y))
    elif kind == "pt":
        torch.save({"x": torch.as_tensor(x), "label": torch.as_tensor(y)}, path)
    elif kind == "csv":
        rows = "".join(f"{a},{b}\n" for a, b in zip(x, y, strict=True))
        path.write_text(f"a,label\n{rows}")
    else:
        rows = [{"x": a, "label": b} for a, b in zip(x, y, strict=True)]
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    return path


HUGE = 1e300
CASES: dict[str, tuple[str, Any, Any, str]] = {
    "an input beyond float32": ("npz", [[1.0], [HUGE]], [0, 1], "row 1 .*1e\\+300 in 'x', beyond float32's"),
    "the same in json": ("json", [[1.0, 2.0], [3.0, -HUGE]], [0, 1], "row 1 .*-1e\\+300 in 'x', beyond"),
    "the same in json lines": ("jsonl", [[1.0, 2.0], [3.0, HUGE]], [0, 1], "row 1 .*beyond float32's"),
    "the same in csv": ("csv", [HUGE, 1.0], [0, 1], "row 0 .*1e\\+300 in 'a', beyond float32's"),
    "digits without end in csv": ("csv", [10**400, 1.0], [0, 1], "row 0 .* in 'a'"),
    "the same in a tensor": ("pt", [[1.0], [2.0]], [0, 1], ""),
    "a label beyond int64": ("json", [[1.0], [2.0]], [0, 1 << 70], "row 1 .*1.18e\\+21 in 'label', which is no class"),
    "a label of uint64": ("npz", [[1.0], [2.0]], np.array([0, 1 << 63], np.uint64), "9.22e\\+18 in 'label'"),
    "a label that is a large float": ("npz", [[1.0], [2.0]], [0.0, HUGE], "1e\\+300 in 'label', which is no class"),
    "a label that float64 does not hold": ("csv", [1.0, 2.0], [0.0, 2.0**60], "1.15e\\+18 in 'label'"),
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_that_the_network_would_not_get_as_they_are(name: str, tmp_path: Path) -> None:
    kind, x, y, said = CASES[name]
    if kind == "pt":
        x = torch.tensor([[1.0], [HUGE]], dtype=torch.float64)
        said = "row 1 .*1e\\+300 in 'x', beyond float32's"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=said):
            prepare(str(written(tmp_path, kind, x, y)), "train")


def test_tokens_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    for tokens in (np.array([[1.5, 2.0]] * 2), np.array([[1 << 63, 2]] * 2, np.uint64)):
        np.savez(path, input_ids=tokens, label=np.arange(2))
        with pytest.raises(DataError, match=r"row 0 .*in 'input_ids', which is no class and no token"):
            prepare(str(path), "train")


def test_what_is_held_is_kept(tmp_path: Path) -> None:
    largest = float(np.finfo(np.float32).max)
    found = prepare(str(written(tmp_path, "npz", [[largest], [1e-300]], np.array([0.0, 1.0]))), "train")
    assert found.inputs.flatten().tolist() == [largest, 0.0] and found.targets.tolist() == [0, 1]
    regression = written(tmp_path, "npz", [[1.0], [2.0]], np.array([0.5, HUGE]))
    with pytest.raises(DataError, match=r"1e\+300 in 'label', beyond float32's"):
        prepare(str(regression), "train", targets="numbers")
