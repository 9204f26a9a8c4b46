"""Finished statistics on disk, so that a command that was stopped goes on where it was.

A file each, named by the hash of the network's content, the data and the statistic's whole configuration, and after
the values of one piece of work a file of what that cost (see `spent`), without which none of them is taken. What is
read is data: tensors, numbers and text, put into those of our dataclasses that are already known.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima import interrupts
from flatminima.core.spent import Accounts, Learns, Lesson, Passes, Work
from flatminima.errors import Absent, FlatMinimaError
from flatminima.io import make_folder, versions, write_whole
from flatminima.untrusted import refuse_other_files

FOLDER = ".kept"
ABSENT = object()
_OURS = "flatminima."
_kept: ContextVar[Keeper | None] = ContextVar("flatminima_keeping", default=None)


class _Foreign(Exception):
    """A value of a kind that is not kept."""


class Keeper:
    """Values in a folder, made at the first of them.

    Args:
        folder: of the command's results. asked: what the command was asked for; another one's values are not taken.
    """

    def __init__(self, folder: Path, asked: str = "") -> None:
        self.folder, self.asked, self.count = folder / FOLDER, asked, 0
        self.accounts = Accounts()

    def get(self, name: str) -> Any:
        """The value, or ABSENT: none, one that is damaged, or of other versions."""
        value, _ = self._read(name)
        self.count += value is not ABSENT
        return value

    def take(self, name: str, network: Learns) -> Any:
        """The value as `get` finds it; the network counts the work behind it, and knows what was learnt by it."""
        value, work = self._read(name)
        record: Any = self._read(work)[0] if work else None
        if value is ABSENT or not _sound(record):
            return ABSENT
        entries, lesson = record
        network.learn(lesson)
        self.accounts.pay(network.passes, entries)
        self.count += 1
        return value

    def put(self, name: str, value: Any, work: str = "") -> bool:
        """Keep a value; False where it is of a kind that is not kept.

        Args:
            name: of the value. value: of numbers, tensors, text and our dataclasses. work: that made it, and is not
                over; what is made with no `work` can be taken at once.

        Raises:
            WriteFailed, UsageError: it cannot be written.
        """
        kept = self._write(name, value, work)
        self.count += kept and not work
        return kept

    def finish(self, network: Learns, work: Work, values: Mapping[str, Any], lacking: Iterable[str]) -> None:
        """Keep values by name and what it cost to make them, all or none: a part of a sweep rounds otherwise.

        Args:
            network: that made them. work: in which they were made. lacking: names of others that it made, and of no
                kind that is kept.
        """
        name = "work " + hashlib.blake2b(repr((sorted(values), sorted(lacking))).encode(), digest_size=16).hexdigest()

        with interrupts.unbroken():
            kept = {key: quietly(partial(self.put, key, value, name)) for key, value in values.items()}
            entries = self.accounts.done(work, name, [*lacking, *(key for key in kept if not kept[key])])
            if any(kept.values()) and None not in kept.values():
                written = quietly(partial(self._write, name, (entries, network.learnt()), ""))
                self.count += sum(map(bool, kept.values())) if written else 0

    def lose(self, passes: Passes) -> None:
        """Forget all, since it turned out to be wrong."""
        self.clear()
        self.accounts.lose(passes)

    def clear(self) -> None:
        """Delete all."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.count = 0

    def _write(self, name: str, value: Any, work: str) -> bool:
        try:
            document = {"name": f"{self.asked} {name}", "versions": versions(), "value": _encoded(value), "work": work}
        except _Foreign:
            return False
        make_folder(self.folder)
        write_whole(self._path(name), lambda file: torch.save(document, file))
        return True

    def _read(self, name: str) -> tuple[Any, str]:
        path, name = self._path(name), f"{self.asked} {name}"
        if not path.exists():
            return ABSENT, ""
        try:
            refuse_other_files(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
            if found["name"] != name or found["versions"] != versions():
                return ABSENT, ""
            return _decoded(found["value"]), str(found["work"])
        except Exception:  # a damaged file may raise anything; the work is then done again
            return ABSENT, ""

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashlib.blake2b(f'{self.asked} {name}'.encode(), digest_size=12).hexdigest()}.pt"


def keeper() -> Keeper | None:
    """The store of values in use; None: there is none."""
    return _kept.get()


@contextmanager
def keeping(folder: Path | None, asked: str) -> Iterator[None]:
    """Within the block finished statistics are kept in a folder, and taken from it; None keeps nothing.

    One that was stopped says how many there are; `done` clears them away.
    """
    if folder is None:
        yield
        return
    found = Keeper(folder, asked)
    token = _kept.set(found)
    try:
        yield
    except interrupts.Interrupted as stop:
        if found.count:
            before = f"{stop.kept}; " if stop.kept else ""
            stop.kept = f"{before}{found.count} finished statistics are kept; the same command goes on from there"
        raise
    finally:
        _kept.reset(token)


def done(folder: Path | None) -> None:
    """The results are written: what was kept for them is no longer needed."""
    if folder is not None:
        Keeper(folder).clear()


def content_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash of tensors with their names."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        dense = tensor.detach().cpu()
        dense = dense if dense.layout == torch.strided else dense.to_dense()
        dense = torch.view_as_real(dense) if dense.is_complex() else dense
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _encoded(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):  # first: numpy's float is one of Python's
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            _refuse(value)
        return ("array", torch.from_numpy(array.copy()), isinstance(value, np.generic))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu() if value.layout == torch.strided else _refuse(value)
    if isinstance(value, tuple | list):
        if type(value) not in (tuple, list):
            _refuse(value)
        return (type(value).__name__, [_encoded(v) for v in value])
    if isinstance(value, Mapping):
        if type(value) is not dict:
            _refuse(value)
        return ("dict", [[_encoded(k), _encoded(v)] for k, v in value.items()])
    if is_dataclass(value) and type(value).__module__.startswith(_OURS):
        return ("of", _name(type(value)), [[f.name, _encoded(getattr(value, f.name))] for f in fields(value)])
    return _refuse(value)


def _decoded(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    kind = value[0]
    if kind == "array":
        array = value[1].numpy()
        return array[()] if value[2] else array
    if kind in ("tuple", "list"):
        inner = [_decoded(v) for v in value[1]]
        return tuple(inner) if kind == "tuple" else inner
    if kind == "dict":
        return {_decoded(k): _decoded(v) for k, v in value[1]}
    made = _known()[value[1]]
    instance: Any = object.__new__(made)
    for name, inner in value[2]:
        object.__setattr__(instance, name, _decoded(inner))
    return instance


def _known() -> dict[str, type]:
    """Our dataclasses in modules that are loaded: no name in a file imports one."""
    modules = [m for name, m in list(sys.modules.items()) if name.startswith(_OURS)]
    kinds = [k for m in modules for k in list(vars(m).values()) if isinstance(k, type) and is_dataclass(k)]
    return {_name(k): k for k in kinds if k.__module__.startswith(_OURS)}


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _refuse(value: Any) -> Any:
    raise _Foreign(type(value).__name__)


def _sound(record: Any) -> bool:
    """Whether a record has the form that `Keeper.finish` writes."""
    try:
        entries, lesson = record
        counts = [(e.passes.forward, e.passes.backward, e.passes.checks, e.passes.earlier) for e in entries]
        texts = [*(e.name for e in entries), *(n for e in entries for n in e.lacking), *lesson.remarks, lesson.reason]
        return (
            all(isinstance(n, int) for count in counts for n in count[:3])
            and all(isinstance(count[3], int | float) and math.isfinite(count[3]) for count in counts)
            and all(isinstance(text, str) for text in (*texts, *lesson.examined))
            and all(isinstance(absent, Absent | None) for absent in lesson.examined.values())
            and isinstance(lesson, Lesson)
            and isinstance(lesson.level, int)
        )
    except (AttributeError, TypeError, ValueError):
        return False


def quietly(put: Callable[[], bool]) -> bool | None:
    """Result of `put`; None where nothing can be written (a full disk), which stops nothing."""
    with contextlib.suppress(FlatMinimaError):
        return put()
    return None
