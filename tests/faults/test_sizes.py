"""Sizes and shapes that nobody expects: right, or one line, and neither for ever nor with memory for all of it.

A limit on the address space stands for "twice the memory that is needed" where something could ask for terabytes.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from flatminima import Minimum, measure
from flatminima.data import prepare
from flatminima.errors import CheckpointError, DataError, FlatMinimaError
from flatminima.models import mlp
from flatminima.training import load_checkpoint, read_weights
from flatminima.untrusted import Unreadable, parsed
from hostile import Made, call, one_line

FULL = bool(os.environ.get("FLATMINIMA_HOSTILE"))


class Virtual(Dataset[tuple[Tensor, Tensor]]):
    """2^24 + 4 samples, none of which is held: above 2^24 a float32 has no odd numbers."""

    def __len__(self) -> int:
        return (1 << 24) + 4

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return torch.tensor([float(i % 7), float(i % 5)]), torch.tensor(i % 2)


def test_more_samples_than_a_float32_can_count_with_a_limit() -> None:
    found = measure(Minimum(nn.Linear(2, 2).eval(), Virtual(), limit=30), ["margin"])
    assert found.samples == 30 and found["margin"].value is not None


@pytest.mark.skipif(not FULL, reason="a minute; the indices are tested in test_forms_of_data")
def test_more_samples_than_a_float32_can_count() -> None:
    n = (1 << 24) + 4
    x, y = (torch.arange(n) % 7).float()[:, None], torch.arange(n) % 2
    found = measure(Minimum(nn.Linear(1, 2).eval(), (x, y), batch_size=1 << 18), ["margin"])
    assert found.samples == n


def test_a_million_names_in_one_file(tmp_path: Path) -> None:
    """The header of a safetensors file made by hand; the names of the first five are said, not all."""
    count = 1_000_000 if FULL else 50_000
    header = {f"w{i}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(count)}
    text = json.dumps(header, separators=(",", ":")).encode()
    file = tmp_path / "names.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4 * count))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(mlp((4, 2)), file)
    assert f"{count} unexpected" in str(caught.value) and len(str(caught.value)) < 600


def test_ten_thousand_classes() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 10_000).eval(), torch.randn(12, 3)
    y = torch.arange(12) * 833
    found = measure(Minimum(model, (x, y)), ["margin", "fisher_trace", "hessian_trace", "robustness"])
    logits = model(x).detach().double()
    p = logits.softmax(1)
    error = p - torch.nn.functional.one_hot(y, 10_000)
    exact = float((error.square().sum(1) * (1 + x.double().square().sum(1))).mean())
    assert found["fisher_trace"].value == pytest.approx(exact, rel=1e-4)
    assert found["robustness"].value is not None and found["hessian_trace"].value is not None


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 1, 40)])
def test_images_of_one_pixel(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    channels = shape[0]
    model = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    x, y = torch.randn(10, *shape), torch.arange(10) % 2
    table = measure(
        Minimum(model.eval(), (x, y)), ["margin", "fisher_trace", "lipschitz", "path_norm", "hessian_trace"]
    )
    assert table["margin"].value is not None and table["fisher_trace"].value is not None


def itself() -> Any:
    state: dict[str, Any] = {"layer": torch.zeros(2)}
    state["model"] = state
    return state


def deep() -> Any:
    state: dict[str, Any] = {"weight": torch.zeros(2)}
    for _ in range(200):
        state = {"model": state}
    return state


FILES: dict[str, Any] = {
    "a dictionary that holds itself": itself,
    "a deep dictionary": deep,
    "a tensor of 10^12 entries in a few bytes": lambda: {"0.weight": torch.zeros(1).expand(10**6, 10**6)},
    "a nested tensor": lambda: {"0.weight": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])},
    "a tensor without values": lambda: {"0.weight": torch.zeros(2, 2, device="meta")},
    "a quantised tensor": lambda: {"0.weight": torch.quantize_per_tensor(torch.zeros(2, 2), 0.1, 0, torch.qint8)},
    "a sparse tensor": lambda: {"0.weight": torch.eye(2).to_sparse()},
    "no tensor at all": dict,
    "a list": lambda: [torch.zeros(2)],
    "a number": lambda: 7,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_weights_of_odd_shapes_are_one_line(name: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.pt"
    torch.save(FILES[name](), file)
    assert file.stat().st_size < 1_000_000
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(mlp((2, 2)), file)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_a_pipe_is_no_weights_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_weights(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_weights("/dev/zero")


@pytest.mark.parametrize("depth", [2_000, 200_000])
def test_deep_documents(depth: int, tmp_path: Path) -> None:
    (tmp_path / "measures.json").write_text("[" * depth + "]" * depth)
    one_line(call("report", str(tmp_path)), 2)
    (tmp_path / "measures.json").write_text('{"a":' * depth + "1" + "}" * depth)
    one_line(call("report", str(tmp_path)), 2)
    (tmp_path / "certificate.json").write_text('{"a":' * depth + "1" + "}" * depth)
    one_line(call("certify", "--verify", str(tmp_path / "certificate.json"), "--data", "digits"), 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_labels_beyond_every_class(dtype: torch.dtype) -> None:
    y = torch.zeros(6, dtype=torch.int64)
    y[3] = torch.iinfo(dtype).max if dtype != torch.uint64 else -1
    with pytest.raises(FlatMinimaError) as caught:
        measure(Minimum(nn.Linear(2, 3).eval(), (torch.randn(6, 2), y.to(dtype))), ["margin"])
    assert "\n" not in str(caught.value)


def test_expanded_inputs_are_read_as_they_are() -> None:
    """One row that stands for 10^5: no copy of it is made that a machine could not hold."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).eval()
    row = torch.randn(1, 3)
    found = measure(Minimum(model, (row.expand(1000, 3), torch.zeros(1, dtype=torch.int64).expand(1000))), ["margin"])
    with torch.no_grad():
        out = model(row)[0]
    assert found["margin"].value == pytest.approx(float(out[0] - out[1]), abs=1e-5)


BOMBS = {
    "references": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 11)),
    "merges": "a0: &a0 {k: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 11)),
    "itself": "a: &a [1, *a]\n",
    "deep": "a: " + "[" * 5000 + "]" * 5000 + "\n",
    "a date that is none": "a: 2020-99-99\n",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_yaml_text_stands_for_no_large_one(name: str, tmp_path: Path) -> None:
    """A configuration and a data folder's card: a few lines of references were 10^10 entries, and no answer."""
    from flatminima.cli.configuration import read
    from flatminima.data.card import refuse_named_places

    (tmp_path / "config.yaml").write_text(BOMBS[name])
    (tmp_path / "README.md").write_text(f"---\n{BOMBS[name]}---\n")
    with pytest.raises(FlatMinimaError, match=r"cannot be read as \.yaml"):
        read(tmp_path / "config.yaml")
    with pytest.raises(FlatMinimaError, match="no YAML"):
        refuse_named_places(tmp_path)
    (tmp_path / "config.yaml").write_text("a: &a [1, 2]\nb: {c: *a}\nd: {<<: {e: 3}}\n")
    assert read(tmp_path / "config.yaml") == {"a": [1, 2], "b": {"c": [1, 2]}, "d": {"e": 3}}


def test_a_document_that_says_a_thing_twice_is_refused() -> None:
    """Of two risks, a reader that keeps the first shows another certificate than one that keeps the last."""
    with pytest.raises(Unreadable, match="'risk' twice"):
        parsed('{"a": {"risk": 0.1, "b": 1, "risk": 0.9}}')
    assert parsed('{"a": {"risk": 0.1}, "risk": 1}') == {"a": {"risk": 0.1}, "risk": 1}


def test_the_name_that_is_there_twice_is_found_in_time() -> None:
    """Each name was counted among all: 300,000 of them, the last one twice, were 9 10^10 comparisons."""
    names = [f'"{i}": 0' for i in range(300_000)]
    with pytest.raises(Unreadable, match="'299999' twice"):
        parsed("{" + ", ".join([*names, names[-1]]) + "}")


def test_a_table_of_very_many_columns_is_read_in_time(tmp_path: Path) -> None:
    """Names were compared with all before them: a first line of 300,000 was 4.5 10^10 comparisons."""
    from flatminima.data.delimited import read_columns

    (tmp_path / "wide.csv").write_text(",".join(["a"] * 200_000 + ["label"]) + "\n")
    names = list(read_columns(tmp_path / "wide.csv", ","))
    assert names[:3] == ["a", "a.1", "a.2"] and len(set(names)) == 200_001


def test_a_record_is_verified_with_the_limit_of_pixels_that_is_typed(made: Made) -> None:
    """The embedded digits take none, and say so: the option reaches the reader of the data."""
    record = str(made.folder / "certified" / "certificate.json")
    code, said = call("certify", "--verify", record, "--data", "digits", "--max-pixels", "5")
    assert code == 2 and "max-pixels" in said.replace("max_pixels", "max-pixels"), said


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="files with holes")
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "pt", "npz", "safetensors"])
def test_a_file_of_zeros_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    """64 GB that take no room: text was read until memory ran out; torch advised to let the file run code."""
    path = tmp_path / f"x.{kind}"
    with open(path, "wb") as file:
        file.truncate(1 << 36)
    with pytest.raises(DataError) as caught:
        prepare(str(path), "train")
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)
    if kind in ("pt", "safetensors"):
        with pytest.raises(CheckpointError) as refused:
            load_checkpoint(nn.Linear(2, 2), path)
        assert "weights_only" not in str(refused.value)


def test_text_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flatminima import untrusted

    path = tmp_path / "x.csv"
    path.write_text("x,label\n1,0\n2,1\n")
    assert len(prepare(str(path), "train").targets) == 2
    monkeypatch.setattr(untrusted, "_memory", lambda: 10)
    with pytest.raises(DataError, match="more than this machine's memory of 10: give a part of it"):
        prepare(str(path), "train")
