"""The origin of a network and its samples, as typed: one place for every command.

Code and files are named by the command line alone; a record of an earlier run names none that is then used.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.cli import factory, language
from flatminima.cli.early_checks import check_network, check_samples
from flatminima.cli.load_samples import Given, samples_of
from flatminima.cli.sample_options import Reading
from flatminima.cli.terminal import say_notes
from flatminima.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatminima.core.samples import Inputs


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
            say_notes(load_checkpoint(model, self.checkpoint))
        return model

    def given(self, split: str) -> Given:
        """The samples of a split; --limit is of the split that is measured."""
        limit = self.reading.limit if split == self.split else None
        reading = replace(self.reading, limit=limit)
        return samples_of(self.model, self.data, split, reading, app_dir=self.app_dir, loss=self.loss)

    def samples(self, split: str, device: str | None) -> tuple[Inputs, Tensor]:
        """Inputs, of several a tuple or a dictionary by name, and labels of a split, in memory."""
        from flatminima.core.samples import map_tensors

        found = self.given(split)
        say_notes(found.notes("data" if split == self.split else "test data" if split == self.test_split else split))
        x, y = found.in_memory()
        if isinstance(x, dict) and len(x) == 1:  # one input under a name
            (x,) = x.values()
        return (x, y) if device is None else (map_tensors(lambda t: t.to(device), x), y.to(device))
