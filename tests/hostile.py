"""What the tests of hostile ground share: commands run in this process, what they left behind, damage to it, a watch.

Everything that a command reads again is made once a session, by tiny networks on the embedded digits.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import io
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flatminima.certification.ledger import COMPUTED
from flatminima.cli import main
from flatminima.models import mlp
from flatminima.training import save_checkpoint

MLP = ("--model", "flatminima.models:mlp", "--model-arg", "widths=(64,6,10)", "--data", "digits")
FEW = ("--measures", "margin,pacgen", "--limit", "60")
CERTIFY = ("--limit", "128", "--epochs", "1", "--prior-epochs", "1", "--draws", "4")
STUDY = """
from flatminima.studies import Study
def run(config, sources):
    return {"seed": config["seed"], "note": "text"}
def figure(results):
    from matplotlib.figure import Figure
    return Figure()
STUDY = Study("NAME", "-", "A study", (), lambda scale: [{"seed": i, "word": "a"} for i in range(2)], run,
              lambda results: [], figure, {"smoke": "-", "cpu": "-", "paper": "-"})
"""


@functools.cache
def _once() -> None:
    """Typer builds all commands anew at each call, which is half of a short one."""
    import typer.main

    typer.main.get_command = functools.cache(typer.main.get_command)


def call(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command, run in this process."""
    code, _, said = spoken(*arguments)
    return code, said


def spoken(*arguments: str) -> tuple[int, str, str]:
    """The same with stdout: (code, stdout, stderr)."""
    _once()
    said, result, before = io.StringIO(), io.StringIO(), sys.argv
    COMPUTED.forget()  # as a process of its own
    if arguments[0] == "study":
        sys.modules.pop(Path(arguments[1]).stem, None)  # a process of its own would not have it
    sys.argv = ["flatminima", *map(str, arguments)]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(result):
            try:
                main()
                code: Any = 0
            except SystemExit as stop:
                code = stop.code
    finally:
        sys.argv = before
    return int(code or 0), result.getvalue(), said.getvalue()


def one_line(found: tuple[int, str], *codes: int) -> None:
    """It did what it could, or refused: no traceback, no error that nobody expected."""
    code, said = found
    assert code in (codes or (0, 1, 2, 3)), said
    assert "FLATMINIMA_DEBUG" not in said and "Traceback" not in said, said


@dataclass(frozen=True)
class Made:
    """Results of every command that reads some again, below one folder."""

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> Made:
        made = cls(folder)
        for seed in range(3):
            torch.manual_seed(seed)
            save_checkpoint(mlp((64, 6, 10)), folder / f"{seed}.safetensors")
        torch.save(mlp((64, 6, 10)).state_dict(), folder / "0.pt")
        (folder / "gaps.csv").write_text(
            "checkpoint,gap,width\n" + "".join(f"{i}.safetensors,0.{i + 1},6\n" for i in range(3))
        )
        made.data()
        name = made.study_name
        (folder / f"{name}.py").write_text(STUDY.replace("NAME", name))
        for command in made.commands(folder).values():
            code, said = call(*command)
            assert code == 0, said
        return made

    def data(self) -> None:
        """Samples and a configuration in every format that is a document."""
        x, y = np.arange(24.0).reshape(12, 2), np.arange(12) % 2
        rows = [{"x": row.tolist(), "label": int(label), "text": "a b"} for row, label in zip(x, y, strict=True)]
        np.savez(self.folder / "data.npz", x=x, label=y)
        torch.save({"x": torch.from_numpy(x), "label": torch.from_numpy(y)}, self.folder / "data.pt")
        (self.folder / "data.json").write_text(json.dumps(rows))
        (self.folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (self.folder / "data.csv").write_text("a,b,label\n" + "".join(f"{i},0.5,{i % 2}\n" for i in range(12)))
        (self.folder / "config.json").write_text(json.dumps({"widths": [64, 6, 10], "more": {"a": [1, "b"]}}))
        (self.folder / "config.yaml").write_text("widths: &w [64, 6, 10]\nmore: {again: *w, name: text}\n")
        (self.folder / "config.toml").write_text('widths = [64, 6, 10]\n[more]\nname = "text"\n')

    @property
    def study_name(self) -> str:
        return f"own_{self.folder.name.replace('-', '_')}"

    def commands(self, output: Path) -> dict[str, list[str]]:
        """Each command, with its results in a folder of its name below `output`."""
        networks = [str(self.folder / f"{i}.safetensors") for i in range(3)]
        ranked = ["rank", *networks, *MLP, *FEW, "--subset", "6", "--by", "pacgen", "--gaps", self.folder / "gaps.csv"]
        found: dict[str, list[Any]] = {
            "measured": ["measure", *MLP, *FEW, "--checkpoint", networks[0]],
            "certified": ["certify", *MLP, *CERTIFY],
            "trained": ["train", *MLP, "--limit", "60", "--epochs", "2"],
            "ranked": ranked,
            "drawn": ["landscape", *MLP, "--checkpoint", networks[0], "--steps", "3", "--samples", "9"],
            "tracked": ["train", *MLP, "--limit", "60", "--epochs", "2", "--track", "1"],
            "studied": ["study", self.folder / f"{self.study_name}.py"],
        }
        return {name: [*map(str, words), "--output", str(output / name)] for name, words in found.items()}


@dataclass(frozen=True)
class Reader:
    """A file that a command reads, and the command.

    Args:
        file: below the folder of `Made`, a pattern. command: of `Made.commands`, or a list of words in which FOLDER is
            the copy of that command's folder.
    """

    file: str
    command: str | tuple[str, ...]

    def copied(self, made: Made, folder: Path) -> tuple[Path, list[str]]:
        """The file in a fresh copy below `folder`, and the words of the command that reads it there."""
        top = Path(self.file).parts[0]
        source, target = made.folder / top, folder / top
        if source.is_file():
            shutil.copy(source, target)
        else:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
        file = next(folder.glob(self.file))
        if isinstance(self.command, str):
            return file, made.commands(folder)[self.command]
        named = {"FOLDER": str(target), "MADE": str(made.folder)}
        words = [str(word) for word in self.command]
        return file, [re.sub("FOLDER|MADE", lambda found: named[found[0]], word) for word in words]


VERIFY = ("certify", "--verify", "FOLDER/certificate.json", "--data", "digits")
NETWORKS = ("MADE/0.safetensors", "MADE/1.safetensors", "MADE/2.safetensors")
READERS = {
    "measures.json": Reader("measured/measures.json", ("report", "FOLDER")),
    "certificate.json": Reader("certified/certificate.json", VERIFY),
    "ledger.json": Reader("certified/ledger-*.json", "certified"),
    "run.json": Reader("trained/run.json", "trained"),
    "metrics.jsonl": Reader("trained/metrics.jsonl", "trained"),
    "state.pt": Reader("trained/state.pt", "trained"),
    "ranked table": Reader("ranked/networks/*.json", "ranked"),
    "gaps.csv": Reader("gaps.csv", ("rank", *NETWORKS, *MLP, *FEW, "--gaps", "FOLDER", "--output", "MADE/ranked")),
    "a study's run": Reader("studied/*/runs/*.json", "studied"),
    "results.json": Reader("studied/*/results.json", ("reproduce", "--all", "--show", "--output", "FOLDER")),
    "result.json": Reader("trained/result.json", ("report", "FOLDER")),
    "rank.json": Reader("ranked/rank.json", ("report", "FOLDER")),
    "landscape.json": Reader("drawn/landscape.json", ("report", "FOLDER")),
    "track.jsonl": Reader("tracked/track.jsonl", ("track", "FOLDER")),
    **{f"data.{kind}": Reader(f"data.{kind}", ("measure", *MLP[:-1], "FOLDER", *FEW))
       for kind in ("json", "jsonl", "csv", "npz", "pt")},
    **{f"config.{kind}": Reader(f"config.{kind}", ("measure", *MLP[:2], "--model-config", "FOLDER", *MLP[4:], *FEW))
       for kind in ("json", "yaml", "toml")},
    "weights.safetensors": Reader("0.safetensors", ("measure", *MLP, *FEW, "--checkpoint", "FOLDER")),
    "weights.pt": Reader("0.pt", ("measure", *MLP, *FEW, "--checkpoint", "FOLDER")),
}  # fmt: skip


def places(value: Any, kinds: type | tuple[type, ...] = object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a document there is a value of these kinds."""
    if at and isinstance(value, kinds):
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, kinds, (*at, key))


def at(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value there."""
    document = copy.deepcopy(document)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return document


@dataclass
class Watch:
    """What the process did within the block that hostile text in a file must not make it do."""

    allowed: tuple[str, ...]
    seen: list[str] = field(default_factory=list)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _NEVER or event.startswith(("socket.connect", "socket.getaddrinfo", "socket.gethost", "urllib.")):
            self.seen.append(f"{event}{arguments!r}")
        elif event == "import" and "canary" in str(arguments[0]):
            self.seen.append(f"import {arguments[0]}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if "canary" in path or not path.startswith(self.allowed):
                self.seen.append(f"open {path}")


_NEVER = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn"}
_NEVER |= {"os.startfile", "pty.spawn", "ctypes.dlopen", "webbrowser.open", "ftplib.connect"}
_watching: list[Watch] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for watch in _watching:
        watch.hear(event, arguments)


@contextlib.contextmanager
def watched(*folders: Path) -> Iterator[Watch]:
    """Note imports, processes, sockets, and files outside of the folders and of the installation."""
    if not _installed:
        sys.addaudithook(_hook)  # for the rest of the process: there is no way to remove one
        _installed.append(True)
    roots = {sys.prefix, sys.base_prefix, *(p for p in sys.path if p), "/dev/null", "/dev/urandom", "/proc", "/sys"}
    watch = Watch(tuple(os.path.realpath(root) for root in roots) + tuple(map(os.path.abspath, (*roots, *folders))))
    real = importlib.import_module

    def imported(name: str, package: str | None = None) -> Any:  # which raises no audit event
        watch.hear("import", (name,))
        return real(name, package)

    _watching.append(watch)
    importlib.import_module = imported
    try:
        yield watch
    finally:
        importlib.import_module = real
        _watching.remove(watch)


_installed: list[bool] = []


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A document damaged at one place: other values, other keys, cut, bytes exchanged."""
    way = draw.choice(("value", "value", "value", "gone", "cut", "byte", "byte", "twice", "deep"))
    if way in ("value", "gone", "twice", "deep"):
        try:
            document = json.loads(content)
        except ValueError:
            way = "byte"
        else:
            where = draw.choice(list(places(document)) or [()])
            if where:
                return _changed(document, where, way, draw)
    at_byte = draw.randrange(len(content) + 1)
    if way == "cut":
        return content[:at_byte]
    length = draw.choice((0, 1, 1, 4, 40))
    return content[:at_byte] + draw.randbytes(length) + content[at_byte + draw.choice((0, length, 8)) :]


OTHERS: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 70, 1e308, -1e-320, float("nan"), "", "<b>", "\x1b[2J", "\u202e", "x" * 3000, "../..", [],
    {}, [None], {"a": {}}, [[[]]], "canary:run", "nan", [1, "a"],
)  # fmt: skip


def _changed(document: Any, where: tuple[Any, ...], way: str, draw: random.Random) -> bytes:
    if way == "value":
        return json.dumps(at(document, where, draw.choice(OTHERS))).encode()
    if way == "deep":
        return json.dumps(at(document, where, "DEEP")).replace('"DEEP"', "[" * 4000 + "]" * 4000).encode()
    document = copy.deepcopy(document)
    inner = document
    for key in where[:-1]:
        inner = inner[key]
    if way == "gone":
        del inner[where[-1]]
    elif isinstance(inner, dict):
        inner[f"{where[-1]} "] = inner[where[-1]]
    else:
        inner.append(inner[where[-1]])
    return json.dumps(document).encode()
