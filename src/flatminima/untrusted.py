"""Documents as untrusted input: a regular file of a bounded size, and JSON that may hold anything.

Whatever is wrong with one is an `Unreadable`, which each reader turns into its own words; what the system refuses for
want of permission is none, since the file may be whole.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flatminima.errors import ReadFailed
from flatminima.io import NOT_USAGE

MOST_BYTES = 1 << 28  # bytes of a document
EXPANDED = 1 << 20  # entries of a YAML text, its references written out
_DEEPEST = 200  # levels of a YAML text
_BEGINNING = 4096  # bytes
_SHOWN = 100  # characters of a name in a message


class Unreadable(ValueError):
    """A file that is absent, of another kind, too large or no JSON; the message is the reason alone."""


def refuse_other_files(path: str | os.PathLike[str]) -> int:
    """Size of a regular file, in bytes; a pipe or a device, which may never end, is refused before it is opened.

    Raises:
        Unreadable: it is none, or is not there. ReadFailed: the system does not let it be looked at.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # the second: a null byte in the name
        raise cannot_read(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise Unreadable(f"it is {kind}")
    return found.st_size


def refuse_no_text(path: str | os.PathLike[str]) -> None:
    """Refuse a file that holds no text in UTF-8, as its beginning shows, or more than this machine's memory holds.

    Raises:
        Unreadable, ReadFailed: as `refuse_other_files`.
    """
    size, memory = refuse_other_files(path), _memory()
    if size > memory:
        raise Unreadable(f"it has {size:,} bytes, more than this machine's memory of {memory:,}: give a part of it")
    with open(path, "rb") as file:
        if b"\0" in file.read(_BEGINNING):
            raise Unreadable("it is no text in UTF-8: there are zero bytes at its beginning")


def _memory() -> int:
    """Bytes of this machine's memory; where the system does not say, more than any file has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return 1 << 62


def read_bytes(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        Unreadable: no such file, another kind of file, more than `most` bytes. ReadFailed: the system refused.
    """
    size = refuse_other_files(path)
    if size > most:
        raise Unreadable(f"it has {size:,} bytes, more than the {most:,} that are read")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise cannot_read(path, error) from None


def read_text(path: str | os.PathLike[str], most: int = MOST_BYTES) -> str:
    """The same as text, UTF-8.

    Raises:
        Unreadable, ReadFailed: as `read_bytes`.
    """
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable("it is not text") from None


def read_json(path: str | os.PathLike[str], most: int = MOST_BYTES, *, finite: bool = False) -> Any:
    """Read a JSON file; `finite` refuses NaN and infinities, which JSON has not.

    Raises:
        Unreadable: as `read_bytes`, or it is no JSON, or nested too deeply. ReadFailed: the system refused.
    """
    return parsed(read_text(path, most), finite=finite)


def parsed(text: str, *, finite: bool = False) -> Any:
    """Parse a JSON text.

    Raises:
        Unreadable: nothing, too deeply nested, or one thing twice: which of two values counts depends on the reader.
    """
    try:
        return json.loads(text, parse_constant=_refused if finite else None, object_pairs_hook=_each_once)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except Unreadable:
        raise
    except ValueError as error:
        raise Unreadable(f"it is no JSON: {error}") from None


def parsed_yaml(text: str) -> Any:
    """Parse a YAML text without tags, which could name code.

    Raises:
        Unreadable: no YAML, too deeply nested, or with references that expand it beyond `EXPANDED` entries.
    """
    import yaml

    try:
        _refuse_expanding(yaml.parse(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except Unreadable:
        raise
    except (yaml.YAMLError, ValueError) as error:  # the second: a date that is none
        raise Unreadable(f"it is no YAML: {error}") from None


def _refuse_expanding(events: Iterable[Any]) -> None:
    """Count the entries with every reference (&a, *a) written out: ten lines may stand for 10^10."""
    named: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = [(None, 0)]
    for event in events:
        kind, anchor = type(event).__name__, getattr(event, "anchor", None)
        if kind in ("SequenceStartEvent", "MappingStartEvent"):
            opened.append((anchor, 0))
            if len(opened) > _DEEPEST:  # its parser takes time with the square of the depth
                raise Unreadable("it is nested too deeply")
            continue
        if kind in ("SequenceEndEvent", "MappingEndEvent"):
            anchor, size = opened.pop()
        elif kind == "AliasEvent":
            if anchor not in named:
                raise Unreadable(f"its {anchor!r} contains itself")
            size = named[anchor]
        elif kind == "ScalarEvent":
            size = 0
        else:
            continue
        if anchor is not None:
            named[anchor] = size
        outer, count = opened[-1]
        opened[-1] = (outer, count + size + 1)
        if count + size >= EXPANDED:
            raise Unreadable(f"its references stand for more than {EXPANDED:,} entries")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Unreadable(f"it has {name[:_SHOWN]!r} twice")
        found[name] = value
    return found


def _refused(constant: str) -> float:
    raise Unreadable(f"it holds {constant}, which is no JSON")


def cannot_read(path: str | os.PathLike[str], error: OSError | ValueError) -> Unreadable | ReadFailed:
    """The error to raise for a path that the system refused to read."""
    if isinstance(error, OSError) and error.errno in NOT_USAGE:
        return ReadFailed(f"cannot read {Path(path)}: {error.strerror}; see to it, and run the same again")
    if isinstance(error, FileNotFoundError):
        return Unreadable("there is no such file")
    return Unreadable(getattr(error, "strerror", None) or str(error))
