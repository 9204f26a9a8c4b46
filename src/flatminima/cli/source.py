"""Where a network and its samples come from, as typed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flatminima.cli import factory
from flatminima.cli.options import SCALINGS
from flatminima.cli.terminal import say
from flatminima.errors import CheckpointError, DataError, UnknownName, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Source:
    """Where the network and its samples come from, as typed; recorded so that --verify finds them again."""

    model: str
    data: str
    split: str = "train"
    test_split: str | None = None
    scaling: str = "unit"
    limit: int | None = None
    model_arg: tuple[str, ...] = ()
    checkpoint: str | None = None
    app_dir: str | None = None
    seed: int = 0
    max_pixels: int | None = None

    def check(self) -> None:
        """Refuse what can be refused without torch."""
        factory.split(self.model)
        factory.arguments(list(self.model_arg))
        if self.scaling not in SCALINGS:
            raise UnknownName("scaling", self.scaling, SCALINGS)
        if self.checkpoint is not None and not Path(self.checkpoint).exists():
            raise CheckpointError(f"no file {self.checkpoint} for --checkpoint; check the path")
        if self.app_dir is not None and not Path(self.app_dir).is_dir():
            raise UsageError(f"no folder {self.app_dir} for --app-dir; check the path")
        if self.data.startswith((".", "/")) and not Path(self.data).exists():
            raise DataError(f"no folder {self.data} for --data; check the path")
        if self.test_split == self.split:
            raise DataError(f"got {self.split!r} for both --split and --test-split; test data must not be trained on")

    def network(self) -> nn.Module:
        """The factory's network, its weights from the seed or the checkpoint."""
        import torch

        from flatminima.training import load_checkpoint

        torch.manual_seed(self.seed)
        model = factory.build(
            self.model, factory.arguments(list(self.model_arg)), None if self.app_dir is None else Path(self.app_dir)
        )
        if self.checkpoint is not None:
            for note in load_checkpoint(model, self.checkpoint):
                say(f"Note: {note}")
        return model

    def samples(self, split: str, device: str | None) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a split."""
        from flatminima.data import load_tensors
        from flatminima.progress import report

        limit = self.limit if split == self.split else None
        x, y = load_tensors(
            self.data,
            split,
            limit=limit,
            scaling=self.scaling,
            max_pixels=self.max_pixels,
            progress=lambda done, total, text: report(text, done, total),
        )
        return (x, y) if device is None else (x.to(device), y.to(device))
