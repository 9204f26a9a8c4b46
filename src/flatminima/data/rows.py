"""Columns of one split as inputs and labels: which column is which, and one tensor an input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatminima.data.files import Columns
from flatminima.data.labelled import LabelledData
from flatminima.data.labels import as_targets, in_order
from flatminima.data.layout import TOKENS, as_inputs
from flatminima.data.precision import as_float32
from flatminima.data.reading import Reading
from flatminima.errors import DataError, UnknownName

LABEL_NAMES = ("label", "fine_label", "labels", "target", "targets", "class", "y", "label_ids")
_INPUT_NAMES = ("x", "image", "images", "img", "inputs", "input", "features", "data", "pixel_values")
_ASIDE = ("", "unnamed: 0", "index", "id")  # columns that number the rows
_SHOWN = 8  # columns in a message
_IMAGE, _TABLE = "image", "features"


@dataclass(frozen=True)
class Pixels:
    """Decoded images, channels first, and the value that means 1."""

    tensor: Tensor
    full_scale: float

    def __len__(self) -> int:
        return len(self.tensor)


def label_of(names: Sequence[str], reading: Reading, where: str, columns: Columns | None = None) -> str:
    """The column of the labels.

    Raises:
        UnknownName: a column that does not exist. DataError: it cannot be guessed.
    """
    if reading.label_column is not None:
        return known(reading.label_column, names, where)
    lower = {name.lower(): name for name in reversed(names)}
    for name in LABEL_NAMES:
        if name in lower:
            return lower[name]
    if columns is not None and len(names) == 2:  # two arrays without names: rows, and one number a row
        flat = [n for n in names if np.ndim(columns.values[n]) == 1]
        if len(flat) == 1:
            return flat[0]
    if reading.targets == "none":
        return ""
    raise DataError(f"no label column found in {where} (columns {listed(names)}): pass label_column")


def known(name: str, names: Iterable[str], where: str) -> str:
    every = list(names)
    if name not in every:
        raise UnknownName("column", name, every, f"{where} has {listed(every)}")
    return name


def listed(names: Sequence[str]) -> str:
    """Names for a message, the first few of many."""
    shown = ", ".join(str(n) for n in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def labelled(
    columns: Columns, reading: Reading, rows: NDArray[np.int64], where: str, classes: tuple[str, ...] | None = None
) -> LabelledData:
    """Inputs and labels of the split.

    Args:
        columns: of the rows that are kept.
        reading: what the caller said of them.
        rows: their numbers in the source, for messages.
        where: source and split, for messages.
        classes: of labels that are text, over all splits.

    Raises:
        UnknownName, DataError: naming the column and the row.
    """
    label = label_of(list(columns.values), reading, where, columns)
    if reading.targets == "none":
        targets, names = torch.zeros(len(rows), dtype=torch.int64), None
    else:
        targets, names = as_targets(
            columns.values[label],
            rows.tolist(),
            label,
            where,
            classes=reading.classes or classes,
            names=columns.names.get(label),
            targets=reading.targets,
        )
    groups = _groups(columns, label, reading, where)
    parts = {name: _input(group, columns, rows, where, reading) for name, group in groups}
    (key, (inputs, scale)), *others = parts.items()
    used = {label} | {n for _, group in groups for n in group}
    own = len(groups) > 1 and any(name is not None for name, _ in reading.inputs)
    tokens = any(name in TOKENS for name in parts)
    return LabelledData(
        inputs,
        targets,
        names,
        where,
        scale,
        others={name: tensor for name, (tensor, _) in others},
        key=key if own or tokens else None,
        unused=tuple(n for n in columns.values if n not in used),
        scales={name: scale for name, (_, scale) in others if scale != 1},
    )


def classes_of(splits: Iterable[Columns], reading: Reading, where: str) -> tuple[str, ...] | None:
    """Classes of labels that are text, over all splits, so that a number means the same in each."""
    found: set[str] = set()
    for columns in splits:
        values = columns.values.get(label_of(list(columns.values), reading, where, columns))
        if isinstance(values, list | np.ndarray) and len(values) and isinstance(values[0], str):
            found |= {v for v in values if isinstance(v, str) and v}
    return in_order(found) if found else None


def _groups(columns: Columns, label: str, reading: Reading, where: str) -> list[tuple[str, list[str]]]:
    """Name and columns of each input."""
    if reading.inputs:
        for _, names in reading.inputs:
            for name in names:
                known(name, columns.values, where)
                if name == label:
                    raise DataError(
                        f"column {name!r} of {where} is the label, and among the inputs (columns={reading.columns!r})"
                    )
        return [(name or "+".join(names), names) for name, names in reading.inputs]
    rest = [n for n in columns.values if n != label]
    tokens = [n for n in rest if n in TOKENS]
    if tokens:
        return [(n, [n]) for n in tokens]
    wide = [n for n in rest if isinstance(columns.values[n], Pixels) or np.ndim(columns.values[n]) >= 2]
    if reading.image_column is not None:
        wide = [known(reading.image_column, columns.values, where)]
    named = [n for n in wide if n.lower() in _INPUT_NAMES]
    if len(wide) > 1 and len(named) != 1:
        raise DataError(
            f"{where} holds several inputs ({listed(wide)}): name them, columns={';'.join(wide[:2])!r}, or one of them"
        )
    if wide:
        chosen = named[0] if len(named) == 1 else wide[0]
        return [(chosen, [chosen])]
    flat = [n for n in rest if str(n).strip().lower() not in _ASIDE]
    text = [n for n in flat if _is_text(columns.values[n])]
    if text:
        numbers = [n for n in flat if n not in text]
        one = len(text) == 1
        many = "" if one else "s"
        raise DataError(f"column{many} {listed(text)} of {where} hold{'s' if one else ''} text: {_without(numbers)}")
    if not flat:
        raise DataError(f"no inputs found in {where} (columns {listed(list(columns.values))}): only labels are there")
    return [(_TABLE, flat)]


def _is_text(values: Any) -> bool:
    if isinstance(values, Tensor | Pixels):
        return False
    return np.asarray(values, dtype=object if isinstance(values, list) else None).dtype.kind in "OUS" and any(
        isinstance(v, str) for v in values
    )


def _input(
    group: list[str], columns: Columns, rows: NDArray[np.int64], where: str, reading: Reading
) -> tuple[Tensor, float]:
    values = [columns.values[name] for name in group]
    if len(group) == 1:
        if isinstance(values[0], Pixels):
            return values[0].tensor, values[0].full_scale
        if np.ndim(values[0]) != 1:
            return as_inputs(values[0], group[0], where, reading.layout)
    parts = []
    for name, column in zip(group, values, strict=True):
        if isinstance(column, Pixels) or np.ndim(column) != 1:
            own = f"{name};{','.join(n for n in group if n != name)}"
            raise DataError(
                f"column {name!r} of {where} holds arrays: give it an input of its own, by a semicolon: "
                f"pass columns={own!r}"
            )
        parts.append(_numbers(name, column, rows, where, [n for n in group if n != name]))
    return torch.from_numpy(np.stack(parts, axis=1)), 1.0


def _numbers(name: str, values: Any, rows: NDArray[np.int64], where: str, others: list[str]) -> NDArray[np.float32]:
    if isinstance(values, Tensor):
        values = values.numpy()
    for row, value in zip(rows, values, strict=True) if isinstance(values, list) else ():
        if value is None:
            raise DataError(f"row {row} of {where} has no value in {name!r}: fill it in, or drop the row")
        if isinstance(value, str):
            raise DataError(f"row {row} of {where} has {value[:40]!r} in {name!r}, not a number: {_without(others)}")
    try:
        array = as_float32(values, name, where, rows.tolist())
    except DataError:
        raise
    except (TypeError, ValueError):
        raise DataError(f"column {name!r} of {where} holds no numbers: {_without(others)}") from None
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise DataError(f"row {rows[bad[0]]} of {where} has no value in {name!r}: fill it in, or drop the row")
    return array


def _without(others: Sequence[str]) -> str:
    """What to do about a column that is no input, where others would be left."""
    if not others:
        return "encode it as numbers"
    if len(others) > _SHOWN:
        return f"encode it, or leave it out: pass columns with the names of the others ({listed(others)})"
    return f"encode it, or leave it out: pass columns={','.join(others)!r}"


def chosen(columns: Columns, rows: NDArray[np.int64]) -> Columns:
    """Some rows of a split."""
    if len(rows) == len(columns):
        return columns

    def take(values: Any) -> Any:
        return [values[i] for i in rows] if isinstance(values, list | tuple) else values[rows]

    return Columns({name: take(values) for name, values in columns.values.items()}, columns.names)


def concatenated(parts: Sequence[Columns]) -> Columns:
    """Splits after each other."""
    if len(parts) == 1:
        return parts[0]

    def cat(values: list[Any]) -> Any:
        if isinstance(values[0], Tensor):
            return torch.cat(values)
        if isinstance(values[0], np.ndarray):
            return np.concatenate(values)
        return [v for part in values for v in part]

    return Columns({n: cat([p.values[n] for p in parts]) for n in parts[0].values}, parts[0].names)


def mapping(values: Mapping[str, Any]) -> Columns:
    """Columns without names of classes."""
    return Columns(dict(values), {})
