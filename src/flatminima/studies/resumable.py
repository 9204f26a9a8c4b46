"""Training inside a run: its state lies in the run's folder, so that a kill costs a minute and not the run.

A study calls `train` here instead of `training.train`; called outside of a run it keeps nothing and is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.reading import read_json, read_text
from flatminima.training import History, Session, TrainConfig, Training
from flatminima.training.session import CONFIGURATION, METRICS
from flatminima.training.steps import Augment, Backward

_EVERY = 60.0  # seconds between two checkpoints
_NEARLY = 0.99  # of a run whose training is done: it is measured, still


@dataclass
class _Kept:
    folder: Path
    told: Callable[[], None]
    trainings: int = 0  # begun so far; a run may have several
    before: float = 0.0  # seconds of the epochs that an earlier process did


_kept: ContextVar[_Kept | None] = ContextVar("flatminima_kept", default=None)


@contextmanager
def keeping(folder: Path, told: Callable[[], None] = lambda: None) -> Iterator[_Kept]:
    """Within the block `train` keeps its state in the folder, and calls `told` after each epoch."""
    kept = _Kept(folder, told)
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    config: TrainConfig,
    augment: Augment | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    backward: Backward | None = None,
    modules: dict[str, Any] | None = None,
    follow: Callable[[int, nn.Module], Any] | None = None,
) -> tuple[History, list[Any]]:
    """`training.train`, going on from where a run that was killed had come; the weights are the same, bit for bit.

    Args:
        model, x, y, config, augment, optimizer, backward: as `training.train` takes them. modules: as `Training` does.
        follow: called as follow(epoch, model) after each epoch, counted from 0; what it returns, of what JSON can hold,
            is kept too, unless it is None.

    Returns:
        The History, and what `follow` returned, epoch by epoch.
    """
    training = Training(
        model, x, y, config=config, augment=augment, optimizer=optimizer, backward=backward, modules=modules
    )

    def look(at: Training) -> dict[str, Any]:
        return {"seen": None if follow is None else follow(at.epoch, model)}

    kept = _kept.get()
    rows: list[dict[str, Any]] = []
    if kept is None:
        history = training.run(on_epoch=lambda at: rows.append(look(at)))
    else:
        session = Session(kept.folder / str(kept.trainings), asdict(config), save_every=_EVERY)
        kept.trainings += 1
        new: list[dict[str, Any]] = []

        def written(row: dict[str, Any]) -> None:
            new.append(row)
            kept.told()

        history, rows = session.run(training, measure=look, on_row=written), session.rows
        kept.before += sum(row["seconds"] for row in rows[: len(rows) - len(new)])
    return history, [row["seen"] for row in rows if row["seen"] is not None]


def share(folder: Path) -> float:
    """How much of a run is done, in [0, 1), by the epochs of its first training; 0 if it has not begun."""
    try:
        total = read_json(folder / "0" / CONFIGURATION)["epochs"]
        done = read_text(folder / "0" / METRICS).count("\n")
    except (OSError, ValueError, KeyError):
        return 0.0
    return min(done / float(total), _NEARLY)
