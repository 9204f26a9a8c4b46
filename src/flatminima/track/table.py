"""A tracker's rows as a table: pandas, Parquet, HTML, text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from flatminima.errors import MissingExtra, optional
from flatminima.io import write_whole
from flatminima.track.log import Header, LogRow, read_log

if TYPE_CHECKING:
    import pandas as pd

_ALWAYS = ("loss", "lr", "threshold")
_WIDTH = 80  # characters of a line of the text


@dataclass(frozen=True)
class TrackTable(Sequence[LogRow]):
    """A row a check, in the order of the steps.

    Attributes:
        header: of the run: quantities, probe, loss function, mode, versions.
        rows: as in the log. values: name -> number or None; undefined: name -> why there is none.
    """

    header: Header
    rows: tuple[LogRow, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TrackTable:
        """Read a log.

        Raises:
            UsageError: no log of a tracker.
        """
        header, rows = read_log(path)
        return cls(header, tuple(rows))

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[LogRow]:
        return iter(self.rows)

    def columns(self) -> list[str]:
        """Names of the numbers, in the order in which they first came."""
        found = [name for name in _ALWAYS if any(row.get(name) is not None for row in self.rows)]
        return list(dict.fromkeys([*found, *(name for row in self.rows for name in row["values"])]))

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of the checks where the quantity has a value."""
        found = [(row["step"], row["values"].get(name, row.get(name))) for row in self.rows]
        return [(step, float(value)) for step, value in found if value is not None]

    def to_pandas(self) -> pd.DataFrame:
        """A row a check, indexed by step: numbers (NaN where there is none), standard errors as NAME_stderr, events.

        Raises:
            MissingExtra: pandas is not installed.
        """
        pandas = optional("pandas", "pandas", "to_pandas()")
        columns = self.columns()
        data: dict[str, list[Any]] = {
            name: [row["values"].get(name, row.get(name)) for row in self.rows] for name in columns
        }
        for name in dict.fromkeys(n for row in self.rows for n in row["stderr"]):
            data[f"{name}_stderr"] = [row["stderr"].get(name) for row in self.rows]
        frame = pandas.DataFrame(data, index=pandas.Index([row["step"] for row in self.rows], name="step"), dtype=float)
        frame["events"] = ["; ".join(row["events"]) for row in self.rows]
        return frame

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """`to_pandas` as a Parquet file, written whole.

        Raises:
            MissingExtra: pandas or pyarrow is not installed. WriteFailed, UsageError: the path cannot be written.
        """
        optional("pyarrow", "parquet", "to_parquet()")
        frame = self.to_pandas()
        write_whole(path, lambda file: frame.to_parquet(file))

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """The page of `flatminima track`; with `path` also written there, whole."""
        from flatminima.track.page import page

        text = page(self)
        if path is not None:
            write_whole(path, text)
        return text

    def _repr_html_(self) -> str:
        try:
            return str(self.to_pandas().to_html())
        except MissingExtra:
            return f"<pre>{escape(str(self))}</pre>"

    def __str__(self) -> str:
        widths: dict[str, int] = {}
        for name in self.columns():
            width = max(11, len(name) + 2)
            if 8 + sum(widths.values()) + width > _WIDTH:
                break
            widths[name] = width
        lines = ["step".rjust(8) + "".join(name.rjust(width) for name, width in widths.items())]
        for row in self.rows:
            cells = {name: row["values"].get(name, row.get(name)) for name in widths}
            shown = ("-" if value is None else f"{value:.4g}" for value in cells.values())
            lines.append(f"{row['step']:>8}" + "".join(map(str.rjust, shown, widths.values())))
            for event in row["events"]:
                lines += wrap(event, _WIDTH, initial_indent=" " * 10, subsequent_indent=" " * 12)
        left_out = len(self.columns()) - len(widths)
        return "\n".join([*lines, *([f"and {left_out} more columns: .to_pandas()"] if left_out else [])])
