"""Weights to disk and back; every broken, foreign or hostile file is one line and leaves the model alone."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from flatminima.errors import CheckpointError, WriteFailed
from flatminima.models import build
from flatminima.training import load_checkpoint, read_weights, save_checkpoint, write_weights


def model(seed: int = 0) -> nn.Module:
    """BatchNorm gives buffers, one of them an integer."""
    return build("resnet20", seed=seed, depth=8, channels=1)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


@contextmanager
def refused(net: nn.Module, match: str) -> Iterator[None]:
    """The block raises one line that matches, and the model is bit for bit what it was."""
    before = state(net)
    with pytest.raises(CheckpointError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert equal(state(net), before)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    source, target = model(0), model(1)
    source.norm.running_mean.fill_(0.25)  # type: ignore[union-attr,operator]
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(source.state_dict(), path)
    else:
        save_checkpoint(source, path, {"scaling": "unit"})
        with safetensors.safe_open(path, "pt") as handle:
            assert handle.metadata() == {"format": "pt", "scaling": "unit"}
    assert load_checkpoint(target, path) == ()
    assert equal(state(target), state(source))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    """safetensors' own save_file raises for them."""
    source, target = Tied(), Tied()
    path = tmp_path / "tied.safetensors"
    save_checkpoint(source, path)
    assert list(read_weights(path)) == ["embedding.weight"]
    load_checkpoint(target, path)
    assert target.head.weight is target.embedding.weight
    assert target.head.weight.equal(source.head.weight)
    safetensors.torch.save_model(source, str(tmp_path / "theirs.safetensors"))
    load_checkpoint(Tied(), tmp_path / "theirs.safetensors")
    torch.save(source.state_dict(), tmp_path / "both.pt")
    load_checkpoint(Tied(), tmp_path / "both.pt")


def test_views_and_other_strides_are_written(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    write_weights({"whole": base, "part": base[1:], "turned": base.t()}, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    assert found["part"].equal(base[1:]) and found["turned"].equal(base.t())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_prefixes_are_stripped_with_a_note(tmp_path: Path, prefix: str) -> None:
    source, target = model(0), model(1)
    torch.save({f"{prefix}{name}": value for name, value in state(source).items()}, tmp_path / "w.pt")
    notes = load_checkpoint(target, tmp_path / "w.pt")
    assert equal(state(target), state(source))
    assert len(notes) == prefix.count(".") and all("stripped the prefix" in note for note in notes)


def test_a_wrapped_model_takes_and_gives_plain_names(tmp_path: Path) -> None:
    source = model(0)
    wrapped = nn.DataParallel(model(1))
    save_checkpoint(source, tmp_path / "plain.safetensors")
    load_checkpoint(wrapped, tmp_path / "plain.safetensors")
    assert equal(state(wrapped.module), state(source))
    save_checkpoint(wrapped, tmp_path / "again.safetensors")
    assert equal(read_weights(tmp_path / "again.safetensors"), read_weights(tmp_path / "plain.safetensors"))


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_state_dictionaries_one_level_down(tmp_path: Path, key: str) -> None:
    source, target = model(0), model(1)
    torch.save({"epoch": 3, key: source.state_dict(), "optimizer": {"lr": 0.1}}, tmp_path / "w.pth")
    load_checkpoint(target, tmp_path / "w.pth")
    assert equal(state(target), state(source))


def test_misfits_list_the_first_five_of_each_kind(tmp_path: Path) -> None:
    weights = state(model())
    weights["fc.weight"] = weights["fc.weight"].t()
    weights["fc.bias"] = weights["fc.bias"].long()
    removed = [name for name in weights if name.startswith("body.0")][:7]
    for name in removed:
        if not name.endswith("num_batches_tracked"):
            del weights[name]
    weights["stranger"] = torch.zeros(1)
    torch.save(weights, tmp_path / "w.pt")
    target = model(1)
    with refused(target, "does not fit the model: 6 missing: body.0.*, ...; 1 unexpected: stranger; 2 of "):
        load_checkpoint(target, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(target, tmp_path / "w.pt")
    assert "fc.weight (file float32 [64, 10], model float32 [10, 64])" in str(caught.value)
    assert "fc.bias (file int64 [10], model float32 [10])" in str(caught.value)
    assert removed[0] in str(caught.value)


def test_old_files_without_batch_counters_load(tmp_path: Path) -> None:
    weights = {name: value for name, value in state(model()).items() if not name.endswith("_tracked")}
    torch.save(weights, tmp_path / "w.pt")
    load_checkpoint(model(1), tmp_path / "w.pt")


def test_other_precisions_are_converted_with_a_note(tmp_path: Path) -> None:
    weights = {name: v.half() if v.is_floating_point() else v for name, v in state(model()).items()}
    torch.save(weights, tmp_path / "w.pt")
    target = model(1)
    assert load_checkpoint(target, tmp_path / "w.pt") == ("converted float16 to float32",)
    assert target.fc.weight.equal(weights["fc.weight"].float())  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    weights = state(model())
    weights["norm.running_var"][3] = value
    torch.save(weights, tmp_path / "w.pt")
    target = model(1)
    with refused(target, "1 of 64 values of norm.running_var are NaN or infinite"):
        load_checkpoint(target, tmp_path / "w.pt")


def test_a_pickled_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(model(), tmp_path / "whole.pt")
    target = model(1)
    with refused(target, r"refused: it holds the Python object flatminima.*torch.save\(model.state_dict\(\)"):
        load_checkpoint(target, tmp_path / "whole.pt")


@pytest.mark.parametrize("way", ["zip", "legacy", "pickle", "nested"])
@pytest.mark.parametrize("forced", [False, True])
def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, forced: bool) -> None:
    """The canary is a folder that unpickling would make; also with torch's own way round set."""
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    evil = {"state_dict": {**state(model()), "x": Canary(canary)}} if way == "nested" else Canary(canary)
    if way == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=way != "legacy")
    target = model(1)
    with refused(target, "is refused|not a weights file"):
        load_checkpoint(target, path)
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / "w"
    if kind == "safetensors":
        save_checkpoint(model(), path)
    else:
        torch.save(state(model()), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    target = model(1)
    with refused(target, "damaged"):
        load_checkpoint(target, path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "looks like a web page"),
        (b"<html>404</html>", "looks like a web page"),
        (b'{"metadata": {}, "weight_map": {}}', "is JSON"),
        (b"just some text that somebody wrote", "damaged"),
        (b"\xff" * 8 + b"{" + b"x" * 50, "damaged or incomplete"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    target = model(1)
    with refused(target, match):
        load_checkpoint(target, path)


@pytest.mark.parametrize(
    ("held", "match"),
    [
        ([torch.zeros(2)], "holds a list"),
        (torch.zeros(2), "holds a Tensor"),
        ({}, "an empty dictionary"),
        ({"lr": 0.1, "w": torch.zeros(2)}, "holds lr beside"),
        ({"state_dict": {}}, "an empty dictionary"),
        ({1: torch.zeros(2)}, "unnamed tensors"),
    ],
)
def test_torch_files_without_a_state_dictionary(tmp_path: Path, held: object, match: str) -> None:
    torch.save(held, tmp_path / "w.pt")
    target = model(1)
    with refused(target, match):
        load_checkpoint(target, tmp_path / "w.pt")


def test_torchscript_is_not_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "s.pt"))
    target = model(1)
    with refused(target, "TorchScript"):
        load_checkpoint(target, tmp_path / "s.pt")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    target = model(1)
    with refused(target, "no such file"):
        load_checkpoint(target, tmp_path / "nothing.pt")
    with refused(target, "is a folder"):
        load_checkpoint(target, tmp_path)


def test_models_that_cannot_be_filled(tmp_path: Path) -> None:
    save_checkpoint(model(), tmp_path / "w.safetensors")
    with torch.device("meta"):
        empty = build("resnet20", depth=8, channels=1)
    with pytest.raises(CheckpointError, match="meta device"):
        load_checkpoint(empty, tmp_path / "w.safetensors")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_checkpoint(model(0), path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteFailed, match="No space left on device"):
        save_checkpoint(model(1), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(CheckpointError, match="No such file"):
        save_checkpoint(model(1), tmp_path / "absent" / "w.safetensors")


def test_names_that_really_contain_a_prefix_are_kept(tmp_path: Path) -> None:
    """A submodule called `module` beside others is no wrapper."""
    net = nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    save_checkpoint(net, tmp_path / "w.safetensors")
    assert load_checkpoint(net, tmp_path / "w.safetensors") == ()
    assert "module.weight" in read_weights(tmp_path / "w.safetensors")
