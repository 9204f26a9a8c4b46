"""Labels of every kind as class numbers: integers, names, booleans, one-hot rows, floats that are whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatminima.data.precision import as_float32, as_int64
from flatminima.data.reading import Targets
from flatminima.errors import DataError

_SHOWN = 5  # values in a message
_SIGNS = {-1, 1}
_HIDDEN = -1  # the hub's convention for a hidden test label


def as_targets(
    values: Any,
    rows: Sequence[int] | NDArray[np.int64],
    column: str,
    where: str,
    *,
    classes: tuple[str, ...] | None = None,
    names: tuple[str, ...] | None = None,
    targets: Targets = "classes",
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels as a tensor, and the names of the classes where they have names.

    Args:
        values: one label a sample: numbers, text, booleans, one-hot rows; a list, an array or a tensor.
        rows: number of each sample in its source, for messages.
        column, where: names of the column and the source, for messages.
        classes: names in the order of the network's outputs; a label is the place of its text.
        names: what integer labels are called, as the source says.
        targets: "numbers" keeps what is no class (float32), one number a sample as a column.

    Returns:
        int64 of shape (n,) with names or None; or float32 of shape (n, ...), (n, 1) of one number a sample, and None.

    Raises:
        DataError: a label that is missing, hidden (-1), a fraction, or none of `classes`.

    Examples:
        >>> as_targets(["dog", "cat", "dog"], range(3), "label", "pets")
        (tensor([1, 0, 1]), ('cat', 'dog'))
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind in "OUS":
        array = _plain(array, rows, column, where)
    if targets == "numbers" and classes is None and array.ndim == 1 and array.dtype.kind in "biuf":
        return _column(array, rows, column, where), None
    if array.ndim != 1:
        return _rows_of_numbers(array, rows, column, where, classes, targets)
    if array.dtype.kind == "f":
        _refuse_missing(array, rows, column, where)
        if (array != np.round(array)).any():
            return _numbers(array, rows, column, where, targets), None
        array = as_int64(array, column, where, rows)
    if classes is not None:
        return _of_one_output(_named(array, rows, classes, names, column, where), classes, targets), classes
    if array.dtype.kind == "b":
        return torch.from_numpy(array.astype(np.int64)), ("False", "True")
    if array.dtype.kind in "US":
        found = in_order(set(array.tolist()))
        return _of_one_output(_places(array.tolist(), rows, found, column, where), found, targets), found
    if set(np.unique(array).tolist()) == _SIGNS:
        return torch.from_numpy((array > 0).astype(np.int64)), ("-1", "1")
    low = int(array.min()) if len(array) else 0
    if low < 0:
        row = rows[int(np.flatnonzero(array == low)[0])]
        raise DataError(f"row {row} of {where} has no label ({column!r} is {low}): use a labelled split")
    return torch.from_numpy(as_int64(array, column, where, rows)), names


def in_order(values: Iterable[str]) -> tuple[str, ...]:
    """Names of classes as people number them: 2 before 10, else by the alphabet.

    Examples:
        >>> in_order({"10", "9", "2"}), in_order({"b", "a"})
        (('2', '9', '10'), ('a', 'b'))
    """
    names = list(values)
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(sorted(names))


def _plain(array: NDArray[Any], rows: Any, column: str, where: str) -> NDArray[Any]:
    """Objects as the one type that they all have; text stays text."""
    flat = array.tolist()
    for row, value in zip(rows, flat, strict=False):
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            raise DataError(f"row {row} of {where} has no label ({column!r} holds {value!r}): drop the row")
    kinds = {type(v) for v in flat}
    if kinds <= {bool} or kinds <= {int}:
        return np.asarray(flat)
    if kinds <= {int, float}:
        return np.asarray(flat, dtype=np.float64)
    if kinds <= {str, bytes, np.str_, np.bytes_}:
        return np.asarray([v.decode() if isinstance(v, bytes) else str(v) for v in flat], dtype=str)
    if kinds <= {list, tuple, np.ndarray} and len({np.shape(v) for v in flat}) == 1:
        return np.asarray([list(v) for v in flat])
    odd = next((r, v) for r, v in zip(rows, flat, strict=False) if not isinstance(v, int | str | float))
    raise DataError(f"row {odd[0]} of {where}: {column!r} holds {odd[1]!r}, not a class: pass label_column")


def _rows_of_numbers(
    array: NDArray[Any], rows: Any, column: str, where: str, classes: tuple[str, ...] | None, targets: Targets
) -> tuple[Tensor, tuple[str, ...] | None]:
    """One-hot rows as classes; other rows only for losses that compare numbers."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{column!r} of {where} has the shape {array.shape}: one label a sample is needed")
    hot = (
        array.ndim == 2
        and array.shape[1] > 1
        and bool((((array == 0) | (array == 1)).all(1) & (array.sum(1) == 1)).all())
    )
    if targets == "numbers":
        return torch.from_numpy(as_float32(array, column, where, rows)), None
    if not hot:
        kind = "soft or several labels a sample" if array.ndim == 2 else f"the shape {array.shape}"
        raise DataError(
            f"{column!r} of {where} holds {kind}, not one class: pass targets='numbers' where the loss compares numbers"
        )
    if classes is not None and len(classes) != array.shape[1]:
        raise DataError(f"{column!r} of {where} is one-hot over {array.shape[1]} classes; {len(classes)} are named")
    return torch.from_numpy(array.argmax(1).astype(np.int64)), classes


def _refuse_missing(array: NDArray[Any], rows: Any, column: str, where: str) -> None:
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise DataError(f"row {rows[bad[0]]} of {where} has no label ({column!r} is {array[bad[0]]}): drop it")


def _column(array: NDArray[Any], rows: Any, column: str, where: str) -> Tensor:
    """One number a sample, (n, 1): as a network of one output gives it; losses take it for outputs (n,), too."""
    _refuse_missing(array, rows, column, where)
    if array.dtype.kind in "iu" and set(np.unique(array).tolist()) == _SIGNS:
        array = array > 0
    if array.dtype.kind in "iu" and len(array) and int(array.min()) == _HIDDEN:
        row = rows[int(np.flatnonzero(array == _HIDDEN)[0])]
        raise DataError(f"row {row} of {where} has no label ({column!r} is {_HIDDEN}): use a labelled split")
    return torch.from_numpy(as_float32(array, column, where, rows)).unsqueeze(1)


def _of_one_output(labels: Tensor, classes: tuple[str, ...], targets: Targets) -> Tensor:
    """Places of two classes as the numbers 0 and 1 of a network of one output, where the loss compares numbers."""
    return labels.float().unsqueeze(1) if targets == "numbers" and len(classes) == 2 else labels


def _numbers(array: NDArray[Any], rows: Any, column: str, where: str, targets: Targets) -> Tensor:
    if targets == "numbers":
        return torch.from_numpy(as_float32(array, column, where, rows))
    bad = int(np.flatnonzero(array != np.round(array))[0])
    raise DataError(
        f"row {rows[bad]} of {where} has the label {array[bad]:g} ({column!r}), a fraction and no class: pass "
        "targets='numbers' for regression, or label_column"
    )


def _named(
    array: NDArray[Any], rows: Any, classes: tuple[str, ...], names: tuple[str, ...] | None, column: str, where: str
) -> Tensor:
    """Labels by the text that `classes` gives them; integers that it does not name are places in it."""
    values = array.tolist()
    whole = array.dtype.kind in "iu"
    if whole and names is None and not {str(v) for v in values} & set(classes):
        names = classes
    if whole and names is not None:
        for row, value in zip(rows, values, strict=False):
            if not 0 <= value < len(names):
                raise DataError(
                    f"row {row} of {where} has the label {value} ({column!r}); {len(names)} classes are named"
                )
        values = [names[v] for v in values]
    return _places([str(v) for v in values], rows, classes, column, where)


def _places(values: list[str], rows: Any, classes: tuple[str, ...], column: str, where: str) -> Tensor:
    place = {name: i for i, name in enumerate(classes)}
    place |= {str(float(name)): i for name, i in place.items() if _whole(name)}
    for row, value in zip(rows, values, strict=False):
        if value not in place:
            shown = ", ".join(classes[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")
            raise DataError(
                f"row {row} of {where} has the label {value!r} ({column!r}), not among the classes ({shown}): "
                "pass classes, every name in order"
            )
    return torch.tensor([place[v] for v in values], dtype=torch.int64)


def _whole(name: str) -> bool:
    return name.lstrip("-").isdigit()
