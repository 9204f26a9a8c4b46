"""Training inside a run: its state lies in the run's folder, so that a kill costs a minute and not the run.

A study calls `train` here instead of `training.train`; called outside of a run it keeps nothing and is the same. What
it trained lies in a folder that the studies share, and is taken from there the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.studies import networks
from flatminima.training import History, Session, TrainConfig, Training
from flatminima.training.session import CONFIGURATION, METRICS
from flatminima.training.steps import Augment, BackwardFunction
from flatminima.untrusted import read_json, read_text

_EVERY = 60.0  # seconds between two checkpoints
_NEARLY = 0.99  # of a run whose training is done: it is measured, still


@dataclass
class _Kept:
    folder: Path
    told: Callable[[], None]
    networks: Path | None = None  # the folder of trained networks; None: they are not kept
    own: Mapping[str, Any] = field(default_factory=dict)  # study and configuration of the run
    names: list[str] = field(default_factory=list)  # of the networks' files, one a training
    trainings: int = 0  # begun so far; a run may have several
    before: float = 0.0  # seconds of the epochs that an earlier process did
    others: Callable[[Mapping[str, Any]], Any] = lambda _: None  # the result of another run of the study


_kept: ContextVar[_Kept | None] = ContextVar("flatminima_kept", default=None)


@contextmanager
def keeping(
    folder: Path,
    told: Callable[[], None] = lambda: None,
    *,
    networks: Path | None = None,
    own: Mapping[str, Any] | None = None,
    others: Callable[[Mapping[str, Any]], Any] = lambda _: None,
) -> Iterator[_Kept]:
    """Within the block `train` keeps its state in the folder, and calls `told` after each epoch.

    Args:
        others: what `result_of` returns.
        networks: folder in which it looks for the network first, and keeps it when it is trained.
        own: what decides a training that `networks.name_of` cannot compare: the run's study and configuration.
    """
    kept = _Kept(folder, told, networks, own or {}, others=others)
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


def result_of(config: Mapping[str, Any]) -> Any:
    """The result of another run of the study, for a run that builds on it; None if it is not done, or out of a run."""
    kept = _kept.get()
    return None if kept is None else kept.others(config)


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    config: TrainConfig,
    augment: Augment | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    backward: BackwardFunction | None = None,
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
    kept, of_its_own = _kept.get(), optimizer is not None or backward is not None or bool(modules)
    place = folder = None
    if kept is not None:
        folder = kept.folder / str(kept.trainings)
        place = _place(kept, model, x, y, config, augment, of_its_own or follow is not None)
        kept.trainings += 1
        if place is not None and of_its_own:
            networks.lend_state(place, folder)
        elif place is not None and (found := networks.find(place)) is not None:
            model.load_state_dict(found.weights)
            return found.history, found.seen
    training = Training(
        model, x, y, config=config, augment=augment, optimizer=optimizer, backward=backward, modules=modules
    )
    history, seen = _run(training, config, kept, folder, follow)
    if place is not None:
        networks.keep(place, model, history, seen, folder if of_its_own else None)
    return history, seen


def _run(
    training: Training,
    config: TrainConfig,
    kept: _Kept | None,
    folder: Path | None,
    follow: Callable[[int, nn.Module], Any] | None,
) -> tuple[History, list[Any]]:
    def look(at: Training) -> dict[str, Any]:
        return {"seen": None if follow is None else follow(at.epoch, at.model)}

    rows: list[dict[str, Any]] = []
    if kept is None or folder is None:
        history = training.run(on_epoch=lambda at: rows.append(look(at)))
    else:
        session = Session(folder, asdict(config), save_every=_EVERY)
        new: list[dict[str, Any]] = []

        def written(row: dict[str, Any]) -> None:
            new.append(row)
            kept.told()

        history, rows = session.run(training, measure=look, on_row=written), session.rows
        kept.before += sum(row["seconds"] for row in rows[: len(rows) - len(new)])
    return history, [row["seen"] for row in rows if row["seen"] is not None]


def _place(
    kept: _Kept, model: nn.Module, x: Tensor, y: Tensor, config: TrainConfig, augment: Augment | None, own: bool
) -> Path | None:
    """Where the network of the run's next training is kept; `own`: whether functions decide it or are called on it."""
    if kept.networks is None:
        return None
    more = {**kept.own, "training": kept.trainings} if own else None
    kept.names.append(networks.name_of(model, x, y, config, augment, more))
    return kept.networks / kept.names[-1]


def share(folder: Path) -> float:
    """Share of a run that is done, in [0, 1), by the epochs of its first training; 0 if it has not begun."""
    try:
        total = read_json(folder / "0" / CONFIGURATION)["epochs"]
        done = read_text(folder / "0" / METRICS).count("\n")
    except (OSError, ValueError, KeyError):
        return 0.0
    return min(done / float(total), _NEARLY)
