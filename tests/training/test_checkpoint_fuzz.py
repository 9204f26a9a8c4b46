"""Damaged and hostile checkpoints: one line that says what is wrong, the model untouched, never another exception."""

from __future__ import annotations

import copy
import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn

from flatminima.errors import CheckpointError
from flatminima.training import load_checkpoint, save_checkpoint

CASES = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    save_checkpoint(network(), path)
    return path.read_bytes()


def survives(path: Path) -> None:
    """Loads, with finite values, or is refused in one line with the model as it was."""
    model = network()
    before = copy.deepcopy(model.state_dict())
    try:
        load_checkpoint(model, path)
    except CheckpointError as error:
        assert "\n" not in str(error) and path.name in str(error)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    else:
        assert all(bool(torch.isfinite(v).all()) for v in model.state_dict().values())


@CASES
@given(data=st.data())
def test_flipped_bytes(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    mutated = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        end = data.draw(st.sampled_from([9, header, len(whole)]))
        mutated[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(bytes(mutated))
    survives(path)


@CASES
@given(cut=st.floats(0, 1))
def test_cut_files(whole: bytes, tmp_path: Path, cut: float) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: int(cut * len(whole))])
    survives(path)


@CASES
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_json_as_a_header(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "json.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    survives(path)


@pytest.mark.parametrize("size", [0, 2**63, 2**40])
def test_headers_that_promise_too_much(tmp_path: Path, size: int) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", size) + b"{}")
    survives(path)


class Payload:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (Path.touch, (Path("owned"),))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.chdir(tmp_path)
    plain, zipped = tmp_path / f"plain{suffix}", tmp_path / f"zipped{suffix}"
    plain.write_bytes(pickle.dumps({"0.weight": Payload()}))
    torch.save({"0.weight": Payload()}, zipped)
    for path in (plain, zipped):
        with pytest.raises(CheckpointError) as refused:
            load_checkpoint(network(), path)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "owned").exists()
