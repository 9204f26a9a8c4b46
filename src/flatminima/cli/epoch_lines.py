"""Lines of `flatminima train` after each epoch: a line on stderr, a row for TensorBoard."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flatminima.cli.terminal import animated, clock, say
from flatminima.errors import MissingExtra
from flatminima.training.loop import VALIDATION
from flatminima.training.session import EpochRow

_QUIET = 10.0  # seconds between two lines where there is no terminal to draw on


class EpochLines:
    """A line on stderr after an epoch, with the time left, where there is no terminal that shows a bar."""

    def __init__(self, epochs: int, write: Callable[[EpochRow], None]) -> None:
        self._epochs, self._write = epochs, write
        self._began = self._last = time.monotonic()
        self._first: int | None = None  # epoch that this process began with

    def __call__(self, row: EpochRow) -> None:
        self._write(row)
        epoch, now = row["epoch"], time.monotonic()
        self._first = self._first or epoch
        if animated() or (now - self._last < _QUIET and epoch < self._epochs):
            return
        self._last = now
        left = (now - self._began) / (epoch - self._first + 1) * (self._epochs - epoch)
        numbers = [f"loss {row['loss']:.4f}"]
        for name in ("", f"{VALIDATION} ", "test "):
            key = f"{name.strip()}_" if name else ""
            if row.get(f"{key}error") is not None:
                numbers.append(f"{name}error {100 * row[f'{key}error']:.2f}%")
            elif name and f"{key}loss" in row:
                numbers.append(f"{name}loss {row[f'{key}loss']:.4f}")
        say(f"epoch {epoch}/{self._epochs}: {', '.join(numbers)}, {clock(left)}")


@contextlib.contextmanager
def tensorboard_rows(output: Path, wanted: bool) -> Iterator[Callable[[EpochRow], None]]:
    """A writer of rows for TensorBoard, or one that does nothing."""
    if not wanted:
        yield lambda row: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra("tensorboard", "tensorboard", "--tensorboard") from None
    writer = SummaryWriter(output / "tensorboard")

    def write(row: EpochRow) -> None:
        for key, value in row.items():
            if key not in ("epoch", "step") and isinstance(value, int | float):
                writer.add_scalar(key, value, row["epoch"])

    try:
        yield write
    finally:
        writer.close()
