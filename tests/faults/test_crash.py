"""A crash, a full disk or a failing one at every write: the same command then ends with the same bytes.

Every write is counted: the opening of a new file, its flush to the disk, its renaming, the flush of the folder, and a
line that is added. At the n-th the process "dies" (from there on it can change nothing, not even clear up), or the
system refuses once. Three points of each command are tried here, drawn by a fixed seed; with FLATMINIMA_POINTS=all
every one in every way, of `reproduce` and `demo` too, and with FLATMINIMA_POINTS=12 twelve at equal distances, one way
each in turn.
"""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hostile import MLP, Made, call

POINTS = os.environ.get("FLATMINIMA_POINTS", "some")
KINDS = ("crash", "ENOSPC", "EIO")
TIMES = ("seconds", "cpu_seconds", "core_seconds")
# a certificate that went on from state in its folder is conditional on that being its own; its numbers are the same
STANDING = ("standing", "is_certificate", "statement", "assumptions")


class Crash(BaseException):
    """The process is gone; what still runs of it changes nothing."""


class Disk:
    """The system's calls that change a folder, counted, and broken at the n-th.

    Args:
        folder: only what lies below it counts.
        at: number of the call to break; 0 for none.
    """

    def __init__(self, folder: Path, at: int, kind: str) -> None:
        self.folder, self.at, self.kind = str(folder), at, kind
        self.count, self.dead = 0, False

    def change(self, path: Any) -> None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if not str(os.path.abspath(path)).startswith(self.folder) or str(path).endswith(".lock"):
            return
        if self.dead:
            raise Crash
        self.count += 1
        if self.count == self.at:
            if self.kind == "crash":
                self.dead = True
                raise Crash
            number = getattr(errno, self.kind)
            raise OSError(number, os.strerror(number), str(path))


@contextmanager
def disk(folder: Path, at: int, kind: str) -> Iterator[Disk]:
    """Within the block every change below the folder goes past a `Disk`."""
    found = Disk(folder, at, kind)
    real = {name: getattr(os, name) for name in ("open", "replace", "rename", "fsync", "unlink", "mkdir", "rmdir")}
    opened = io.open

    def watched(name: str) -> Any:
        def run(path: Any, *rest: Any, **options: Any) -> Any:
            flags = rest[0] if name == "open" and rest else 0
            if name != "open" or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                if name in ("unlink", "rmdir") and not found.dead:
                    return real[name](path, *rest, **options)  # clearing up is no write, but the dead do not
                found.change(path)
            return real[name](path, *rest, **options)

        return run

    patch = pytest.MonkeyPatch()
    for name in real:
        patch.setattr(os, name, watched(name))
    try:
        assert io.open is opened
        yield found
    finally:
        patch.undo()


def commands(made: Made, output: Path) -> dict[str, list[str]]:
    known = made.commands(output)
    return {
        "train": known["trained"],
        "certify": known["certified"],
        "rank": known["ranked"],
        "study": known["studied"],
        "reproduce": ["reproduce", "wang-toy", "--output", str(output / "reproduced")],
        "demo": ["demo", "--quick", "--output", str(output / "demo")],
        "measure": known["measured"],
        "landscape": [*known["drawn"], *MLP[:0]],
    }


LONG = () if POINTS == "some" else ("reproduce", "demo")
NAMES = ("train", "certify", "rank", "study", "measure", "landscape", *LONG)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in (*TIMES, "output", *STANDING)}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def content(folder: Path) -> dict[str, Any]:
    """Every file's bytes; of documents and tables without how long it took, of pages that they are whole."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or path.name.endswith(".lock"):
            continue
        assert ".kept" not in path.parts, path
        if path.suffix == ".tmp":  # of a dead process, where others may be writing: io.clear_left takes it a day later
            assert path.parent.name in ("networks", "runs"), path
            continue
        data = path.read_bytes()
        if name.endswith("certificate.svg"):
            found[name] = "its title says how it stands"
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(data))
        elif path.suffix == ".jsonl":
            found[name] = [without_times(json.loads(line)) for line in data.splitlines()]
        elif path.suffix == ".html":
            found[name] = data.rstrip().endswith(b"</html>")
        elif path.suffix == ".pt":
            found[name] = "a state, which holds the seconds"
        else:
            found[name] = data
    return found


def points(name: str, total: int) -> list[tuple[int, str]]:
    """Numbers of writes to break, and how."""
    every = [(n, kind) for n in range(1, total + 1) for kind in KINDS]
    if POINTS == "all":
        return every
    if POINTS != "some":
        count = min(int(POINTS), total)
        return [(1 + i * (total - 1) // max(count - 1, 1), KINDS[i % len(KINDS)]) for i in range(count)]
    draw = random.Random(name)
    return [(draw.randint(1, total), kind) for kind in KINDS]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are asked of /proc")
@pytest.mark.parametrize("name", NAMES)
def test_any_write_may_be_the_last(
    name: str, made: Made, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    whole = tmp_path / "whole"
    with disk(whole, 0, "") as counted:
        assert call(*commands(made, whole)[name])[0] == 0
    truth = content(whole)
    assert counted.count >= 3
    tried, failed = points(name, counted.count), []
    for number, kind in tried:
        output = tmp_path / f"{number}-{kind}"
        try:
            broken_once(commands(made, output)[name], output, number, kind, truth)
        except AssertionError as error:
            failed.append(f"{name} {number} {kind}: {error}"[:400])
        shutil.rmtree(output, ignore_errors=True)
    record_property("writes", counted.count)
    record_property("tried", len(tried))
    record_property("failed", len(failed))
    assert not failed, "\n".join(failed[:20])


def broken_once(command: list[str], output: Path, number: int, kind: str, truth: dict[str, Any]) -> None:
    """The command with its write `number` broken, and once more, which ends as a calm one does."""
    with disk(output, number, kind) as broken:
        try:
            code, said = call(*command)
        except Crash:
            code, said = 137, ""
    if kind == "crash":
        assert broken.dead, "the write was not reached"
    else:
        assert code in (0, 1), (code, said)  # 0: of a flush that a file system may refuse
        assert "Traceback" not in said and "FLATMINIMA_DEBUG" not in said, said
    code, said = call(*command)
    assert code == 0, said
    again = content(output)
    assert again.keys() == truth.keys(), again.keys() ^ truth.keys()
    assert [n for n in truth if again[n] != truth[n]] == []
