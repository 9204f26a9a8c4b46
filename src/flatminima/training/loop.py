"""Training on tensors that fit in memory: a seed in, the same minimum out, also across interruptions.

Every step goes through `optimizer.step(closure)`, so SAM and PertOPT fit without a branch. Batches,
augmentation and dropout draw from (seed, epoch, purpose); torch's global random state is left as it was. On a
GPU, bitwise repeatability also needs `torch.use_deterministic_algorithms(True)`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatminima.errors import DataError, NumericalError, UsageError
from flatminima.training.averaging import Average
from flatminima.training.config import TrainConfig
from flatminima.training.evaluate import Evaluation, check_samples, evaluate
from flatminima.training.schedule import Plateau

Backward = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor], Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]

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
        final: the whole training set after the last step, in eval mode, without augmentation; with averaging, of
            the averaged weights.
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
    augment: Augment | None = None,
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
            gradients and returns the loss, as `optim.FisherTrace.backward` does; in float32 only.
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
    training = Training(
        model, inputs, targets, config=config, augment=augment, optimizer=optimizer, backward=backward
    )  # fmt: skip
    training.skip(first_epoch)

    def stepped(at: Training) -> None:
        if progress is not None:
            progress(at.steps, at.total, f"epoch {at.epoch + 1}, loss {at.loss:.4f}")

    def finished(at: Training) -> None:
        if on_epoch is not None:
            on_epoch(at.epoch, model)

    return training.run(on_step=stepped, on_epoch=finished)


class Training:
    """A training under way, whose whole state can be saved between two steps: resuming is bit for bit.

    Args:
        model, inputs, targets, config, augment, optimizer, backward: see `train`.
        modules: others whose `state_dict` belongs to the state, by name, e.g. the FisherTrace of `backward`.

    Examples:
        >>> from flatminima.models import build
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 2
        >>> whole = Training(build("mlp", seed=0, widths=(4, 2)), x, y, config=TrainConfig(epochs=2, batch_size=8))
        >>> states = []
        >>> _ = whole.run(on_step=lambda t: states.append(t.state_dict()) if t.steps == 4 else None)
        >>> again = Training(build("mlp", seed=1, widths=(4, 2)), x, y, config=TrainConfig(epochs=2, batch_size=8))
        >>> again.load_state_dict(states[0])
        >>> _ = again.run()
        >>> again.steps, torch.equal(again.model[-1].weight, whole.model[-1].weight)
        (6, True)
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        *,
        config: TrainConfig | None = None,
        augment: Augment | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        backward: Backward | None = None,
        modules: dict[str, Any] | None = None,
    ) -> None:
        self.config = config or TrainConfig()
        check_samples(inputs, targets)
        if self.config.channels_last and inputs.ndim != 4:
            raise DataError(
                f"channels_last is of images (n, channels, height, width); got inputs {tuple(inputs.shape)}"
            )
        if backward is not None and self.config.precision != "float32":
            raise UsageError(f"precision={self.config.precision}: `backward` takes differences that need float32")
        self.model, self.inputs, self.targets, self.augment, self.backward = model, inputs, targets, augment, backward
        self.optimizer = optimizer or make_optimizer(model, self.config)
        self.modules = modules or {}
        self.plateau = Plateau(self.config.patience) if self.config.schedule == "plateau" else None
        self.average = None if self.config.average_from is None else Average(model)
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._batches = batch_sizes(len(inputs), self.config.batch_size)
        self.total = self.config.epochs * len(self._batches)
        self.epoch = self.batch = self.steps = 0  # the epoch under way, from 0; its steps, and all, that are done
        self.loss = math.nan  # of the last step
        self.epochs: list[Epoch] = []
        self._loss_sum, self._wrong, self._seconds = 0.0, 0, 0.0
        self.stopped: str | None = None
        self._final: Evaluation | None = None
        self._noise = torch.Generator()
        self._random: dict[str, Tensor] | None = None  # to go on with, after loading

    def skip(self, epochs: int) -> None:
        """Begin after so many epochs; what they did is in the model and the optimizer already."""
        if not 0 <= epochs < self.config.epochs:
            raise UsageError(f"first_epoch={epochs}: must be in 0 ... {self.config.epochs - 1}, the epochs to train")
        if epochs and self.plateau is not None:
            raise UsageError("a plateau schedule depends on the epochs before: go on from `state_dict` instead")
        self.epoch, self.steps = epochs, epochs * len(self._batches)

    def run(
        self,
        *,
        on_step: Callable[[Training], None] | None = None,
        on_epoch: Callable[[Training], None] | None = None,
    ) -> History:
        """Train to the end from wherever it is; the hooks run after each step and, before that, after each epoch."""
        with self._modes_and_rates(), torch.random.fork_rng(devices=self._devices()):
            self._set_random(self._random)
            order = self._begin_epoch() if self.batch == 0 else self._order()
            while self.stopped is None:
                began = time.perf_counter()
                self._take_step(order[self.batch])
                last = self.batch == len(self._batches)
                if last:
                    self._end_epoch()
                elif self._due():
                    self._look()
                self._seconds += time.perf_counter() - began
                if last or self.stopped is not None:
                    self._record()
                    if on_epoch is not None:
                        on_epoch(self)
                if on_step is not None:
                    on_step(self)
                if last and self.stopped is None:
                    self.epoch, self.batch = self.epoch + 1, 0
                    order = self._begin_epoch()
        final = self._finish()
        return History(tuple(self.epochs), final, self.stopped, self.steps)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the training depends on: copies of tensors, numbers and text. For `on_step`."""
        own: dict[str, Any] = {} if self.average is None else {"average": self.average.state_dict()}
        if self.plateau is not None:
            own["plateau"] = asdict(self.plateau)
        state: dict[str, Any] = _copied(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "modules": {name: module.state_dict() for name, module in self.modules.items()},
                "random": self._get_random(),
                "epochs": [asdict(epoch) for epoch in self.epochs],
                "position": [self.epoch, self.batch, self.steps],
                "sums": [self._loss_sum, self._wrong, self._seconds],
                "stopped": self.stopped,
                **own,
            }
        )
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict` of a training with the same arguments."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.plateau is not None:
            self.plateau = Plateau(**state["plateau"])
        self.epochs = [Epoch(**values) for values in state["epochs"]]
        self.epoch, self.batch, self.steps = state["position"]
        self._loss_sum, self._wrong, self._seconds = state["sums"]
        self.stopped, self._random = state["stopped"], {key: state["random"][key] for key in self._get_random()}
        for key in ("global", "augment"):  # refused here, and not at the first step
            torch.Generator().set_state(self._random[key])
        if self.batch == len(self._batches) and self.stopped is None:
            self.epoch, self.batch = self.epoch + 1, 0

    def _begin_epoch(self) -> list[Tensor]:
        self._loss_sum, self._wrong, self._seconds = 0.0, 0, 0.0
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._factor()
        _seed_dropout(_mix(self.config.seed, self.epoch, _DROPOUT), self.inputs.device)
        self._noise.manual_seed(_mix(self.config.seed, self.epoch, _AUGMENT))
        return self._order()

    def _factor(self) -> float:
        drops = 0 if self.plateau is None else self.plateau.drops
        return self.config.factor(self.epoch) * self.config.gamma**drops

    def _order(self) -> list[Tensor]:
        shuffle = torch.Generator().manual_seed(_mix(self.config.seed, self.epoch, _BATCHES))
        order = torch.randperm(len(self.inputs), generator=shuffle)
        return list(torch.split(order.to(self.inputs.device), self._batches))

    def _take_step(self, rows: Tensor) -> None:
        x, y = self.inputs[rows], self.targets[rows]
        if self.augment is not None:
            x = self.augment(x, self._noise)
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        half = self.config.precision == "bfloat16"
        self.loss, errors = _step(self.model, self.optimizer, self.backward, x, y, half=half)
        self.steps += 1
        self.batch += 1
        if not math.isfinite(self.loss):
            raise NumericalError(
                f"training diverged at step {self.steps} (epoch {self.epoch + 1}): the loss is {self.loss}; "
                f"lower the learning rate {self.config.lr:g}"
            )
        self._loss_sum += self.loss * len(y)
        self._wrong += errors

    def _due(self) -> bool:
        config = self.config
        return config.target_loss is not None and bool(config.look_every) and self.steps % (config.look_every or 1) == 0

    def _look(self) -> None:
        """Within an epoch: stop where the target is reached."""
        found = evaluate(self.model, self.inputs, self.targets)
        if self.config.target_loss is not None and found.loss < self.config.target_loss:
            self.stopped, self._final, self._seen = "target_loss", found, found

    def _end_epoch(self) -> None:
        config, n = self.config, len(self.inputs)
        if self.average is not None and config.average_from is not None and self.epoch + 1 >= config.average_from:
            self.average.update(self.model)
        whole = config.target_loss is not None or self.backward is not None
        self._final = evaluate(self.model, self.inputs, self.targets) if whole else None
        self._seen = self._final or Evaluation(self._loss_sum / n, self._wrong / n, n)
        if self.plateau is not None:
            self.plateau.see(self._seen.loss)
        if config.target_loss is not None and self._seen.loss < config.target_loss:
            self.stopped = "target_loss"
        elif self.epoch + 1 == config.epochs:
            self.stopped = "epochs"

    def _record(self) -> None:
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.epochs.append(Epoch(self._seen.loss, self._seen.error, rate, self._seconds))

    def _finish(self) -> Evaluation:
        """Averaged weights into the model, where there are any; the evaluation of what it then holds."""
        if self.average is not None and self.average.count:
            with torch.random.fork_rng(devices=self._devices()):
                _seed_dropout(_mix(self.config.seed, self.config.epochs, _DROPOUT), self.inputs.device)
                self.average.install(self.model, torch.split(self.inputs, self.config.batch_size))
            self._final = None
        if self._final is None:
            self._final = evaluate(self.model, self.inputs, self.targets)
        return self._final

    @contextmanager
    def _modes_and_rates(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self.model.modules()]
        if self.config.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        try:
            yield
        finally:
            if self.config.channels_last:
                self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            for module, training in modes:
                module.training = training
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate

    def _devices(self) -> list[torch.device]:
        return [self.inputs.device] if self.inputs.is_cuda else []

    def _get_random(self) -> dict[str, Tensor]:
        found = {"global": torch.get_rng_state(), "augment": self._noise.get_state()}
        return found | {f"device {i}": torch.cuda.get_rng_state(d) for i, d in enumerate(self._devices())}

    def _set_random(self, state: dict[str, Tensor] | None) -> None:
        if state is not None:
            torch.set_rng_state(state["global"])
            self._noise.set_state(state["augment"])
            for i, device in enumerate(self._devices()):
                torch.cuda.set_rng_state(state[f"device {i}"], device)


def _copied(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    backward: Backward | None,
    x: Tensor,
    y: Tensor,
    *,
    half: bool,
) -> tuple[float, int]:
    """One optimizer step: the batch's mean loss at the weights before it, and its errors (0 with `backward`)."""
    seen: list[tuple[Tensor, int]] = []  # SAM calls the closure twice; the first is at the weights themselves

    def closure() -> Tensor:
        optimizer.zero_grad()
        if backward is not None:
            loss = backward(cross_entropy, x, y)
            seen.append((loss.detach(), 0))
            return loss
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            logits = model(x)
        if not seen and int(y.max()) >= logits.shape[1]:
            raise DataError(f"a label is {int(y.max())} but the model has {logits.shape[1]} outputs")
        loss = cross_entropy(logits.float() if half else logits, y)
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


def batch_sizes(n: int, batch_size: int) -> list[int]:
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
