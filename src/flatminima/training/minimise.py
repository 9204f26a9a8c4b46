"""Training in one call: a model, its samples, a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatminima.training.config import TrainConfig
from flatminima.training.history import History
from flatminima.training.loop import VALIDATION, Tensors, Training
from flatminima.training.objective import LABELS
from flatminima.training.steps import Augment, BackwardFunction

if TYPE_CHECKING:
    from flatminima.core.losses import Loss, PerSample


def train(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    config: TrainConfig | None = None,
    loss: str | PerSample | Loss = LABELS,
    augment: Augment | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    backward: BackwardFunction | None = None,
    validation: Tensors | None = None,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    first_epoch: int = 0,
) -> History:
    """Minimise the mean loss, in place.

    Args:
        model: maps (batch, ...) to outputs (batch, ...), on the device of the inputs. It trains in the mode that it
            has; a warning tells where eval mode keeps BatchNorm and dropout from training.
        inputs: shape (n, ...); of several, a tuple of them, or a dictionary by name.
        targets: shape (n,), int64, for cross-entropy; what the loss takes for others.
        config: a TrainConfig; None for the defaults.
        loss: a name, one of torch's own losses, or a callable that returns a loss a sample.
        augment: applied to each batch with a CPU generator, e.g. `flatminima.data.random_flip`.
        optimizer: used in place of the configuration's; the schedule multiplies each group's own rate. SAM and PertOPT
            are told the epoch, unless they have `steps_per_epoch`.
        backward: called as backward(loss_fn, x, y) in place of `loss_fn(model(x), y).backward()`; fills the
            gradients and returns the loss, as `optim.FisherTrace.backward` does; in float32 only.
        validation: inputs and targets that are evaluated after each epoch, for `keep_best`, `stop_after` and "plateau".
        on_epoch: called as on_epoch(epoch, model) after each epoch, counted from 0; modes it changes are put back.
        progress: called as progress(done, total, text) after each step.
        first_epoch: epochs done before, in [0, epochs): with their weights in the model and their state in
            `optimizer`, the result is that of one uninterrupted run, bit for bit. The History has the rest.

    Returns:
        The History; the model holds the final weights and every module is in the mode it had.

    Raises:
        NumericalError: the loss became NaN or infinite; names the step. The weights are then useless.
        DataError: samples that do not fit the model or the loss.
        UsageError: first_epoch outside of the configuration's epochs.
    """
    training = Training(
        model, inputs, targets, config=config, loss=loss, augment=augment, optimizer=optimizer, backward=backward,
        held_out={} if validation is None else {VALIDATION: validation},
    )  # fmt: skip
    training.skip(first_epoch)

    def stepped(at: Training) -> None:
        if progress is not None:
            progress(at.steps, at.total, f"epoch {at.epoch + 1}, loss {at.loss:.4f}")

    def finished(at: Training) -> None:
        if on_epoch is not None:
            on_epoch(at.epoch, model)

    return training.run(on_step=stepped, on_epoch=finished)
