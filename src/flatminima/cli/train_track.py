"""`flatminima train --track`: a `Tracker` beside the training, its log in the run's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from flatminima.cli.track import LOG
from flatminima.track import Tracker
from flatminima.track.tracker import STATE
from flatminima.training import Training
from flatminima.training.objective import rows

_PROBE = 256  # training samples, at most, and no more than a batch


def follow(
    stack: contextlib.ExitStack, training: Training, output: Path, every: int | None, fresh: bool
) -> Callable[[Training], None]:
    """Return the function to call after each step; it does nothing where `every` is None.

    Args:
        stack: closes the tracker. output: the run's folder, claimed. fresh: begin a new log.
    """
    if every is None:
        return lambda at: None
    if fresh:
        for name in (LOG, LOG + STATE):
            (output / name).unlink(missing_ok=True)
    some = slice(min(_PROBE, training.config.batch_size))
    probe = rows(training.inputs, some), training.targets[some]
    tracker = Tracker(training.model, probe, optimizer=training.optimizer, every=every, log=output / LOG)
    stack.enter_context(tracker)
    return lambda at: _step(tracker, at)


def _step(tracker: Tracker, training: Training) -> None:
    tracker.step(training.steps - 1, training.loss)
