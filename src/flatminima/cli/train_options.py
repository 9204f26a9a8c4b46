"""The options of `flatminima train` in their groups, and what can be refused of them without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from flatminima.catalog.choices import AUGMENTATIONS, LOSSES, METHODS, PRECISIONS, SCHEDULES
from flatminima.cli import factory
from flatminima.cli.early_checks import check_network, check_samples
from flatminima.cli.options import (
    MOST_SEED,
    AppDir,
    AsJson,
    Data,
    Device,
    Loss,
    Model,
    ModelArg,
    ModelConfig,
    Threads,
)
from flatminima.cli.sample_options import Reading
from flatminima.errors import CheckpointError, DataError, UnknownName, UsageError

Strings = list[str] | None


@dataclass(frozen=True)
class NetworkOptions:
    """The network to train."""

    model: Model
    model_arg: ModelArg = None
    model_config: ModelConfig = None
    app_dir: AppDir = None
    init: Annotated[
        Path | None, typer.Option("--init", "--checkpoint", help="Weights to start from: .safetensors or .pt.")
    ] = None
    dropout: Annotated[float | None, typer.Option(help="Rate for all dropout layers of the network.")] = None

    def check(self) -> None:
        check_network(self.model, list(self.model_arg or ()), self.model_config, None, self.app_dir)
        _within("--dropout", self.dropout, self.dropout is None or 0 <= self.dropout < 1, "in [0, 1)")
        if self.init is not None and not self.init.exists():
            raise CheckpointError(f"no file {self.init} for --init; check the path")


@dataclass(frozen=True)
class SampleOptions:
    """The samples to train on, and to evaluate on."""

    data: Data
    split: Annotated[str, typer.Option(help="Split to train on: train, train[:1000], ...")] = "train"
    validation_split: Annotated[
        str | None, typer.Option(help="Split for --keep-best, --stop-after and 'plateau'; not the one trained on.")
    ] = None
    test_split: Annotated[str | None, typer.Option(help="Split to evaluate on after each epoch.")] = None
    label_noise: Annotated[float, typer.Option(help="Share of training labels redrawn at random.")] = 0.0
    augment: Annotated[str, typer.Option(help=f"{', '.join(AUGMENTATIONS)}.")] = "none"

    def check(self) -> None:
        _known("augmentation", self.augment, AUGMENTATIONS)
        _within("--label-noise", self.label_noise, 0 <= self.label_noise <= 1, "in [0, 1]")
        for option, part in (("--validation-split", self.validation_split), ("--test-split", self.test_split)):
            if part == self.split:
                raise DataError(f"got {part!r} for both --split and {option}; what is trained on judges nothing")
        if self.validation_split is not None and self.validation_split == self.test_split:
            raise DataError(
                f"got {self.test_split!r} for both --validation-split and --test-split; what chooses the weights is no "
                "test of them"
            )


@dataclass(frozen=True)
class MethodOptions:
    """The objective, and the optimizer that takes the steps."""

    loss: Loss = "cross_entropy"
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")] = "plain"
    method_arg: Annotated[Strings, typer.Option(help="key=value for the method; repeat.")] = None
    optimizer: Annotated[str, typer.Option(help="Class of torch.optim, or package.module:Class.")] = "sgd"
    optimizer_arg: Annotated[Strings, typer.Option(help="key=value for the optimizer; repeat.")] = None

    def check(self) -> None:
        _known("loss", self.loss, LOSSES)
        _known("method", self.method, METHODS)
        factory.arguments(list(self.method_arg or ()), "--method-arg")
        factory.arguments(list(self.optimizer_arg or ()), "--optimizer-arg")


@dataclass(frozen=True)
class RateOptions:
    """The learning rate."""

    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.01
    schedule: Annotated[str, typer.Option(help=f"Of the learning rate: {', '.join(SCHEDULES)}.")] = "constant"
    milestone: Annotated[list[int] | None, typer.Option(help="Epoch at which 'step' multiplies; repeat.")] = None
    gamma: Annotated[float, typer.Option(help="Factor of 'step' and 'plateau'.")] = 0.1
    warmup: Annotated[int, typer.Option(min=0, help="Epochs in which the rate rises from nothing.")] = 0

    def check(self) -> None:
        _known("schedule", self.schedule, SCHEDULES)
        _within("--lr", self.lr, 0 < self.lr < math.inf, "positive")


@dataclass(frozen=True)
class LengthOptions:
    """The length of training, and which weights are the result."""

    epochs: Annotated[int, typer.Option(min=1, help="Epochs at most; more than --output had: it goes on.")] = 20
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a step, of all processes together.")] = 64
    target_loss: Annotated[float | None, typer.Option(help="Stop below this loss of the training set.")] = None
    keep_best: Annotated[bool, typer.Option("--keep-best", help="The epoch of the lowest validation loss.")] = False
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without a lower validation loss.")
    ] = None
    average_from: Annotated[int | None, typer.Option(min=1, help="Average the weights from this epoch on.")] = None
    average_lr: Annotated[float | None, typer.Option(min=0, help="Learning rate of the epochs averaged.")] = None


@dataclass(frozen=True)
class MachineOptions:
    """The machine and precision, which decide roundings."""

    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Of weights, batches, noise, everything that is drawn.")
    ] = 0
    device: Device = None
    threads: Threads = None
    precision: Annotated[str, typer.Option(help="float32, or bfloat16: forward passes in autocast.")] = "float32"
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Images in that memory format: faster for convolutions.")
    ] = False

    def check(self) -> None:
        _known("precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class KeepingOptions:
    """The files to write, and how often."""

    output: Annotated[Path, typer.Option(help="Folder for weights, metrics and checkpoints; the same again goes on.")]
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between two checkpoints.")] = 60.0
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write events for TensorBoard too.")] = False
    track: Annotated[
        int | None, typer.Option(min=1, help="Follow curvature every so many steps; `flatminima track` shows it.")
    ] = None
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, whatever --output holds.")] = False
    as_json: AsJson = False


@dataclass(frozen=True)
class TrainRequest:
    """The options that decide the result, as typed."""

    network: NetworkOptions
    samples: SampleOptions
    reading: Reading
    method: MethodOptions
    rate: RateOptions
    length: LengthOptions
    machine: MachineOptions

    def check(self) -> None:
        """Refuse what can be refused without torch.

        Raises:
            UsageError: naming the option.
        """
        for group in (self.network, self.samples, self.reading, self.method, self.rate, self.machine):
            group.check()
        check_samples(self.network.model, self.samples.data, self.reading)
        if self.samples.label_noise and self.method.loss != "cross_entropy":
            raise UsageError(f"--label-noise redraws the labels of classes; --loss {self.method.loss} has none")
        wants = self.length.keep_best or self.length.stop_after is not None
        if wants and self.samples.validation_split is None:
            raise UsageError("--keep-best and --stop-after go by --validation-split; give one, e.g. 'train[-10%:]'")

    def document(self) -> dict[str, Any]:
        """Every option by name, as JSON holds it; threads, which change nothing, are left out."""
        groups = (self.network, self.samples, self.reading, self.method, self.rate, self.length, self.machine)
        values = {name: value for group in groups for name, value in asdict(group).items() if name != "threads"}
        return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def _known(kind: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UnknownName(kind, value, known)


def _within(option: str, number: float | None, fits: bool, range_: str) -> None:
    if not fits:
        raise UsageError(f"got {option} {number}; it must be {range_}")
