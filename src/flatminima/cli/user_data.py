"""`--data package.module:function`: samples from the user's own code, named on the command line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flatminima.cli import factory
from flatminima.core.samples import Samples, as_samples, leaves
from flatminima.data.files import Columns
from flatminima.data.reading import Reading as DataReading
from flatminima.data.rows import labelled
from flatminima.data.sources import subset
from flatminima.data.splits import rows_of
from flatminima.data.tensors import scaled
from flatminima.errors import DataError, UsageError

if TYPE_CHECKING:
    from flatminima.cli.sample_options import Reading
    from flatminima.cli.source import Given

_PAIR = 2


def from_function(target: str, split: str, reading: Reading, app_dir: Path | None) -> Given:
    """Call the function for a split.

    A pair of tensors or arrays is scaled as a file's would be; a Dataset or DataLoader is taken as it is.

    Raises:
        UsageError: no such function, or arguments that it does not take. FactoryFailed: it raised.
        DataError: no samples.
    """
    from flatminima.cli.source import Given

    options = factory.arguments(list(reading.data_arg or ()), "--data-arg")
    made = factory.named(target, app_dir, "--data")
    takes_split = callable(made) and "split" in _parameters(made)
    name, bounds = split.partition("[")[0], "[" in split or "+" in split
    if callable(made) and not _is_data(made):
        found = factory.call(made, options | ({"split": split} if takes_split else {}), target, "--data-arg")
    else:
        found = made
    if isinstance(found, Mapping) and name in found and not takes_split:
        found = found[name]
        takes_split = True
        if bounds:
            raise DataError(f"{target} gives splits by name: ask for --split {name}")
    if not takes_split and split != "train":
        raise DataError(
            f"{target} takes no argument split, so there is no {split!r}: give it one, or return "
            "{'train': ..., 'test': ...}"
        )
    if found is None:
        raise DataError(f"{target} returned None; it must return (inputs, targets), a Dataset or a DataLoader")
    where = f"{target} {split}"
    if _is_pair(found):
        values = Columns({"inputs": found[0], "labels": found[1]}, {})
        count = len(values)
        how = DataReading(classes=reading.names(), layout=reading.layout)
        rows = subset(count, reading.limit)
        data = labelled(_rows(values, rows), how, rows, where)
        prepared = scaled(data, data, reading.normalisation)
        return Given((prepared.inputs, prepared.targets), prepared.classes, prepared.said)
    if reading.mean is not None or reading.scaling not in ("unit", "none"):
        kind = type(found).__name__
        raise UsageError(f"{target} returns a {kind}, whose samples are taken as they are: scale them there")
    return _as_it_is(found, reading, where)


def unlabelled_rows(data: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options that read a split whose labels may be missing."""
    return options | {"targets": "none"}


def _as_it_is(found: Any, reading: Reading, where: str) -> Given:
    from flatminima.cli.source import Given

    samples = as_samples(found)
    if reading.limit is not None and reading.limit < len(samples):
        rows = torch.from_numpy(subset(len(samples), reading.limit))
        samples = as_samples(samples.take(rows))
    x, y = samples.take(torch.arange(1))
    shapes = " and ".join("x".join(map(str, t.shape[1:])) or "1" for t in leaves(x))
    floating = all(t.is_floating_point() for t in leaves(x))
    labels = "numbers to predict" if y.is_floating_point() else "class labels"
    said = f"{len(samples):,} samples of {shapes}, {labels}, as {where.partition(' ')[0]} gives them"
    return Given(samples, None, said if floating else said + " (integers)")


def _is_pair(found: Any) -> bool:
    """(inputs, targets) of one input, as arrays or tensors."""
    return (
        isinstance(found, tuple | list)
        and len(found) == _PAIR
        and all(isinstance(v, Tensor | np.ndarray) for v in found)
        and found[0].ndim >= 2
    )


def _is_data(made: Any) -> bool:
    """A Dataset or loader that happens to be callable is data; a class or function makes it."""
    return isinstance(made, Samples) or (hasattr(made, "__getitem__") and hasattr(made, "__len__"))


def _rows(columns: Columns, rows: Any) -> Columns:
    if len(rows) == len(columns):
        return columns
    return Columns({name: values[rows] for name, values in columns.values.items()}, {})


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


__all__ = ["from_function", "rows_of", "unlabelled_rows"]
