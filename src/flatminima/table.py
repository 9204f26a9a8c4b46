"""`MeasureTable`: measures of one minimum with their errors, and what they cost."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flatminima.display import html
from flatminima.errors import MissingExtra, UsageError, optional
from flatminima.escaping import shown as escaped
from flatminima.estimate import ERRORS, Estimate
from flatminima.io import json_text, write_whole

if TYPE_CHECKING:
    import pandas as pd

_SCHEMA = 1
_WIDTH = 80
_NAME = 30  # columns of a measure's name before it folds; what is left holds the reason
_BESIDE = 3  # measures in one table by parameter
_OVER = {
    "rounding": "of rounding",
    "draws": "over draws",
    "data": "over data",
    "both": "over data and draws",
    "new data": "over new data",
}
_CELL = 20  # columns of one of them


@dataclass(frozen=True)
class MeasureTable(Mapping[str, Estimate]):
    """Estimates by measure name.

    Attributes:
        estimates: name -> Estimate.
        samples, parameters: of what was measured.
        forward_passes, backward_passes: over all the data, 1.0 = every sample once.
        seconds: wall clock.
        loss: name of the loss.  data: fingerprint of the samples, the same in any order.
        notes: what a reader must know (eval mode, frozen parameters, slow paths).
    """

    estimates: Mapping[str, Estimate]
    samples: int
    parameters: int
    forward_passes: float
    backward_passes: float
    seconds: float
    loss: str
    data: str
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.estimates)

    def __len__(self) -> int:
        return len(self.estimates)

    def to_pandas(self) -> pd.DataFrame:
        """One row a measure: value and stderr (float, NaN where there is none), direction, kind, undefined.

        Raises:
            MissingExtra: pandas is not installed.
        """
        pandas = optional("pandas", "pandas", "to_pandas()")
        rows = {
            name: {
                "value": e.value,
                "stderr": e.stderr,
                "direction": e.direction,
                "kind": e.kind,
                "undefined": e.undefined,
            }
            for name, e in self.items()
        }
        frame = pandas.DataFrame.from_dict(rows, orient="index")
        return frame.astype({"value": float, "stderr": float})  # also where every one is None

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """The rows of `to_pandas` as Parquet, with the measure's name as the first column.

        Raises:
            UsageError, WriteFailed: the path cannot be written. MissingExtra: pandas or pyarrow is not installed.
        """
        frame = self.to_pandas().rename_axis("measure").reset_index()
        buffer = io.BytesIO()
        try:
            frame.to_parquet(buffer, index=False)
        except ImportError:
            raise MissingExtra("pyarrow", "parquet", "to_parquet()") from None
        write_whole(path, buffer.getvalue())

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """The page that `flatminima report` makes: one file, with nothing to load; with `path` also written there.

        Raises:
            UsageError, WriteFailed: the path cannot be written.
        """
        text = html("page", self)
        if path is not None:
            write_whole(path, text)
        return text

    def log(self, sinks: Any, *, step: int = 0) -> None:
        """Send values and standard errors to a tracker, as `track` does; undefined measures are left out.

        Args:
            sinks: one or several of: a function of (step, values), the path of a JSON-lines file, TensorBoard's writer,
                a run of W&B or trackio, mlflow, one of Lightning's loggers (see `flatminima.track.sinks.as_sink`).
            step: of training.

        Raises:
            UsageError: a sink that is none of these.

        Examples:
            >>> table = MeasureTable({"m": Estimate(2.0, 0.1)}, 1, 1, 0.0, 0.0, 0.0, "mse", "")
            >>> table.log(lambda step, values: print(step, values), step=3)
            3 {'m': 2.0, 'm.stderr': 0.1}
        """
        values: dict[str, float] = {}
        for name, e in self.items():
            if e.value is not None:
                values[name] = e.value
                if e.stderr is not None:
                    values[f"{name}.stderr"] = e.stderr
        for sink in import_module("flatminima.track.sinks").as_sinks(sinks):
            sink(step, values)

    def to_dict(self) -> dict[str, Any]:
        """One JSON document; numbers are never NaN."""
        return {
            "schema": _SCHEMA,
            "measures": {name: e.to_dict() for name, e in self.items()},
            "samples": self.samples,
            "parameters": self.parameters,
            "forward_passes": self.forward_passes,
            "backward_passes": self.backward_passes,
            "seconds": self.seconds,
            "loss": self.loss,
            "data": self.data,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> MeasureTable:
        """The table that `to_dict` wrote.

        Raises:
            UsageError: another schema, or a document that is not a table.
        """
        if document.get("schema") != _SCHEMA:
            raise UsageError(f"got schema {document.get('schema')!r}; this version reads {_SCHEMA}: measure again")
        try:
            fields = {k: v for k, v in document.items() if k not in ("schema", "measures", "notes")}
            estimates = {name: Estimate.from_dict(e) for name, e in document["measures"].items()}
            return cls(estimates, notes=tuple(document["notes"]), **fields)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UsageError(f"not a table of measures ({error!r}); measure again") from None

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """JSON text; with `path` also written there, whole or not at all.

        Args:
            path: of the file; None: only the text.

        Returns:
            Strict JSON (no NaN): an undefined measure has a null value and its reason.

        Raises:
            UsageError, WriteFailed: the path cannot be written.
        """
        text = json_text(self.to_dict(), indent=2)
        if path is not None:
            write_whole(path, text + "\n")
        return text

    def _repr_html_(self) -> str:
        return html("table", self)

    def show(self) -> None:
        """Print the table."""
        print(self)

    def __str__(self) -> str:
        from rich.console import Console

        buffer = io.StringIO()
        console = Console(file=buffer, width=_WIDTH, force_terminal=False, no_color=True)
        render_table(self, console)
        lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
        return "\n".join(lines).strip("\n")


def render_table(table: MeasureTable, console: Any) -> None:
    """The table on a rich console, within its width; reasons and names are text, never rich's markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # rich narrows whatever may wrap, and crops the rest of the line where a minimal width forbids it
    grid.add_column("measure", no_wrap=True)
    grid.add_column("value", justify="right", no_wrap=True)
    grid.add_column("+- stderr", justify="right", no_wrap=True)
    grid.add_column("better", no_wrap=True)
    grid.add_column("note", overflow="fold", ratio=1)
    for full, e in table.items():
        name = _folded(full, _NAME)
        if e.value is None:
            grid.add_row(Text(name), "-", "-", e.direction, Text(escaped(f"undefined: {e.undefined}")))
        else:
            error, over = _error(e)
            note = e.kind + (f", {over}" if over else "")
            note += f"; {e.details['note']}" if "note" in e.details else ""
            grid.add_row(Text(name), f"{e.value:.5g}", error, e.direction, Text(escaped(note)))
    console.print(grid)
    cost = (
        f"{table.samples} samples, {table.parameters} parameters, loss {table.loss}; "
        f"{table.forward_passes:.1f} forward and {table.backward_passes:.1f} backward passes, "
        f"{table.seconds:.1f} s"
    )
    for line in (cost, *(f"- {note}" for note in (*table.notes, *_legend(table)))):
        console.print(Text(escaped(line)))


def _error(e: Estimate) -> tuple[str, str]:
    """The standard error, and over what it is; a value of which nothing was drawn is exact."""
    over = str(e.details.get("error_of", ""))
    if over == "exact":
        return "exact", ""
    return "-" if e.stderr is None else f"{e.stderr:.2g}", _OVER.get(over, "")


def _legend(table: MeasureTable) -> list[str]:
    """What the words beside the standard errors say, of those in the table."""
    seen = {str(e.details.get("error_of")) for e in table.values() if e.value is not None}
    return [f"{_OVER.get(word, word)}: {said}" for word, said in ERRORS.items() if word in seen]


def render_layers(table: MeasureTable, console: Any) -> None:
    """Table of what each parameter adds to the measures that add over parameters, a few measures beside each other."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = {name: e.details for name, e in table.items() if e.value is not None and e.details.get("layers")}
    if not found:
        console.print(Text("no measure here is given by parameter"))
    todo = list(found.items())
    while todo:
        shown = dict(todo[:_BESIDE])
        layers = list(dict.fromkeys(layer for details in shown.values() for layer in details["layers"]))
        columns = [[_folded(name, _CELL), *(_share(d, layer) for layer in layers)] for name, d in shown.items()]
        widths = [3 + max(len(line) for cell in column for line in cell.splitlines()) for column in columns]
        while len(columns) > 1 and console.width - sum(widths) < _CELL:
            columns.pop(), widths.pop()
        todo = todo[len(columns) :]
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        grid.add_column("parameter", no_wrap=True)
        for column in columns:
            grid.add_column(Text(column[0]), justify="right", no_wrap=True)
        for i, layer in enumerate(layers, 1):
            name = _folded(layer, max(_CELL // 2, console.width - sum(widths) - 3))
            grid.add_row(Text(name), *(Text(column[i]) for column in columns))
        console.print(grid)


def _folded(text: str, width: int) -> str:
    """In lines of this many letters, hidden characters escaped."""
    text = escaped(text)
    return "\n".join(text[i : i + width] for i in range(0, len(text), width))


def _share(details: Mapping[str, Any], layer: str) -> str:
    value, error = details["layers"].get(layer), (details.get("layer_stderrs") or {}).get(layer)
    if value is None:
        return "-"
    return f"{value:.3g}" + ("" if error is None else f" +- {error:.1g}")
