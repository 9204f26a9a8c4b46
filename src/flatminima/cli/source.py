"""The origin of a network and its samples, as typed: one place for every command.

Code and files are named by the command line alone; a record of an earlier run names none that is then used.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.cli import factory, language
from flatminima.cli.early_checks import check_network, check_samples, is_function
from flatminima.cli.messages import own_words
from flatminima.cli.sample_options import Reading
from flatminima.cli.terminal import say
from flatminima.errors import DataError, UnknownName

if TYPE_CHECKING:
    from torch import Tensor, nn


_NUMBERS = ("mse", "binary_cross_entropy")  # losses that compare outputs with numbers


@dataclass(frozen=True)
class Source:
    """A network and its samples, as typed."""

    model: str
    data: str
    split: str = "train"
    test_split: str | None = None
    reading: Reading = field(default_factory=Reading)
    model_arg: tuple[str, ...] = ()
    model_config: str | None = None
    checkpoint: str | None = None
    app_dir: str | None = None
    seed: int = 0
    loss: str = "cross_entropy"

    def check(self) -> None:
        """Refuse what can be refused without torch.

        Raises:
            UsageError: naming the option.
        """
        check_network(self.model, list(self.model_arg), self.model_config, self.checkpoint, self.app_dir)
        self.reading.check()
        check_samples(self.model, self.data, self.reading)
        if self.test_split == self.split:
            raise DataError(f"got {self.split!r} for both --split and --test-split; test data must not be trained on")

    def document(self) -> dict[str, Any]:
        """Every field, those of the reading among them, for a record."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("reading", "loss", "model_config")}
        more = {} if self.model_config is None else {"model_config": self.model_config}
        return own | self.reading.document() | more

    def whole(self) -> Source:
        """The same without --limit."""
        return replace(self, reading=replace(self.reading, limit=None))

    def build(self) -> nn.Module:
        """A network of the factory, as it makes it."""
        if language.is_language(self.model):
            return language.load(self.model).model
        folder = None if self.app_dir is None else Path(self.app_dir)
        config = None if self.model_config is None else Path(self.model_config)
        return factory.build(self.model, factory.arguments(list(self.model_arg)), folder, config)

    def network(self) -> nn.Module:
        """The factory's network, its weights from the seed or the checkpoint."""
        import torch

        from flatminima.training import load_checkpoint

        torch.manual_seed(self.seed)
        model = self.build()
        if self.checkpoint is not None:
            for note in load_checkpoint(model, self.checkpoint):
                say(f"Note: {note}")
        return model

    def given(self, split: str) -> Given:
        """The samples of a split; --limit is of the split that is measured."""
        limit = self.reading.limit if split == self.split else None
        reading = replace(self.reading, limit=limit)
        return samples_of(self.model, self.data, split, reading, app_dir=self.app_dir, loss=self.loss)

    def samples(self, split: str, device: str | None) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a split, for what takes one tensor a sample."""
        found = self.given(split)
        say(f"Data: {found.said}")
        x, y = found.tensors()
        return (x, y) if device is None else (x.to(device), y.to(device))


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

    @property
    def notes(self) -> list[str]:
        """Notes: the form that was understood, and what else a reader should know."""
        return [f"data: {self.said}", *self.more]

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

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All samples as two tensors.

        Raises:
            DataError: several inputs.
        """
        from torch import Tensor

        x, y = self.in_memory()
        if not isinstance(x, Tensor):
            raise DataError("this command takes networks of one input, and the data has several: name one, --columns")
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
) -> Given:
    """The samples of a split as the model takes them: tokens for hf: models, else as `read` gives them."""
    if not language.is_language(model):
        return read(data, split, reading, app_dir=app_dir, loss=loss, classes=classes, unlabelled=unlabelled)
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
) -> Given:
    """The samples of a split.

    Args:
        data: as typed. split: of it.
        reading: how. app_dir: where a function is imported from.
        loss: decides whether labels are classes or numbers.
        classes: of the training data, for another source of held-out samples.
        unlabelled: labels are not needed, and not used where they are there.

    Raises:
        UsageError: in the command line's words.
    """
    from flatminima.cli.user_data import from_function, unlabelled_rows
    from flatminima.data import prepare
    from flatminima.progress import report

    try:
        if is_function(data):
            return from_function(data, split, reading, None if app_dir is None else Path(app_dir))
        options = _options(reading, loss, classes)
        if unlabelled:
            options = unlabelled_rows(data, options)
        found = prepare(
            data,
            split,
            limit=reading.limit,
            scaling=reading.normalisation,
            progress=lambda done, total, text: report(text, done, total),
            **options,
        )
    except (DataError, UnknownName) as error:
        raise DataError(own_words(str(error))) from error
    return Given((found.inputs, found.targets), found.classes, found.said)


def _options(reading: Reading, loss: str, classes: tuple[str, ...] | None) -> dict[str, Any]:
    return {
        "config": reading.data_config,
        "image_column": reading.image_column,
        "label_column": reading.label_column,
        "columns": reading.columns,
        "classes": reading.names() or classes,
        "mode": reading.mode,
        "image_size": reading.image_size,
        "max_pixels": reading.max_pixels,
        "layout": reading.layout,
        "targets": "numbers" if loss in _NUMBERS else "classes",
    }
