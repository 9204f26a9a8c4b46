"""`flatminima train`: to a minimum, with the base optimizer, PertOPT, SAM or the Fisher-trace regularizer.

Killed at any moment, the same command goes on and ends with the same bits. In this order: what needs no torch is
checked, then the folder is claimed, then the network is built, data is read, and it is trained.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatminima.cli import factory
from flatminima.cli.device import usable
from flatminima.cli.options import (
    SCALINGS,
    AppDir,
    AsJson,
    Data,
    DataConfig,
    Device,
    ImageColumn,
    ImageMode,
    ImageSize,
    LabelColumn,
    Limit,
    Model,
    ModelArg,
    Scaling,
    Threads,
)
from flatminima.cli.terminal import animated, bars, clock, say
from flatminima.errors import CheckpointError, DataError, MissingExtra, UnknownName, UsageError
from flatminima.io import claimed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatminima.training.evaluate import Evaluation
    from flatminima.training.loop import History, Training
    from flatminima.training.methods import Method
    from flatminima.training.session import Row

# what torch's side accepts, written again so that a slip costs no import of torch; a test compares them
METHODS = ("fisher_trace", "pertopt", "plain", "sam")
AUGMENTATIONS = ("1-crop-f", "4-crop-f", "flip", "none")
SCHEDULES = ("constant", "cosine", "plateau", "step")
WEIGHTS, RESULT = "weights.safetensors", "result.json"
_QUIET = 10.0  # seconds between two lines where there is no terminal to draw on


@dataclass(frozen=True)
class Request:
    """What decides the result, as typed."""

    model: str
    data: str
    init: str | None
    split: str
    test_split: str | None
    scaling: str
    limit: int | None
    model_arg: tuple[str, ...]
    app_dir: str | None
    data_config: str | None
    image_column: str | None
    label_column: str | None
    mode: str | None
    image_size: int | None
    method: str
    method_arg: tuple[str, ...]
    optimizer: str
    optimizer_arg: tuple[str, ...]
    lr: float
    schedule: str
    milestones: tuple[int, ...]
    gamma: float
    epochs: int
    batch_size: int
    target_loss: float | None
    average_from: int | None
    average_lr: float | None
    dropout: float | None
    label_noise: float
    augment: str
    seed: int
    device: str | None

    def check(self) -> None:
        """Refuse what can be refused without torch.

        Raises:
            UsageError: naming the option.
        """
        factory.split(self.model)
        for pairs, option in ((self.model_arg, "--model-arg"), (self.method_arg, "--method-arg"),
                              (self.optimizer_arg, "--optimizer-arg")):  # fmt: skip
            factory.arguments(list(pairs), option)
        for kind, value, known in (
            ("method", self.method, METHODS),
            ("scaling", self.scaling, SCALINGS),
            ("schedule", self.schedule, SCHEDULES),
            ("augmentation", self.augment, AUGMENTATIONS),
        ):
            if value not in known:
                raise UnknownName(kind, value, known)
        for option, number, fits, range_ in (
            ("--dropout", self.dropout, self.dropout is None or 0 <= self.dropout < 1, "in [0, 1)"),
            ("--label-noise", self.label_noise, 0 <= self.label_noise <= 1, "in [0, 1]"),
            ("--lr", self.lr, 0 < self.lr < math.inf, "positive"),
        ):
            if not fits:
                raise UsageError(f"got {option} {number}; it must be {range_}")
        if self.init is not None and not Path(self.init).exists():
            raise CheckpointError(f"no file {self.init} for --init; check the path")
        if self.app_dir is not None and not Path(self.app_dir).is_dir():
            raise UsageError(f"no folder {self.app_dir} for --app-dir; check the path")
        if self.data.startswith((".", "/")) and not Path(self.data).exists():
            raise DataError(f"no folder {self.data} for --data; check the path")


def train(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder for weights, metrics and checkpoints; the same again goes on.")],
    method: Annotated[str, typer.Option(help="plain, pertopt, sam or fisher_trace.")] = "plain",
    method_arg: Annotated[list[str] | None, typer.Option(help="key=value for the method; repeat.")] = None,
    optimizer: Annotated[str, typer.Option(help="Class of torch.optim, or package.module:Class.")] = "sgd",
    optimizer_arg: Annotated[list[str] | None, typer.Option(help="key=value for the optimizer; repeat.")] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.01,
    schedule: Annotated[
        str, typer.Option(help="Of the learning rate: constant, cosine, step or plateau.")
    ] = "constant",
    milestone: Annotated[list[int] | None, typer.Option(help="Epoch at which 'step' multiplies; repeat.")] = None,
    gamma: Annotated[float, typer.Option(help="Factor of 'step' and 'plateau'.")] = 0.1,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs at most.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a step.")] = 64,
    target_loss: Annotated[float | None, typer.Option(help="Stop below this loss of the training set.")] = None,
    average_from: Annotated[int | None, typer.Option(min=1, help="Average the weights from this epoch on.")] = None,
    average_lr: Annotated[float | None, typer.Option(min=0, help="Learning rate of the epochs averaged.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Rate for all dropout layers of the network.")] = None,
    label_noise: Annotated[float, typer.Option(help="Share of training labels redrawn at random.")] = 0.0,
    augment: Annotated[str, typer.Option(help="none, flip, 1-crop-f or 4-crop-f.")] = "none",
    init: Annotated[Path | None, typer.Option(help="Weights to start from: .safetensors or .pt.")] = None,
    split: Annotated[str, typer.Option(help="Split to train on: train, train[:1000], ...")] = "train",
    test_split: Annotated[str | None, typer.Option(help="Split to evaluate on after each epoch.")] = None,
    scaling: Scaling = "unit",
    limit: Limit = None,
    model_arg: ModelArg = None,
    app_dir: AppDir = None,
    data_config: DataConfig = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    mode: ImageMode = None,
    image_size: ImageSize = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, batches, noise, everything that is drawn.")] = 0,
    device: Device = None,
    threads: Threads = None,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between two checkpoints.")] = 60.0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write events for TensorBoard too.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, whatever --output holds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a network to a minimum; killed, the same command goes on where it was."""
    request = Request(
        model, data, _text(init), split, test_split, scaling, limit, tuple(model_arg or ()), _text(app_dir),
        data_config, image_column, label_column, mode, image_size, method, tuple(method_arg or ()), optimizer,
        tuple(optimizer_arg or ()), lr, schedule, tuple(milestone or ()), gamma, epochs, batch_size, target_loss,
        average_from, average_lr, dropout, label_noise, augment, seed, device,
    )  # fmt: skip
    request.check()
    with bars(), contextlib.redirect_stdout(sys.stderr):
        result = _train(request, output, threads, save_every, tensorboard, fresh)
    if as_json:
        typer.echo(json.dumps(result, indent=1, allow_nan=False))
    else:
        typer.echo(_summary(result))
    sys.stdout.flush()  # before the notes, where both go to one terminal
    say(f"\nWeights: {output / WEIGHTS}\nMetrics: {output / 'metrics.jsonl'}")
    say("Next:    flatminima measure with the same --model and --data, and these weights as --checkpoint")


def _train(
    request: Request, output: Path, threads: int | None, save_every: float, tensorboard: bool, fresh: bool
) -> dict[str, Any]:
    """Train, save, and say what came out."""
    import torch

    from flatminima.io import write_whole
    from flatminima.training import save_checkpoint
    from flatminima.training.loop import Training
    from flatminima.training.session import Session

    if threads is not None:
        torch.set_num_threads(threads)
    device = usable(request.device)
    config = _config(request)
    network, notes = _network(request, device)
    (x, y), test = _samples(request, device, notes)
    steps = len(_batches(len(x), request.batch_size))
    chosen = _method(request, network, steps)
    with claimed(output):
        session = Session(output, asdict(request), save_every=save_every, fresh=fresh)
        for note in notes:  # only now: where something above was refused, that one line is all there is
            say(f"Note: {note}")
        training = Training(
            network, x, y, config=config, augment=_augmentation(request), optimizer=chosen.optimizer,
            backward=chosen.backward, modules=chosen.modules,
        )  # fmt: skip
        with _events(output, tensorboard) as write:
            history = session.run(
                training,
                measure=lambda at: _measure(at, test, chosen),
                on_row=_Told(config.epochs, write),
                on_step=_tell,
            )
        metadata = {"scaling": request.scaling}
        save_checkpoint(network, output / WEIGHTS, metadata)
        result = _result(request, history, None if test is None else _evaluate(network, test))
        write_whole(output / RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n")
        return result


def _config(request: Request) -> Any:
    from flatminima.training import TrainConfig

    return TrainConfig(
        lr=request.lr,
        batch_size=request.batch_size,
        epochs=request.epochs,
        target_loss=request.target_loss,
        seed=request.seed,
        schedule=request.schedule,
        milestones=request.milestones,
        gamma=request.gamma,
        average_from=request.average_from,
        average_lr=request.average_lr,
    )


def _network(request: Request, device: str | None) -> tuple[nn.Module, list[str]]:
    """What is to be trained, in train mode, and what the user should know of it."""
    import torch

    from flatminima.training import load_checkpoint
    from flatminima.training.methods import set_dropout

    torch.manual_seed(request.seed)  # the factory's weights
    app_dir = None if request.app_dir is None else Path(request.app_dir)
    network = factory.build(request.model, factory.arguments(list(request.model_arg)), app_dir)
    notes = [] if request.init is None else list(load_checkpoint(network, request.init))
    if request.dropout is not None:
        set_dropout(network, request.dropout)
    return network.train().to(device or "cpu"), notes


def _samples(
    request: Request, device: str | None, notes: list[str]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """Training samples, with the noise asked for, and those to evaluate on."""
    from flatminima.data import corrupt_labels, load_tensors
    from flatminima.progress import report

    def load(split: str, limit: int | None) -> tuple[Tensor, Tensor]:
        x, y = load_tensors(
            request.data, split, limit=limit, scaling=request.scaling, config=request.data_config,
            image_column=request.image_column, label_column=request.label_column, mode=request.mode,
            image_size=request.image_size, progress=lambda done, total, text: report(text, done, total),
        )  # fmt: skip
        return x.to(device or "cpu"), y.to(device or "cpu")

    x, y = load(request.split, request.limit)
    if request.label_noise:
        noisy = corrupt_labels(y, request.label_noise, int(y.max()) + 1, request.seed)
        changed = int((noisy != y).sum())
        notes.append(f"{changed} of {len(y)} training labels are now wrong; a measure on the true labels sees others")
        y = noisy
    return (x, y), None if request.test_split is None else load(request.test_split, None)


def _method(request: Request, network: nn.Module, steps_per_epoch: int) -> Method:
    from flatminima.training.methods import base_optimizer, method

    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError(f"{request.model} gives a network without trainable parameters")
    options = factory.arguments(list(request.optimizer_arg), "--optimizer-arg")
    base = base_optimizer(request.optimizer, parameters, request.lr, options)
    options = factory.arguments(list(request.method_arg), "--method-arg")
    return method(request.method, network, base, options, steps_per_epoch=steps_per_epoch, seed=request.seed)


def _augmentation(request: Request) -> Any:
    from flatminima.data import augmentation

    return augmentation(request.augment)


def _batches(n: int, batch_size: int) -> list[int]:
    from flatminima.training.loop import batch_sizes

    return batch_sizes(n, batch_size)


def _evaluate(network: nn.Module, samples: tuple[Tensor, Tensor]) -> Evaluation:
    from flatminima.training import evaluate

    return evaluate(network, *samples)


def _measure(at: Training, test: tuple[Tensor, Tensor] | None, chosen: Method) -> Row:
    """What a line of metrics has beside the training's own."""
    found: dict[str, Any] = {}
    if test is not None:
        seen = _evaluate(at.model, test)
        found = {"test_loss": seen.loss, "test_error": seen.error}
    return found | chosen.diagnostics()


def _result(request: Request, history: History, test: Evaluation | None) -> dict[str, Any]:
    found = {"schema": 1, "method": request.method, "optimizer": request.optimizer, "steps": history.steps}
    found |= {"epochs": len(history.epochs), "stopped_because": history.stopped_because}
    found |= {"seconds": sum(e.seconds for e in history.epochs)}
    found |= {"train": asdict(history.final), "test": None if test is None else asdict(test)}
    return found


def _summary(result: dict[str, Any]) -> str:
    lines = [f"{result['method']} with {result['optimizer']}: {result['epochs']} epochs, {result['steps']} steps, "
             f"{result['seconds']:.1f} s"]  # fmt: skip
    for name in ("train", "test"):
        if result[name] is not None:
            found = result[name]
            lines.append(f"{name:<5} loss {found['loss']:.4f}  error {100 * found['error']:.2f}% of {found['n']}")
    return "\n".join(lines)


def _tell(at: Training) -> None:
    from flatminima.progress import report

    report("training", at.steps, at.total)


class _Told:
    """A line on stderr after an epoch, with the time left, where there is no terminal that shows a bar."""

    def __init__(self, epochs: int, write: Callable[[Row], None]) -> None:
        self._epochs, self._write = epochs, write
        self._began = self._last = time.monotonic()
        self._first: int | None = None  # epoch that this process began with

    def __call__(self, row: Row) -> None:
        self._write(row)
        epoch, now = row["epoch"], time.monotonic()
        self._first = self._first or epoch
        if animated() or (now - self._last < _QUIET and epoch < self._epochs):
            return
        self._last = now
        left = (now - self._began) / (epoch - self._first + 1) * (self._epochs - epoch)
        numbers = [f"loss {row['loss']:.4f}", f"error {100 * row['error']:.2f}%"]
        if "test_error" in row:
            numbers.append(f"test error {100 * row['test_error']:.2f}%")
        say(f"epoch {epoch}/{self._epochs}: {', '.join(numbers)}, {clock(left)}")


@contextlib.contextmanager
def _events(output: Path, wanted: bool) -> Iterator[Callable[[Row], None]]:
    """A writer of rows for TensorBoard, or one that does nothing."""
    if not wanted:
        yield lambda row: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra("tensorboard", "tensorboard", "--tensorboard") from None
    writer = SummaryWriter(output / "tensorboard")

    def write(row: Row) -> None:
        for key, value in row.items():
            if key not in ("epoch", "step") and isinstance(value, int | float):
                writer.add_scalar(key, value, row["epoch"])

    try:
        yield write
    finally:
        writer.close()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
