"""A Hugging Face `TrainerCallback` that follows curvature. Loops of accelerate call a `Tracker` themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flatminima.errors import MissingExtra, UsageError
from flatminima.track import Tracker
from flatminima.track.sinks import PREFIX

try:
    from transformers import TrainerCallback
except ImportError:
    raise MissingExtra("transformers", "hf", "flatminima.integrations.huggingface_track") from None

__all__ = ["TrackerCallback"]

_STATE = "flatminima_tracker.pt"  # in a checkpoint's folder


class TrackerCallback(TrainerCallback):
    """A `Tracker` in `Trainer(callbacks=[...])`; what is carried lies in the Trainer's checkpoints.

    The training loss of a row is the last that the Trainer has logged. The numbers go into `state.log_history`; where
    they should be reported too, say to what, e.g. ``sinks=wandb``.

    Args:
        probe: samples, as `Tracker` takes them: of a transformer ``({"input_ids": ..., ...}, labels)``.
        options: keyword arguments of `Tracker` but for model, probe and optimizer; `loss="causal_lm"` for language
            models.

    Raises:
        UsageError: when training begins, options that cannot be.
    """

    def __init__(self, probe: Any, **options: Any) -> None:
        if "optimizer" in options or "model" in options:
            raise UsageError("got model= or optimizer=, which the Trainer has: leave them out")
        self.probe, self.options = probe, options
        self.tracker: Tracker | None = None
        self._loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tracker = Tracker(kwargs["model"], self.probe, optimizer=kwargs.get("optimizer"), **self.options)
        if state.global_step:
            self.tracker.restore(self._file(args, state))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tracker is not None:
            self.tracker.optimizer = kwargs.get("optimizer") or self.tracker.optimizer
            row = self.tracker.step(state.global_step - 1, self._loss)
            if row is not None:
                values = {PREFIX + name: value for name, value in row["values"].items() if value is not None}
                state.log_history.append({**values, "step": state.global_step})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and isinstance(logs.get("loss"), int | float):
            self._loss = float(logs["loss"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        tracker, file = self.tracker, self._file(args, state)
        if tracker is not None and not tracker.passive and file.parent.is_dir():
            tracker.save(file)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tracker is not None:
            self.tracker.close()

    @staticmethod
    def _file(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / _STATE
