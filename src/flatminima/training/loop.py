"""Training on tensors that fit in memory: a seed in, the same minimum out, also across interruptions.

Every step goes through `optimizer.step(closure)`, so SAM and PertOPT fit without a branch. Batches,
augmentation and dropout draw from (seed, epoch, purpose); torch's global random state is left as it was. On a
GPU, bitwise repeatability also needs `torch.use_deterministic_algorithms(True)`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatminima import interrupts
from flatminima.core.ambient import refuse_without_gradients
from flatminima.errors import DataError, NumericalError, UsageError
from flatminima.training.averaging import Average
from flatminima.training.best import Best
from flatminima.training.config import TrainConfig
from flatminima.training.data_parallel import check_together
from flatminima.training.evaluate import Evaluation, MeanLoss, assess, evaluation
from flatminima.training.history import Epoch, History
from flatminima.training.memory_format import channels_last
from flatminima.training.objective import LABELS, Objective, count, output_of_one, rows
from flatminima.training.schedule import Plateau
from flatminima.training.steps import (
    AUGMENT,
    BATCHES,
    DROPOUT,
    Augment,
    BackwardFunction,
    batch_sizes,
    check_images,
    make_optimizer,
    rates,
    seed_dropout,
    state_copy,
    stream_seed,
    switch,
    take_step,
    tell_epoch,
    warn_of_eval_mode,
)

if TYPE_CHECKING:
    from flatminima.core.distributed import Ranks
    from flatminima.core.losses import Loss, PerSample

Tensors = tuple[Any, Tensor]  # inputs: a tensor, or a tuple or dictionary of them
VALIDATION = "validation"  # the name of the held-out samples that choose the best epoch and when to stop


Hook = Callable[["Training"], None]


class Training:
    """A training under way, whose whole state can be saved between two steps: resuming is bit for bit.

    Args:
        model, inputs, targets, config, loss, augment, optimizer, backward: see `train`.
        modules: others whose `state_dict` belongs to the state, by name, e.g. the FisherTrace of `backward`.
        held_out: samples to evaluate after each epoch, by name; those named "validation" choose the best epoch.
        ranks: processes that each take a part of every batch; each of them makes the same Training.

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
        inputs: Any,
        targets: Tensor,
        *,
        config: TrainConfig | None = None,
        loss: str | PerSample | Loss = LABELS,
        augment: Augment | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        backward: BackwardFunction | None = None,
        modules: dict[str, Any] | None = None,
        held_out: Mapping[str, Tensors] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        refuse_without_gradients()
        self.config, self.held_out, self.ranks = config or TrainConfig(), dict(held_out or {}), ranks
        self.objective = Objective(loss)
        self.objective.check_samples(inputs, targets)
        check_images(inputs, augment, channels_last=self.config.channels_last)
        if backward is not None and self.config.precision != "float32":
            raise UsageError(f"precision={self.config.precision}: `backward` takes differences that need float32")
        self._check_held_out()
        output = output_of_one(model, inputs)
        for y in (targets, *(y for _, y in self.held_out.values())):
            self.objective.check_targets(y, output)
        if ranks is not None:
            check_together(model, ranks)
            if backward is not None:
                raise UsageError(
                    f"`backward` takes gradients of its own, and {ranks.size} processes share this training"
                )
        self.model, self.inputs, self.targets, self.augment, self.backward = model, inputs, targets, augment, backward
        self.optimizer = optimizer or make_optimizer(model, self.config)
        self.modules = modules or {}
        self.plateau = Plateau(self.config.patience) if self.config.schedule == "plateau" else None
        self.average = None if self.config.average_from is None else Average(model)
        self.best = Best(keep=self.config.keep_best) if VALIDATION in self.held_out else None
        self._rates = rates(self.optimizer)
        self._batches = batch_sizes(count(inputs), self.config.batch_size)
        self.total = self.config.epochs * len(self._batches)
        self.epoch = self.batch = self.steps = 0  # the epoch under way, from 0; its steps, and all, that are done
        self.loss = math.nan  # of the last step
        self.epochs: list[Epoch] = []
        self._loss_sum, self._wrong, self._seconds = 0.0, 0.0, 0.0
        self._interrupted = False  # on any process
        self.stopped: str | None = None
        self._final: Evaluation | MeanLoss | None = None
        self._seen: Evaluation | MeanLoss = MeanLoss(math.nan, None, 0)
        self._held_out: dict[str, Evaluation | MeanLoss] = {}
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
        on_step: Hook | None = None,
        on_epoch: Hook | None = None,
        on_stop: Hook | None = None,
    ) -> History:
        """Train to the end from wherever it is.

        Args:
            on_step, on_epoch: called after each step and, before that, each epoch; modes they change are put back.
            on_stop: called before `Interrupted` leaves; the last moment to take `state_dict`.

        Raises:
            Interrupted: a signal arrived; between two steps, or before the evaluations of an epoch.
        """
        with self._modes_and_rates() as put_modes_back, torch.random.fork_rng(devices=self._devices()):
            try:
                self._run(on_step, on_epoch, put_modes_back)
            except interrupts.Interrupted:
                if on_stop is not None:
                    on_stop(self)
                raise
        final = self._finish()
        best = None if self.best is None else self.best.epoch
        return History(tuple(self.epochs), final, str(self.stopped), self.steps, best)

    def _run(self, on_step: Hook | None, on_epoch: Hook | None, put_modes_back: Callable[[], None]) -> None:
        self._set_random(self._random)
        order = self._begin_epoch() if self.batch == 0 else self._order()
        while self.stopped is None:
            began = time.perf_counter()
            if self.batch < len(self._batches):  # or the process stopped before this epoch's evaluations
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
                    put_modes_back()
            if on_step is not None:
                on_step(self)
                put_modes_back()
            if last and self.stopped is None:
                self.epoch, self.batch = self.epoch + 1, 0
                order = self._begin_epoch()
            if self.stopped is None:
                self._stop_if_asked()

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the training depends on: copies of tensors, numbers and text. For `on_step`."""
        own: dict[str, Any] = {} if self.average is None else {"average": self.average.state_dict()}
        if self.best is not None:
            own["best"] = self.best.state_dict()
        if self.plateau is not None:
            own["plateau"] = asdict(self.plateau)
        state: dict[str, Any] = state_copy(
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
        """Go on from `state_dict` of a training with the same arguments, or with fewer epochs."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.plateau is not None:
            self.plateau = Plateau(**state["plateau"])
        if self.best is not None:
            self.best.load_state_dict(state["best"])
        self.epochs = [Epoch.from_dict(values) for values in state["epochs"]]
        self.epoch, self.batch, self.steps = state["position"]
        self._loss_sum, self._wrong, self._seconds = state["sums"]
        self.stopped, self._random = state["stopped"], {key: state["random"][key] for key in self._get_random()}
        if self.stopped == "epochs" and self.epoch + 1 < self.config.epochs:
            self.stopped = None
        for key in ("global", "augment"):  # refused here, and not at the first step
            torch.Generator().set_state(self._random[key])
        if self.batch == len(self._batches) and self.stopped is None and len(self.epochs) > self.epoch:
            self.epoch, self.batch = self.epoch + 1, 0

    def _begin_epoch(self) -> list[Tensor]:
        self._loss_sum, self._wrong, self._seconds = 0.0, 0.0, 0.0
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._factor()
        tell_epoch(self.optimizer, self.epoch + 1)
        rank = 0 if self.ranks is None else self.ranks.rank
        seed_dropout(stream_seed(self.config.seed, self.epoch, DROPOUT, rank), self.targets.device)
        self._noise.manual_seed(stream_seed(self.config.seed, self.epoch, AUGMENT))
        return self._order()

    def _factor(self) -> float:
        drops = 0 if self.plateau is None else self.plateau.drops
        return self.config.factor(self.epoch) * self.config.gamma**drops

    def _order(self) -> list[Tensor]:
        shuffle = torch.Generator().manual_seed(stream_seed(self.config.seed, self.epoch, BATCHES))
        order = torch.randperm(count(self.inputs), generator=shuffle)
        return list(torch.split(order.to(self.targets.device), self._batches))

    def _take_step(self, chosen: Tensor) -> None:
        x, y = rows(self.inputs, chosen), self.targets[chosen]
        if self.augment is not None:
            x = self.augment(x, self._noise)
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.epoch < self.config.warmup:
            ramp = self.config.ramp(self.epoch, self.batch, len(self._batches))
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * self._factor() * ramp
        half = self.config.precision == "bfloat16"
        self.loss, errors, (asked,) = take_step(
            self.model, self.optimizer, self.backward, x, y, objective=self.objective, half=half, ranks=self.ranks,
            numbers=(float(interrupts.requested()),),
        )  # fmt: skip
        self._interrupted = asked > 0
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
        switch(self.optimizer, "eval")
        found = self._evaluate(self.inputs, self.targets)
        if self.config.target_loss is not None and found.loss < self.config.target_loss:
            self.stopped, self._final, self._seen = "target_loss", found, found
            self._held_out = {name: self._evaluate(*samples) for name, samples in self.held_out.items()}
            if self.best is not None:
                self.best.see(self.epoch + 1, self._held_out[VALIDATION].loss, self.model)

    def _evaluate(self, inputs: Any, targets: Tensor) -> Evaluation | MeanLoss:
        """In eval mode; may stop for a signal where this process is alone, as nothing has changed yet."""
        each = interrupts.raise_if_interrupted if self.ranks is None else None
        return assess(self.model, inputs, targets, objective=self.objective, ranks=self.ranks, each_batch=each)

    def _end_epoch(self) -> None:
        switch(self.optimizer, "eval")
        config, n = self.config, count(self.inputs)
        whole = config.target_loss is not None or self.backward is not None
        final = self._evaluate(self.inputs, self.targets) if whole else None
        held_out = {name: self._evaluate(*samples) for name, samples in self.held_out.items()}
        # from here on it changes, and nothing stops for a signal
        self._final, self._held_out = final, held_out
        error = self._wrong / n if self.objective.calls_wrong else None
        of_the_steps = evaluation(self._loss_sum / n, error, n)
        self._seen = final or of_the_steps
        if self.average is not None and config.average_from is not None and self.epoch + 1 >= config.average_from:
            self.average.update(self.model)
        validation = self._held_out.get(VALIDATION)
        if self.best is not None and validation is not None:
            self.best.see(self.epoch + 1, validation.loss, self.model)
        if self.plateau is not None:  # sees the same with a target as without: a rate of its own is another training
            own = of_the_steps if self.backward is None else self._seen
            self.plateau.see((own if validation is None else validation).loss)
        if config.target_loss is not None and self._seen.loss < config.target_loss:
            self.stopped = "target_loss"
        elif self.best is not None and config.stop_after is not None and self.best.waited >= config.stop_after:
            self.stopped = "validation"
        elif self.epoch + 1 == config.epochs:
            self.stopped = "epochs"

    def _record(self) -> None:
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.epochs.append(Epoch(self._seen.loss, self._seen.error, rate, self._seconds, self._held_out))

    def _stop_if_asked(self) -> None:
        """Between two steps, and on all processes after the same one."""
        if self._interrupted or (self.ranks is None and interrupts.requested()):
            interrupts.stop()

    def _check_held_out(self) -> None:
        for name, (x, y) in self.held_out.items():
            try:
                self.objective.check_samples(x, y)
            except DataError as error:
                raise DataError(f"{name}: {error}") from None
        if VALIDATION not in self.held_out and (self.config.keep_best or self.config.stop_after is not None):
            raise UsageError("keep_best and stop_after go by validation samples; give them")

    def _finish(self) -> Evaluation | MeanLoss:
        """Averaged weights into the model, where there are any; the evaluation of what it then holds."""
        if self.average is not None and self.average.count:
            with torch.random.fork_rng(devices=self._devices()):
                seed_dropout(stream_seed(self.config.seed, self.config.epochs, DROPOUT), self.targets.device)
                self.average.install(self.model, self.inputs, self.config.batch_size)
            self._final = None
        if self.best is not None and self.config.keep_best and self.best.epoch != len(self.epochs):
            self.best.install(self.model)
            self._final = None
        if self._final is None:
            self._final = assess(self.model, self.inputs, self.targets, objective=self.objective, ranks=self.ranks)
        return self._final

    @contextmanager
    def _modes_and_rates(self) -> Iterator[Callable[[], None]]:
        """Memory format, modes and rates are put back after the block; yields what puts the modes back."""
        warn_of_eval_mode(self.model)
        modes = [(module, module.training) for module in self.model.modules()]

        def put_modes_back() -> None:
            for module, training in modes:
                module.training = training

        try:
            with channels_last(self.model, self.optimizer) if self.config.channels_last else nullcontext():
                yield put_modes_back
        finally:
            put_modes_back()
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate

    def _devices(self) -> list[torch.device]:
        return [self.targets.device] if self.targets.is_cuda else []

    def _get_random(self) -> dict[str, Tensor]:
        found = {"global": torch.get_rng_state(), "augment": self._noise.get_state()}
        return found | {f"device {i}": torch.cuda.get_rng_state(d) for i, d in enumerate(self._devices())}

    def _set_random(self, state: dict[str, Tensor] | None) -> None:
        if state is not None:
            torch.set_rng_state(state["global"])
            self._noise.set_state(state["augment"])
            for i, device in enumerate(self._devices()):
                torch.cuda.set_rng_state(state[f"device {i}"], device)
