"""The work of `flatminima train` once its options are checked: network, samples, method, the training, its files."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from flatminima import progress
from flatminima.cli import factory, language
from flatminima.cli.device import take_threads, usable
from flatminima.cli.epoch_lines import EpochLines, tensorboard_rows
from flatminima.cli.load_samples import samples_of
from flatminima.cli.terminal import say_notes
from flatminima.cli.torchrun import first, own_device, ranks
from flatminima.cli.train_options import KeepingOptions, TrainRequest
from flatminima.cli.train_track import follow
from flatminima.core.distributed import Ranks
from flatminima.data import augmentation, corrupt_labels
from flatminima.errors import UsageError
from flatminima.io import claimed, json_text, write_whole
from flatminima.optim.sub_batches import mapped
from flatminima.training import (
    History,
    Method,
    Session,
    TrainConfig,
    Training,
    assess,
    base_optimizer,
    load_checkpoint,
    method,
    save_checkpoint,
    set_dropout,
)
from flatminima.training.loop import VALIDATION, Tensors
from flatminima.training.objective import Objective, count
from flatminima.training.session import METRICS
from flatminima.training.steps import batch_sizes

WEIGHTS, RESULT = "weights.safetensors", "result.json"
_COSINE = "a cosine falls to 0 over the epochs that were given, so more of them are another training"

__all__ = ["METRICS", "RESULT", "WEIGHTS", "run"]


def run(request: TrainRequest, keeping: KeepingOptions) -> dict[str, Any]:
    """Train, save, and say what came out.

    Raises:
        UsageError, FlatMinimaError: what cannot be done, before anything is written.
    """
    take_threads(request.machine.threads)
    shared = ranks()
    device = usable(own_device(request.machine.device)) or "cpu"
    config = _config(request)
    network, notes = _network(request, device)
    loss = _loss(request)
    (x, y), held_out = _samples(request, loss, device, notes)
    chosen = _method(request, network, len(batch_sizes(count(x), config.batch_size)), shared)
    training = Training(
        network, x, y, config=config, loss=loss,
        augment=augmentation(request.samples.augment), optimizer=chosen.optimizer,
        backward=chosen.backward, modules=chosen.modules, held_out=held_out, ranks=shared,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        session = _session(stack, request, keeping, shared)
        say_notes(notes if first() else ())  # only now: where something was refused, that one line is all there is
        write = stack.enter_context(tensorboard_rows(keeping.output, keeping.tensorboard and first()))
        followed = follow(stack, training, keeping.output, keeping.track, keeping.fresh)

        def stepped(at: Training) -> None:
            progress.report("training", at.steps, at.total)
            followed(at)

        history = session.run(
            training,
            measure=lambda _: chosen.diagnostics(),
            on_row=EpochLines(config.epochs, write) if first() else None,
            on_step=stepped,
        )
        result = _result(request, loss, history, network, held_out, shared)
        if first():
            save_checkpoint(network, keeping.output / WEIGHTS, {"scaling": request.reading.scaling})
            write_whole(keeping.output / RESULT, json_text(result) + "\n")
    return result


def _session(
    stack: contextlib.ExitStack, request: TrainRequest, keeping: KeepingOptions, shared: Ranks | None
) -> Session:
    """The folder for the process that writes, and what the others read of it."""
    found: list[Session] = []

    def opened() -> None:
        if first():
            stack.enter_context(claimed(keeping.output))
        fixed = _COSINE if request.rate.schedule == "cosine" else None
        document = request.document()
        found.append(
            Session(
                keeping.output, document, save_every=keeping.save_every, fresh=keeping.fresh, fixed=fixed,
                writes=first(),
            )
        )  # fmt: skip

    if shared is None:
        opened()
    else:
        shared.agree("options", request.document())
        shared.together(opened)
    return found[0]


def _config(request: TrainRequest) -> TrainConfig:
    rate, length, machine = request.rate, request.length, request.machine
    return TrainConfig(
        lr=rate.lr,
        batch_size=length.batch_size,
        epochs=length.epochs,
        target_loss=length.target_loss,
        seed=machine.seed,
        schedule=rate.schedule,
        milestones=tuple(rate.milestone or ()),
        gamma=rate.gamma,
        warmup=rate.warmup,
        keep_best=length.keep_best,
        stop_after=length.stop_after,
        average_from=length.average_from,
        average_lr=length.average_lr,
        channels_last=machine.channels_last,
        precision=machine.precision,
    )


def _network(request: TrainRequest, device: str) -> tuple[nn.Module, list[str]]:
    """What is to be trained, in train mode, and what the user should know of it."""
    options = request.network
    torch.manual_seed(request.machine.seed)  # the factory's weights
    if language.is_language(options.model):
        network = language.load(options.model).model
    else:
        arguments = factory.arguments(list(options.model_arg or ()))
        network = factory.build(options.model, arguments, options.app_dir, options.model_config)
    notes = [] if options.init is None else list(load_checkpoint(network, options.init))
    if options.dropout is not None:
        set_dropout(network, options.dropout)
    return network.train().to(device), notes


def _loss(request: TrainRequest) -> str:
    """The loss to minimise: as typed, or what a model of Hugging Face was trained with."""
    model, typed = request.network.model, request.method.loss
    found = language.loss(model, typed) if language.is_language(model) else typed
    if request.samples.label_noise and found != "cross_entropy":
        raise UsageError(f"--label-noise redraws the labels of classes; the loss of {model}, {found}, has none")
    return found


def _samples(request: TrainRequest, loss: str, device: str, notes: list[str]) -> tuple[Tensors, dict[str, Tensors]]:
    """Training samples, with the noise asked for, and those to evaluate on."""
    options = request.samples

    def load(split: str, limit: int | None, what: str) -> Tensors:
        reading, own = replace(request.reading, limit=limit), request.network
        found = samples_of(own.model, options.data, split, reading, app_dir=own.app_dir, loss=loss)
        notes.extend(found.notes(what))
        x, y = found.in_memory()
        return mapped(lambda t: t.to(device), x), y.to(device)

    x, y = load(options.split, request.reading.limit, "data")
    if options.label_noise:
        noisy = corrupt_labels(y, options.label_noise, int(y.max()) + 1, request.machine.seed)
        changed = int((noisy != y).sum())
        notes.append(f"{changed} of {len(y)} training labels are now wrong; a measure on the true labels sees others")
        y = noisy
    named = ((VALIDATION, options.validation_split), ("test", options.test_split))
    return (x, y), {n: load(split, None, f"{n} data") for n, split in named if split is not None}


def _method(request: TrainRequest, network: nn.Module, steps_per_epoch: int, shared: Ranks | None) -> Method:
    options = request.method
    if shared is not None and options.method == "fisher_trace":
        raise UsageError(
            f"--method fisher_trace runs in one process, got {shared.size}: leave out torchrun, or wrap the network in "
            "DistributedDataParallel in a script of your own (docs/optimizers.md)"
        )
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError(f"{request.network.model} gives a network without trainable parameters")
    given = factory.arguments(list(options.optimizer_arg or ()), "--optimizer-arg")
    base = base_optimizer(options.optimizer, parameters, request.rate.lr, given)
    given = factory.arguments(list(options.method_arg or ()), "--method-arg")
    return method(
        options.method, network, base, given, steps_per_epoch=steps_per_epoch, seed=request.machine.seed
    )  # fmt: skip


def _result(
    request: TrainRequest,
    loss: str,
    history: History,
    network: nn.Module,
    held_out: dict[str, Tensors],
    shared: Ranks | None,
) -> dict[str, Any]:
    """Of the final weights, which with averages and best epochs are not those of the last epoch."""
    options = request.method
    found = {"schema": 1, "method": options.method, "optimizer": options.optimizer, "loss": loss}
    found |= {"steps": history.steps}
    found |= {"epochs": len(history.epochs), "stopped_because": history.stopped_because}
    found |= {"best_epoch": history.best, "kept_best": request.length.keep_best}
    found |= {"seconds": sum(e.seconds for e in history.epochs), "train": asdict(history.final)}
    for name in (VALIDATION, "test"):
        samples: Tensors | None = held_out.get(name)
        found[name] = None
        if samples is not None:
            found[name] = asdict(assess(network, *samples, objective=Objective(loss), ranks=shared))
    return found
