"""`--data package.module:function`: samples from the user's own code, named on the command line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flatminima.cli import factory
from flatminima.core.samples import Samples, as_samples, leaves
from flatminima.data import LabelledData, huggingface
from flatminima.data.files import SPLITS, Columns, array_of
from flatminima.data.reading import Reading as DataReading
from flatminima.data.rows import chosen, classes_of, concatenated, labelled
from flatminima.data.sources import subset
from flatminima.data.splits import rows_of
from flatminima.errors import DataError

if TYPE_CHECKING:
    from flatminima.cli.load_samples import Given
    from flatminima.cli.sample_options import Reading

_PAIR = 2
_TRAIN = "train"


@dataclass(frozen=True)
class Function:
    """The function, or the data, that --data names.

    Attributes:
        target: as typed.
        made: the function, or data that is made already.
        options: of --data-arg.
    """

    target: str
    made: Any
    options: Mapping[str, Any]

    @classmethod
    def named(cls, target: str, reading: Reading, app_dir: Path | None) -> Function:
        """Import it.

        Raises:
            UsageError: no such function. FactoryFailed: importing it raised.
        """
        options = factory.arguments(list(reading.data_arg or ()), "--data-arg")
        return cls(target, factory.named(target, app_dir, "--data"), options)

    @property
    def takes_split(self) -> bool:
        return not _is_data(self.made) and "split" in _parameters(self.made)

    def parts(self, names: Sequence[str]) -> dict[str, Any]:
        """Return value by split: the splits asked for, or all that there are.

        Raises:
            UsageError: arguments that it does not take. FactoryFailed: it raised. DataError: no such split, nothing.
        """
        if self.takes_split:
            return {name: self._call({"split": name}) for name in names}
        found = self.made if _is_data(self.made) else self._call({})
        if _is_splits(found):
            return {str(name): value for name, value in found.items()}
        for name in names:
            if name != _TRAIN:
                raise DataError(
                    f"{self.target} takes no argument split, so there is no {name!r}: give it one, or return "
                    "{'train': ..., 'test': ...}"
                )
        return {_TRAIN: found}

    def _call(self, more: Mapping[str, str]) -> Any:
        found = factory.call(self.made, {**self.options, **more}, self.target, "--data-arg")
        if found is None:
            raise DataError(f"{self.target} returned None; it must return (inputs, targets), a Dataset or a DataLoader")
        return found

    def of(self, split: str, reading: DataReading, limit: int | None) -> LabelledData | Samples:
        """A split, its slice and --limit taken: inputs and labels as stored, or samples to be taken as they are.

        Raises:
            UsageError, FactoryFailed, DataError: as `parts`, and what cannot be read.
        """
        parts = self.parts([part.strip().partition("[")[0] for part in split.split("+")])
        asked = [name for name, _ in rows_of({name: np.arange(0) for name in parts}, split, self.target)]

        def every() -> list[Any]:
            """Parts whose labels, where they are text, name the classes: all, or the train split."""
            if not self.takes_split:
                return list(parts.values())
            return [parts[_TRAIN] if _TRAIN in parts else self._call({"split": _TRAIN})]

        if all(huggingface.is_made(parts[name]) for name in asked):
            return huggingface.read_made(
                parts, self.target, split, reading, choose=lambda n: subset(n, limit), every=every
            )
        columns = {name: columns_of(parts[name]) for name in asked}
        known = {name: one for name, one in columns.items() if one is not None}
        if len(known) < len(columns):
            return _samples({name: parts[name] for name in asked}, split, limit, self.target)
        wanted = rows_of({name: np.arange(len(one)) for name, one in known.items()}, split, self.target)
        rows = np.concatenate([rows for _, rows in wanted])
        if len(rows) == 0:
            raise DataError(f"no samples in {self.target} {split}: check the split and the limit")
        kept = subset(len(rows), limit)
        together = concatenated([chosen(known[name], own) for name, own in wanted])
        classes = None
        if reading.classes is None and reading.targets != "none" and classes_of(known.values(), reading, self.target):
            named = [found for part in every() if (found := columns_of(part)) is not None]
            classes = classes_of(named, reading, self.target)
        return labelled(chosen(together, kept), reading, rows[kept], f"{self.target} {split}", classes)


def as_they_are(samples: Samples, target: str) -> Given:
    """Samples of a Dataset or loader, which nothing scales."""
    from flatminima.cli.load_samples import Given

    x, y = samples.take(torch.arange(1))
    shapes = " and ".join("x".join(map(str, t.shape[1:])) or "1" for t in leaves(x))
    floating = all(t.is_floating_point() for t in leaves(x))
    labels = "numbers to predict" if y.is_floating_point() else "class labels"
    said = f"{len(samples):,} samples of {shapes}, {labels}, as {target} gives them"
    return Given(samples, None, said if floating else said + " (integers)")


def columns_of(found: Any) -> Columns | None:
    """Columns of a pair of one input and its labels, of a data frame, of arrays by name; None: samples of other kinds.

    Examples:
        >>> list(columns_of((torch.zeros(2, 3), ["no", "yes"])).values)
        ['inputs', 'labels']
    """
    if isinstance(found, LabelledData) and not found.others:
        names = {} if found.classes is None else {"labels": found.classes}
        return Columns({"inputs": found.inputs, "labels": found.targets}, names)
    if hasattr(found, "to_dict") and hasattr(found, "columns"):  # of pandas or polars
        return Columns({str(name): array_of(found[name].to_list()) for name in found.columns}, {})
    if _is_pair(found):
        labels = found[1].to_list() if hasattr(found[1], "to_list") else found[1]
        return Columns({"inputs": found[0], "labels": labels}, {})
    if isinstance(found, Mapping) and all(isinstance(v, Tensor | np.ndarray | list) for v in found.values()):
        values = {str(name): array_of(v) if isinstance(v, list) else v for name, v in found.items()}
        wide = [v for v in values.values() if np.ndim(v) >= 2]
        if not wide or (len(wide) == 1 and len(values) == _PAIR):  # several are inputs of a network by name
            return Columns(values, {})
    return None


def _samples(found: Mapping[str, Any], split: str, limit: int | None, target: str) -> Samples:
    """Samples that are taken as they are."""
    if len(found) > 1:
        raise DataError(f"{target} gives samples that are not put together: ask for one split, or join them there")
    ((name, one),) = found.items()
    samples = as_samples(one)
    ((_, rows),) = rows_of({name: np.arange(len(samples))}, split, target)
    if len(rows) == 0:
        raise DataError(f"no samples in {target} {split}: check the split and the limit")
    rows = rows[subset(len(rows), limit)]
    return samples if len(rows) == len(samples) else as_samples(samples.take(torch.from_numpy(rows)))


def _is_splits(found: Any) -> bool:
    """Whether it is splits by name, not columns or entries of a batch."""
    if not isinstance(found, Mapping) or not found:
        return False
    arrays = any(isinstance(value, Tensor | np.ndarray | list) for value in found.values())
    return not arrays or all(name in SPLITS for name in found)


def _is_pair(found: Any) -> bool:
    """(inputs, targets) of one input, as arrays or tensors, with labels of any kind."""
    if not isinstance(found, tuple | list) or len(found) != _PAIR:
        return False
    x, y = found
    if not isinstance(x, Tensor | np.ndarray) or x.ndim < 2:
        return False
    listed = isinstance(y, list) and not any(isinstance(v, Tensor | np.ndarray) for v in y[:1])
    return isinstance(y, Tensor | np.ndarray) or listed or hasattr(y, "to_list")


def _is_data(made: Any) -> bool:
    """A Dataset or loader that happens to be callable is data; a class or function makes it."""
    if isinstance(made, type):
        return False
    sized = hasattr(made, "__getitem__") and hasattr(made, "__len__")
    return not callable(made) or isinstance(made, Samples) or sized


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


__all__ = ["Function", "as_they_are", "columns_of"]
