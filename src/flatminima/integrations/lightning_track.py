"""Lightning: curvature in a `Trainer`, for one callback. Manual loops and Fabric call a `Tracker` themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from flatminima.errors import MissingExtra, UsageError
from flatminima.track import Tracker

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError:
        raise MissingExtra("lightning", "lightning", "flatminima.integrations.lightning_track") from None

__all__ = ["TrackerCallback"]


class TrackerCallback(Callback):
    """A `Tracker` in `Trainer(callbacks=[...])`; what is carried lies in Lightning's checkpoints.

    The training loss of a row is the mean over the step's micro-batches; in manual optimization it is what the last
    `training_step` returned.

    Args:
        probe: samples, as `Tracker` takes them.
        module: the network whose outputs the loss is of: an attribute's name, or a function of the LightningModule;
            None: the LightningModule itself, whose `forward` returns the logits.
        optimizer: position among the Trainer's.
        options: keyword arguments of `Tracker` but for model, probe and optimizer. Without `sinks`, the Trainer's
            loggers get the numbers.

    Raises:
        UsageError: when training begins, options that cannot be.
    """

    def __init__(
        self,
        probe: Any,
        *,
        module: str | Callable[[Any], nn.Module] | None = None,
        optimizer: int = 0,
        **options: Any,
    ) -> None:
        if "optimizer" in options or "model" in options:
            raise UsageError("got model= or optimizer=, which the Trainer has: leave them out")
        self.probe, self.module, self.position, self.options = probe, module, optimizer, options
        self.tracker: Tracker | None = None
        self._state: dict[str, Any] = {}
        self._steps = 0  # of the optimizer that the tracker knows of
        self._losses: list[Any] = []  # of the micro-batches since

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        network = pl_module
        if isinstance(self.module, str):
            network = pl_module.get_submodule(self.module)
        elif self.module is not None:
            network = self.module(pl_module)
        optimizers = trainer.optimizers
        optimizer = optimizers[self.position] if self.position < len(optimizers) else None
        self.tracker = Tracker(
            network, self.probe, optimizer=optimizer, **{"sinks": list(trainer.loggers), **self.options}
        )
        self.tracker.load_state_dict(self._state)
        self._steps, self._losses = trainer.global_step, []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._losses = []  # of a step that the last epoch's end cut off

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if pl_module.automatic_optimization:
            if loss is not None:  # else the batch was skipped
                self._losses.append(loss * trainer.accumulate_grad_batches)  # by which Lightning has divided it
        else:
            self._losses = [loss]
        if self.tracker is None or trainer.global_step == self._steps:  # in the middle of accumulated batches
            return
        self._steps, losses, self._losses = trainer.global_step, self._losses, []
        self.tracker.step(
            self._steps - 1, sum(losses) / len(losses) if len(losses) > 1 else losses[0] if losses else None
        )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.tracker is not None:
            self.tracker.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return self._state if self.tracker is None else self.tracker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict
