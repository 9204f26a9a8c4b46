"""Damaged files and odd options: whoever reads them says so in one line, or does what can be done.

One harness for every reader and every command. A mutation is made by `random.Random(f"{reader} {number}")`, so its
number is its seed: `mutated(content, Random("run.json 17"))` is number 17 of run.json. FLATMINIMA_MUTATIONS says how
many there are of each format (21 here, 504 in all), FLATMINIMA_FIRST the number of the first.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatminima.certification.ledger import Ledger
from flatminima.cli import app as command_line
from flatminima.cli.candidates import read_table
from flatminima.cli.configuration import arguments_of
from flatminima.cli.gaps import read_gaps
from flatminima.data import prepare
from flatminima.errors import FlatMinimaError
from flatminima.models import mlp
from flatminima.ranking import order
from flatminima.training import load_checkpoint
from hostile import MLP, READERS, Made, call, mutated, one_line

MUTATIONS = int(os.environ.get("FLATMINIMA_MUTATIONS", "21"))
FIRST = int(os.environ.get("FLATMINIMA_FIRST", "0"))


def _weights(path: Path) -> None:
    load_checkpoint(mlp((64, 6, 10)), path)


def _ledger(path: Path) -> None:
    ledger = Ledger(path, path.stem.split("-")[1])
    ledger.take("new", None, "a certificate")


def _ranked(path: Path) -> None:
    found = read_table(path)
    if found is not None:
        order([found, found], ["a", "b"], None, seed=0)


def _data(path: Path) -> None:
    prepare(str(path), "train")


def _configuration(path: Path) -> None:
    arguments_of(mlp, path)
    arguments_of(lambda config: config, path)


# Readers that can be called without their command, which is then not run.
ALONE: dict[str, Callable[[Path], object]] = {
    "weights.safetensors": _weights,
    "weights.pt": _weights,
    "ledger.json": _ledger,
    "ranked table": _ranked,
    **{f"data.{kind}": _data for kind in ("json", "jsonl", "csv", "npz", "pt")},
    **{f"config.{kind}": _configuration for kind in ("json", "yaml", "toml")},
    "gaps.csv": lambda path: read_gaps(path, [Path(f"{i}.safetensors") for i in range(3)]),
}


def tried(name: str, number: int, made: Made, folder: Path) -> None:
    """One mutation of one format."""
    reader = READERS[name]
    draw = random.Random(f"{name} {number}")
    file, command = reader.copied(made, folder)
    file.write_bytes(mutated(file.read_bytes(), draw))
    if name in ALONE:
        try:
            ALONE[name](file)
        except FlatMinimaError as error:
            assert "\n" not in str(error)
    else:
        one_line(call(*command))


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, made: Made, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    failed = []
    for number in range(FIRST, FIRST + MUTATIONS):
        try:
            tried(name, number, made, tmp_path)
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            failed.append(f"{name} {number}: {type(error).__name__}: {error}"[:400])
    record_property("tried", MUTATIONS)
    record_property("failed", len(failed))
    assert not failed, "\n".join(failed[:20])


@pytest.mark.parametrize("epochs", [None, "many", [1], {}, float("nan")])
def test_epochs_that_are_no_number(epochs: Any, made: Made, tmp_path: Path) -> None:
    """Numbers 278 and 493 of run.json: what differs in `epochs` alone was compared with the epochs that are wanted."""
    file, command = READERS["run.json"].copied(made, tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"epochs": epochs}))
    one_line(call(*command), 2)


@pytest.mark.parametrize("number", [27, 144, 212, 263])
def test_rows_of_a_log_that_lack_something(number: int, made: Made, tmp_path: Path) -> None:
    """Mutations of track.jsonl that ended in a KeyError."""
    tried("track.jsonl", number, made, tmp_path)


ODD = (
    "", " ", "-1", "0", "nan", "inf", "1e999", "9" * 30, "abc", "\x1b[2J", "\u202e", "../..", "/dev/null", "a=b", ",",
    ":", "margin,margin", "os:system", "--", "-", "x" * 5000, "\udcff", "train[:5]", "[", "{}", "true",
)  # fmt: skip
GIVEN = {
    "measure": [*MLP, "--limit", "20", "--measures", "margin"],
    "certify": [*MLP, "--limit", "64", "--epochs", "0", "--prior-epochs", "1", "--draws", "2"],
    "train": [*MLP, "--limit", "20", "--epochs", "1"],
    "landscape": [*MLP, "--limit", "20", "--steps", "3", "--samples", "5"],
    "rank": ["no.safetensors", "nor.safetensors", *MLP],
    "report": ["."],
    "list": [],
    "doctor": ["--nothing"],
    "demo": ["--nothing"],
    "reproduce": ["wang-toy", "--dry-run"],
    "study": ["none.py"],
    "track": ["none.jsonl"],
    "card": ["none"],
}  # what makes a command end soon; no option of it is exchanged


def options_of(name: str) -> list[Any]:
    import typer

    command = typer.main.get_command(command_line.app).commands[name]  # type: ignore[attr-defined]
    return [p for p in command.params if p.opts and p.opts[0].startswith("-") and p.opts[0] != "--help"]


@pytest.mark.parametrize("name", GIVEN)
def test_odd_options(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One or two options of a command with values that nobody means."""
    monkeypatch.chdir(tmp_path)
    options = options_of(name)
    for number in range(FIRST, FIRST + max(6, MUTATIONS // 2)):
        draw = random.Random(f"{name} {number}")
        words = [name, *GIVEN[name]]
        for option in draw.sample(options, min(len(options), draw.choice((1, 1, 2)))):
            words += [option.opts[0]] if option.is_flag else [option.opts[0], draw.choice(ODD)]
        if name in ("measure", "certify", "train", "landscape") and "--output" not in words:
            words += ["--output", str(tmp_path / "out" / str(number))]
        try:
            one_line(call(*words))
        except BaseException as error:
            raise AssertionError(f"{number}: {words!r}: {type(error).__name__}: {error}") from error


def test_every_command_is_tried() -> None:
    import typer

    assert set(GIVEN) == set(typer.main.get_command(command_line.app).commands)  # type: ignore[attr-defined]


def test_mutations_are_what_their_numbers_say() -> None:
    content = b'{"a": [1, 2], "b": "text"}'
    made = [mutated(content, random.Random(f"x {i}")) for i in range(40)]
    assert made == [mutated(content, random.Random(f"x {i}")) for i in range(40)]
    assert len(set(made)) > 20
