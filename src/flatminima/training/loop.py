"""Training on tensors that fit in memory: a seed in, the same minimum out.

Every step goes through `optimizer.step(closure)`, so SAM and PertOPT fit without a branch. Batches,
augmentation and dropout draw from (seed, epoch, purpose); torch's global random state is left as it was. On a
GPU, bitwise repeatability also needs `torch.use_deterministic_algorithms(True)`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatminima.errors import DataError, NumericalError, UsageError
from flatminima.training.config import TrainConfig
from flatminima.training.evaluate import Evaluation, check_samples, evaluate

Backward = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor], Tensor]

_BATCHES, _AUGMENT, _DROPOUT = range(3)  # independent streams of one seed


@dataclass(frozen=True)
class Epoch:
    """Loss and error of one epoch (see `History`), the learning rate it began with, and its seconds."""

    loss: float
    error: float
    lr: float
    seconds: float


@dataclass(frozen=True)
class History:
    """What happened in training.

    Args:
        epochs: one entry an epoch. Its loss and error are means over the batches *while* training (augmented,
            train mode); with `target_loss` or `backward` they are those of the whole set after the epoch, in
            eval mode.
        final: the whole training set after the last step, in eval mode, without augmentation.
        stopped_because: "epochs" or "target_loss".
        steps: optimizer steps taken.
    """

    epochs: tuple[Epoch, ...]
    final: Evaluation
    stopped_because: str
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries and lists that JSON can hold."""
        values = asdict(self)
        values["epochs"] = list(values["epochs"])
        return values


def train(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    config: TrainConfig | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    backward: Backward | None = None,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    first_epoch: int = 0,
) -> History:
    """Minimise the mean cross-entropy, in place.

    Args:
        model: maps (batch, ...) to logits (batch, classes), on the device of the inputs.
        inputs: shape (n, ...), floating. targets: shape (n,), int64.
        config: a TrainConfig; None for the defaults.
        augment: applied to each batch with a CPU generator, e.g. `flatminima.data.random_flip`.
        optimizer: used in place of the configuration's; the schedule multiplies each group's own rate.
        backward: called as backward(loss_fn, x, y) in place of `loss_fn(model(x), y).backward()`; fills the
            gradients and returns the loss, as `optim.FisherTrace.backward` does.
        on_epoch: called as on_epoch(epoch, model) after each epoch, counted from 0.
        progress: called as progress(done, total, text) after each step.
        first_epoch: epochs done before, in [0, epochs): with their weights in the model and their state in
            `optimizer`, the result is that of one uninterrupted run, bit for bit. The History has the rest.

    Returns:
        The History; the model holds the final weights and every module is in the mode it had.

    Raises:
        NumericalError: the loss became NaN or infinite; names the step. The weights are then useless.
        DataError: samples that do not fit the model.
        UsageError: first_epoch outside of the configuration's epochs.
    """
    config = config or TrainConfig()
    if not 0 <= first_epoch < config.epochs:
        raise UsageError(f"first_epoch={first_epoch}: must be in 0 ... {config.epochs - 1}, the epochs to train")
    check_samples(inputs, targets)
    optimizer = optimizer or make_optimizer(model, config)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    batches = _sizes(len(inputs), config.batch_size)
    total_steps = config.epochs * len(batches)
    modes = [(module, module.training) for module in model.modules()]
    whole = config.target_loss is not None or backward is not None
    epochs: list[Epoch] = []
    stopped, steps, final = "epochs", first_epoch * len(batches), None
    devices = [inputs.device] if inputs.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        try:
            for epoch in range(first_epoch, config.epochs):
                began = time.perf_counter()
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * config.factor(epoch)
                _seed_dropout(_mix(config.seed, epoch, _DROPOUT), inputs.device)
                noise = _generator(config.seed, epoch, _AUGMENT)
                order = torch.randperm(len(inputs), generator=_generator(config.seed, epoch, _BATCHES))
                loss_sum, wrong = 0.0, 0
                for rows in torch.split(order.to(inputs.device), batches):
                    x, y = inputs[rows], targets[rows]
                    if augment is not None:
                        x = augment(x, noise)
                    steps += 1
                    loss, errors = _step(model, optimizer, backward, x, y)
                    if not math.isfinite(loss):
                        raise NumericalError(
                            f"training diverged at step {steps} (epoch {epoch + 1}): the loss is {loss}; "
                            f"lower the learning rate {config.lr:g}"
                        )
                    loss_sum += loss * len(y)
                    wrong += errors
                    if progress is not None:
                        progress(steps, total_steps, f"epoch {epoch + 1}, loss {loss:.4f}")
                seen = Evaluation(loss_sum / len(inputs), wrong / len(inputs), len(inputs))
                final = evaluate(model, inputs, targets) if whole or epoch == config.epochs - 1 else None
                if whole and final is not None:
                    seen = final
                rate = float(optimizer.param_groups[0]["lr"])
                epochs.append(Epoch(seen.loss, seen.error, rate, time.perf_counter() - began))
                if on_epoch is not None:
                    on_epoch(epoch, model)
                if config.target_loss is not None and seen.loss < config.target_loss:
                    stopped = "target_loss"
                    break
        finally:
            for module, training in modes:
                module.training = training
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
    assert final is not None  # at least one epoch ran, and the last one measured
    return History(tuple(epochs), final, stopped, steps)


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, backward: Backward | None, x: Tensor, y: Tensor
) -> tuple[float, int]:
    """One optimizer step: the batch's mean loss at the weights before it, and its errors (0 with `backward`)."""
    seen: list[tuple[Tensor, int]] = []  # SAM calls the closure twice; the first is at the weights themselves

    def closure() -> Tensor:
        optimizer.zero_grad()
        if backward is not None:
            loss = backward(cross_entropy, x, y)
            seen.append((loss.detach(), 0))
            return loss
        logits = model(x)
        if not seen and int(y.max()) >= logits.shape[1]:
            raise DataError(f"a label is {int(y.max())} but the model has {logits.shape[1]} outputs")
        loss = cross_entropy(logits, y)
        loss.backward()
        seen.append((loss.detach(), int((logits.argmax(dim=1) != y).sum())))
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]  # typed for float; torch itself passes tensors on
    return float(seen[0][0]), seen[0][1]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The configuration's optimizer over the trainable parameters."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _sizes(n: int, batch_size: int) -> list[int]:
    """Sizes of an epoch's batches; BatchNorm cannot train on one sample, so a last one joins its neighbour."""
    sizes = [batch_size] * (n // batch_size) + ([n % batch_size] if n % batch_size else [])
    if len(sizes) > 1 and sizes[-1] == 1 and batch_size > 1:
        sizes[-2:] = [batch_size + 1]
    return sizes


def _mix(seed: int, epoch: int, stream: int) -> int:
    # torch's CPU generator keeps only the low 32 bits of a seed, so the parts are hashed into them
    return int(np.random.SeedSequence((seed, epoch, stream)).generate_state(1)[0])


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed what dropout draws from; torch.manual_seed would reseed every accelerator, not only this one."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(_mix(seed, epoch, stream))
