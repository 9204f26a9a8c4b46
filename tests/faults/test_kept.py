"""A measurement that is stopped keeps its finished statistics, says so, and the same command goes on with them."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flatminima import Minimum, catalog, measure
from flatminima.cli.output import in_place_of_kept
from flatminima.core import statistic_store
from flatminima.core.statistic_store import ABSENT, FOLDER, Keeper
from flatminima.errors import WriteFailed
from flatminima.io import cannot_write
from flatminima.testing.state import bits
from hostile import MLP, spoken

COMMANDS = {
    "measure": ["measure", *MLP, "--limit", "60", "--subset", "6", "--measures",
                "margin,fisher_trace,hessian_trace,sharpness,hessian_top_eigenvalue"],
    "explain": ["measure", *MLP, "--limit", "60", "--subset", "6", "--explain", "--measures", "margin,frobenius_norm"],
    "landscape": ["landscape", *MLP, "--steps", "5", "--samples", "20"],
}  # fmt: skip
FILES = {"measure": "measures.json", "explain": "measures.json", "landscape": "landscape.json"}


def numbers(document: Any) -> Any:
    """Without seconds, and words that name the folder: passes and notes are those of a run without a stop."""
    if isinstance(document, dict):
        left = ("seconds", "command", "source")
        return {k: numbers(v) for k, v in document.items() if k not in left}
    return [numbers(v) for v in document] if isinstance(document, list) else document


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_was_finished_is_kept_and_used(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert spoken(*COMMANDS[name], "--output", str(whole))[0] == 0
    put, means, done = Keeper.put, "flatminima.landscape.surface._means", [0]

    def one_more() -> None:
        done[0] += 1
        if done[0] == 3:
            os.kill(os.getpid(), number)

    def putting(self: Keeper, key: str, value: Any, work: str = "") -> bool:
        held = put(self, key, value, work)
        one_more()
        return held

    def counting(minimum: Any, indices: Any, real: Any = None) -> Any:
        one_more()
        return real_means(minimum, indices)

    from flatminima.landscape import surface

    real_means = surface._means
    with monkeypatch.context() as patch:
        if name == "landscape":
            patch.setattr(means, counting)
        else:
            patch.setattr(Keeper, "put", putting)
        code, out, err = spoken(*COMMANDS[name], "--output", str(stopped))
    assert code == 128 + number and "Traceback" not in err and out == ""
    assert "finished statistics are kept; the same command goes on from there" in err.splitlines()[-1]
    assert FOLDER in [path.name for path in stopped.iterdir()]
    taken: list[str] = []
    read = Keeper._read

    def reading(self: Keeper, key: str) -> Any:
        found = read(self, key)
        taken.extend([key] if found[0] is not ABSENT and not key.startswith("work") else [])
        return found

    monkeypatch.setattr(Keeper, "_read", reading)
    assert spoken(*COMMANDS[name], "--output", str(stopped))[0] == 0
    assert len(taken) >= (1 if name == "landscape" else 3)
    one, two = (json.loads((folder / FILES[name]).read_text()) for folder in (whole, stopped))
    assert numbers(one) == numbers(two)
    assert not (stopped / FOLDER).exists()


def test_most_statistics_of_the_catalogue_are_kept_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    names = [n for n in catalog.MEASURES if n not in ("distance_from_init",)]
    first = Minimum(model, (x, y))
    with statistic_store.keeping(tmp_path, "asked"):
        table = measure(first, names)
    content, keeper = first.content(), Keeper(tmp_path, "asked")
    kept = {key: keeper.get(f"{content} {key!r}") for key in first}
    held = {key: value for key, value in kept.items() if value is not ABSENT}
    assert len(held) > 0.6 * len(kept), [key for key in kept if key not in held]
    for key, value in held.items():
        assert bits(value) == bits(first[key]), key
    forward, made = Minimum.forward, [0]

    def counted(self: Minimum, inputs: Any) -> Any:
        out = forward(self, inputs)
        made[0] += len(out)
        return out

    monkeypatch.setattr(Minimum, "forward", counted)
    with statistic_store.keeping(tmp_path, "asked"):
        again = measure(Minimum(model, (x, y)), names)
    assert numbers(again.to_dict()) == numbers(table.to_dict())
    assert made[0] / len(x) < 0.7 * table.forward_passes


class Stop(BaseException):
    """As a signal, at a moment of the test's choice."""


class Late(nn.Module):
    """Rows of a later batch reach the weight behind its layer's back: what was made layer by layer is made anew."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if bool((x[:, 0] > 100).any()):
            return nn.functional.linear(hidden, self.last.weight, self.last.bias)
        out: Tensor = self.last(hidden)
        return out


SEVERAL = ["margin", "fisher_trace", "hessian_trace", "sharpness", "robustness", "hessian_top_eigenvalue", "path_norm"]


@pytest.mark.parametrize("kind", ["plain", "whose layers disagree late"])
def test_passes_and_notes_of_a_run_that_went_on_are_those_of_one_without_a_stop(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped once after some of the files that it keeps, and again and again."""
    torch.manual_seed(0)
    model = (Late() if kind != "plain" else nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))).eval()
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    if kind != "plain":
        x[-1, 0] = 200.0
    written, write = [0, 0], Keeper._write

    def writing(self: Keeper, name: str, value: Any, work: str) -> bool:
        held = write(self, name, value, work)
        written[0] += 1
        if written[0] == written[1]:
            raise Stop
        return held

    monkeypatch.setattr(Keeper, "_write", writing)

    def run(folder: Path, stop: int) -> Any:
        written[:] = 0, stop
        with statistic_store.keeping(folder, "asked"):
            try:
                return measure(Minimum(model, (x, y), batch_size=4), SEVERAL)
            except Stop:
                return None

    whole = run(tmp_path / "whole", 0)
    truth, count = numbers(whole.to_dict()), written[0]
    assert count >= 10 and truth["forward_passes"] >= 4
    for stop in range(1, count + 1, 3 if kind == "plain" else 6):
        assert run(tmp_path / str(stop), stop) is None
        found = run(tmp_path / str(stop), 0)
        assert numbers(found.to_dict()) == truth, stop
        assert found.seconds > 0
    found = next(table for i in range(count) if (table := run(tmp_path / "often", 2 if i else 6)) is not None)
    assert numbers(found.to_dict()) == truth


def test_a_damaged_account_takes_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    with statistic_store.keeping(tmp_path, "asked"):
        truth = measure(Minimum(model, (x, y)), ["margin", "fisher_trace"])
    works = [f for f in (tmp_path / FOLDER).iterdir() if "work " in torch.load(f, weights_only=True)["name"]]
    assert works
    for damage in (None, 3, [], ("tuple", [("list", []), 1]), ("tuple", [("list", ["a"]), ("list", [])])):
        for work in works:
            document = torch.load(work, weights_only=True)
            torch.save(document | {"value": damage}, work)
        with statistic_store.keeping(tmp_path, "asked"):
            found = measure(Minimum(model, (x, y)), ["margin", "fisher_trace"])
        assert numbers(found.to_dict()) == numbers(truth.to_dict())


def test_other_weights_data_options_or_commands_take_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    with statistic_store.keeping(tmp_path, "asked"):
        measure(Minimum(model, (x, y)), ["margin"])
    statistics = len(list((tmp_path / FOLDER).iterdir()))
    other = nn.Sequential(nn.Linear(4, 3)).eval()
    worlds = [(other, x, 0, "asked"), (model, x + 1, 0, "asked"), (model, x, 1, "asked"), (model, x, 0, "another")]
    for network, inputs, seed, asked in worlds:
        with statistic_store.keeping(tmp_path, asked):
            keeper = statistic_store.keeper()
            assert keeper is not None
            measure(Minimum(network, (inputs, y), seed=seed), ["margin"])
            before = len(list(keeper.folder.iterdir()))
    assert before == 5 * statistics


def test_damaged_files_are_not_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    with statistic_store.keeping(tmp_path, "asked"):
        truth = measure(Minimum(model, (x, y)), ["margin"])["margin"].value
    files = {file: file.read_bytes() for file in (tmp_path / FOLDER).iterdir()}
    assert files
    for damage in (lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b[:-9], lambda b: b"\x80\x04cos\nsystem\n"):
        for file, whole in files.items():
            file.write_bytes(damage(whole))
        with statistic_store.keeping(tmp_path, "asked"):
            assert measure(Minimum(model, (x, y)), ["margin"])["margin"].value == truth


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_results_are_written_in_place_of_what_was_kept_for_them(number: int, tmp_path: Path) -> None:
    """On a full disk the statistics that were kept took the room of the results that they were kept for."""
    Keeper(tmp_path).put("a statistic", torch.zeros(1000))

    def write() -> str:
        try:
            if (tmp_path / FOLDER).exists():
                raise OSError(number, os.strerror(number))
        except OSError as error:
            raise cannot_write(tmp_path / "measures.json", error) from None
        return "written"

    if number == errno.EIO:
        with pytest.raises(WriteFailed):
            in_place_of_kept(tmp_path, write)
        assert (tmp_path / FOLDER).exists()
    else:
        assert in_place_of_kept(tmp_path, write) == "written"
        assert not (tmp_path / FOLDER).exists()
