"""Samples as the command line was asked for them: one reader for every command and every source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.cli import language
from flatminima.cli.early_checks import is_function
from flatminima.cli.messages import own_words
from flatminima.cli.sample_options import Reading
from flatminima.errors import DataError, UnknownName, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from flatminima.core.samples import Samples
    from flatminima.data import LabelledData, Reading as DataReading

_NUMBERS = ("mse", "binary_cross_entropy")  # losses that compare outputs with numbers


@dataclass(frozen=True)
class Given:
    """Samples as a command takes them.

    Attributes:
        data: (inputs, targets), or what the user's function returned.
        classes: names of the classes, where known.
        said: what was understood, in one line.
        more: what else is to be known.
    """

    data: Any
    classes: tuple[str, ...] | None
    said: str
    more: tuple[str, ...] = ()

    def notes(self, what: str = "data") -> list[str]:
        """Notes: the form that was understood, and what else a reader should know; `what` names the samples."""
        return [f"{what}: {self.said}", *self.more]

    def in_memory(self) -> tuple[Any, Tensor]:
        """All samples: inputs, of several a tuple or a dictionary by name, and targets."""
        import torch
        from torch import Tensor

        from flatminima.core.samples import as_samples

        if isinstance(self.data, tuple) and len(self.data) == 2 and all(isinstance(t, Tensor) for t in self.data):
            return self.data
        samples = as_samples(self.data)
        x, y = samples.take(torch.arange(len(samples)))
        return x, y


def samples_of(
    model: str,
    data: str,
    split: str,
    reading: Reading,
    *,
    app_dir: str | Path | None = None,
    loss: str = "cross_entropy",
    classes: tuple[str, ...] | None = None,
    unlabelled: bool = False,
    trained_on: str | None = None,
) -> Given:
    """The samples of a split as the model takes them: tokens for hf: models, else as `read` gives them."""
    if not language.is_language(model):
        own: dict[str, Any] = {"classes": classes, "unlabelled": unlabelled, "trained_on": trained_on}
        return read(data, split, reading, app_dir=app_dir, loss=loss, **own)
    found, notes = language.texts(
        model,
        data,
        split,
        limit=reading.limit,
        length=reading.length,
        packing=reading.packing,
        text_column=reading.text_column,
        label_column=reading.label_column,
    )
    said = f"{len(found[1]):,} texts of {found[0]['input_ids'].shape[1]} tokens"
    return Given(found, None, said, notes)


def read(
    data: str,
    split: str,
    reading: Reading,
    *,
    app_dir: str | Path | None = None,
    loss: str = "cross_entropy",
    classes: tuple[str, ...] | None = None,
    unlabelled: bool = False,
    trained_on: str | None = None,
) -> Given:
    """The samples of a split.

    Args:
        data: as typed. split: of it.
        reading: how. app_dir: where a function is imported from.
        loss: decides whether labels are classes or numbers.
        classes: of the training data, for another source of held-out samples.
        unlabelled: labels are not needed, and not used where they are there.
        trained_on: the training data, whose train split `--scaling standard` is of; None: `data` itself.

    Raises:
        UsageError: in the command line's words.
    """
    from flatminima.cli.user_data import as_they_are
    from flatminima.data import LabelledData
    from flatminima.data.tensors import scaled

    how = _reading(reading, loss, classes, unlabelled)
    folder = None if app_dir is None else Path(app_dir)
    try:
        found = _stored(data, split, reading, how, reading.limit, folder)
        if not isinstance(found, LabelledData):
            if reading.mean is not None or reading.scaling not in ("unit", "none"):
                raise UsageError(f"{data} gives samples that are taken as they are: scale them there")
            return as_they_are(found, data)
        train = found
        if reading.normalisation == "standard" and (data, split, reading.limit) != (trained_on or data, "train", None):
            stored = _stored(trained_on or data, "train", reading, replace(how, targets="none"), None, folder)
            if not isinstance(stored, LabelledData):
                raise UsageError(f"{trained_on} gives samples as they are, which --scaling standard is not known for")
            train = stored
        prepared = scaled(found, train, reading.normalisation)
    except (DataError, UnknownName) as error:
        raise DataError(own_words(str(error))) from error
    return Given((prepared.inputs, prepared.targets), prepared.classes, prepared.said)


def _stored(
    data: str, split: str, reading: Reading, how: DataReading, limit: int | None, app_dir: Path | None
) -> LabelledData | Samples:
    """Inputs and labels as they are stored, or samples of the caller's own code."""
    from flatminima.data import load
    from flatminima.progress import report

    if is_function(data):
        from flatminima.cli.user_data import Function

        return Function.named(data, reading, app_dir).of(split, how, limit)
    return load(data, split, limit=limit, progress=lambda done, total, text: report(text, done, total), **vars(how))


def _reading(reading: Reading, loss: str, classes: tuple[str, ...] | None, unlabelled: bool) -> DataReading:
    from flatminima.data import Reading as DataReading

    try:
        return DataReading(
            config=reading.data_config,
            image_column=reading.image_column,
            label_column=reading.label_column,
            columns=reading.columns,
            classes=reading.names() or classes,
            mode=reading.mode,
            image_size=reading.image_size,
            max_pixels=reading.max_pixels,
            layout=reading.layout,
            targets="none" if unlabelled else "numbers" if loss in _NUMBERS else "classes",
        )
    except DataError as error:
        raise DataError(own_words(str(error))) from error
