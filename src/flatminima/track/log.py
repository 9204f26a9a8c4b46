"""The tracker's log: JSON, a line a check, each in the system's hands before training goes on.

A killed process loses no row; half a line, which a full disk or a power cut may leave, is dropped when it is read. A
run that is resumed from an earlier step writes on: of rows at the same or a later step the last written count.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flatminima.errors import UsageError
from flatminima.io import append_line, json_text, make_folder
from flatminima.untrusted import Unreadable, parsed, read_bytes

SCHEMA = 1
LogRow = dict[str, Any]
Header = dict[str, Any]
_SAME = ("parameters", "loss_function", "samples")  # of a header: another run's log has others


def read_log(path: str | os.PathLike[str]) -> tuple[Header, list[LogRow]]:
    """The first header of a log and its rows, by rising step.

    Raises:
        UsageError: no such file, or none that a tracker wrote.
    """
    file = Path(path)
    try:
        text = read_bytes(file).decode("utf-8", "replace")
    except Unreadable as error:
        raise UsageError(f"cannot read {file}: {error}; give the log=... of a tracker") from None
    header: Header | None = None
    rows: list[LogRow] = []
    for line in text.splitlines():
        try:
            found = parsed(line)
        except Unreadable:  # a line that was being written when the machine stopped
            continue
        if not isinstance(found, dict):
            continue
        if found.get("kind") == "header":
            header = header or found
        elif isinstance(found.get("step"), int) and isinstance(found.get("values"), dict):
            while rows and rows[-1]["step"] >= found["step"]:
                rows.pop()
            rows.append(found)
    if header is None:
        raise UsageError(f"{file} is no log of a tracker: its first line should be a header; give the log=... of one")
    if header.get("schema") != SCHEMA:
        raise UsageError(f"{file} has schema {header.get('schema')!r}; this version reads {SCHEMA}: track again")
    return header, rows


class Lines:
    """Lines of a file that is written to from a loop: what a full disk refused is written with the next line.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[str] = []

    def write(self, line: str) -> None:
        """Append a line, after those that were refused; of rows written twice readers take the last.

        Raises:
            WriteFailed, UsageError: the system refuses this time.
        """
        torn = [""] if self._waiting else []  # half a line may be there: it is ended, and dropped when it is read
        self._waiting.append(line)
        append_line(self.path, "\n".join(torn + self._waiting))
        self._waiting.clear()


class Log:
    """A log that is written to, made or gone on with.

    Args:
        path: of the file; its folder is made.
        header: of the run.

    Raises:
        UsageError: the file is another run's, or no log. WriteFailed: the system refuses.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header) -> None:
        self.path = Path(path)
        self._lines = Lines(self.path)
        make_folder(self.path.parent)
        self.rows: list[LogRow] = []
        if self.path.exists() and self.path.stat().st_size:
            before, self.rows = read_log(self.path)
            for key in _SAME:
                if before.get(key) != header.get(key):
                    raise UsageError(
                        f"{self.path} is the log of a run with {key}={before.get(key)!r}, not {header.get(key)!r}: "
                        "choose another log"
                    )
            if not read_bytes(self.path).endswith(b"\n"):
                append_line(self.path, "")  # ends half a line, which a reader drops
        append_line(self.path, json_text(header, None))

    def write(self, row: LogRow) -> None:
        """Append a row.

        Raises:
            WriteFailed, UsageError: the system refuses; the row is written with the next one.
        """
        self._lines.write(json_text(row, None))
