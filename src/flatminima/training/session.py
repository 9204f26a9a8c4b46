"""A training in a folder: killed at any moment, the same call goes on and ends with the same bits.

run.json says what is trained, state.pt is the last checkpoint, metrics.jsonl has a line an epoch. Each file is replaced
as a whole, and the checkpoint is written after the lines that it counts: a line beyond it belongs to work that is done
again, and is dropped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from flatminima import interrupts
from flatminima.errors import CheckpointError, ReadFailed, UsageError
from flatminima.io import append_line, cannot_write, json_text, make_folder, write_whole
from flatminima.training.history import History
from flatminima.training.loop import Training
from flatminima.untrusted import Unreadable, parsed, read_json, read_text, refuse_other_files

CONFIGURATION, STATE, METRICS = "run.json", "state.pt", "metrics.jsonl"
EpochRow = dict[str, Any]


class Session:
    """The folder of one training.

    Args:
        folder: made if it is not there.
        configuration: what decides the result, of what JSON can hold; a folder of another one is refused.
        save_every: seconds between two checkpoints; 0 saves after every step.
        fresh: start over whatever the folder holds.
        fixed: why a training cannot go on for more "epochs" than the folder was made for; None: it can.
        writes: whether this process writes; of several that share a training one does, and the others read.

    Raises:
        UsageError: the folder holds another training. WriteFailed: it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        configuration: Mapping[str, Any],
        *,
        save_every: float = 60.0,
        fresh: bool = False,
        fixed: str | None = "its length was given with it",
        writes: bool = True,
    ) -> None:
        self.folder, self.save_every, self.fixed, self.writes = folder, save_every, fixed, writes
        self.rows: list[EpochRow] = []
        self._saved = time.monotonic()
        if not writes:
            return
        make_folder(folder)
        try:
            if fresh:
                for name in (STATE, METRICS, CONFIGURATION):
                    (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(folder, error, to="to ") from None
        self._claim(dict(configuration))

    def run(
        self,
        training: Training,
        *,
        measure: Callable[[Training], EpochRow] | None = None,
        on_row: Callable[[EpochRow], None] | None = None,
        on_step: Callable[[Training], None] | None = None,
    ) -> History:
        """Train from the last checkpoint, or from the start, to the end.

        Args:
            training: made as it was the first time.
            measure: further numbers of an epoch, for its line.
            on_row: called with each line written. on_step: called after each step.

        Raises:
            Interrupted: a signal arrived; the last step is kept.
        """
        self._restore(training)

        def epoch_done(at: Training) -> None:
            done = at.epochs[-1]
            row = {"epoch": at.epoch + 1, "step": at.steps, "loss": done.loss, "error": done.error, "lr": done.lr}
            for name, found in done.held_out.items():
                row |= {f"{name}_loss": found.loss, f"{name}_error": found.error}
            row |= (measure(at) if measure is not None else {}) | {"seconds": done.seconds}
            self._append(row)
            if on_row is not None:
                on_row(row)

        def step_done(at: Training) -> None:
            if at.stopped is not None or time.monotonic() - self._saved >= self.save_every:
                self._save(at)
            if on_step is not None:
                on_step(at)

        with interrupts.deferred():
            try:
                return training.run(on_step=step_done, on_epoch=epoch_done, on_stop=self._save)
            except interrupts.Interrupted as stop:
                kept = f"step {training.steps} of {training.total} is kept; the same command goes on from there"
                raise interrupts.Interrupted(stop.signum, kept) from None

    def _claim(self, configuration: EpochRow) -> None:
        """Of this folder for this configuration."""
        file = self.folder / CONFIGURATION
        if not os.path.lexists(file):
            write_whole(file, json_text(configuration, finite=False) + "\n")
            return
        try:
            found = read_json(file)
            if not isinstance(found, dict):
                raise Unreadable("it holds no JSON object")
        except Unreadable as error:
            raise UsageError(
                f"cannot read {file}: {error}; choose another --output, or start over with --fresh"
            ) from None
        wanted = json.loads(json.dumps(configuration))
        other = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        before = found.get("epochs")  # of a file that anybody may have edited
        longer = other == ["epochs"] and isinstance(before, int) and before < wanted["epochs"]
        if longer and self.fixed is None:
            write_whole(file, json_text(configuration, finite=False) + "\n")
        elif other:
            key = other[0]
            reason = f" ({self.fixed})" if longer else ""
            raise UsageError(
                f"{self.folder} holds a training with {key}={found.get(key)!r}, not {wanted.get(key)!r}"
                f"{f' (and {len(other) - 1} more)' if len(other) > 1 else ''}{reason}: "
                "choose another --output, or start over with --fresh"
            )

    def _restore(self, training: Training) -> None:
        """The last checkpoint into the training, and the lines of the epochs that it has seen."""
        file = self.folder / STATE
        if file.exists():
            try:
                refuse_other_files(file)
                training.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            except ReadFailed:
                raise
            except Exception as error:  # a damaged file may raise anything
                reason = " ".join(str(error).split())[:200]
                raise CheckpointError(f"cannot go on from {file}: {reason}; start over with --fresh") from None
        metrics = self.folder / METRICS
        try:
            lines = read_text(metrics).splitlines() if metrics.exists() else []
            self.rows = [parsed(line) for line in lines[: len(training.epochs)]]
        except Unreadable as error:
            raise CheckpointError(f"cannot go on from {metrics}: {error}; start over with --fresh") from None
        if self.writes:
            write_whole(metrics, "".join(json_text(row, None, finite=False) + "\n" for row in self.rows))

    def _append(self, row: EpochRow) -> None:
        self.rows.append(row)
        if self.writes:
            append_line(self.folder / METRICS, json_text(row, None, finite=False))

    def _save(self, training: Training) -> None:
        if self.writes:
            self._write_state(training)
        self._saved = time.monotonic()

    def _write_state(self, training: Training) -> None:
        _sync(self.folder / METRICS)
        write_whole(self.folder / STATE, lambda file: torch.save(training.state_dict(), file))


def _sync(file: Path) -> None:
    try:
        if file.exists():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
    except OSError as error:
        raise cannot_write(file, error) from None
