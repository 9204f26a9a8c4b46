"""`flatminima measure`: the measures of a network of the user's.

In this order: what needs no torch is checked, then the network is built, then data is read, then anything is
measured; the result is printed before it is written.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial, update_wrapper
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatminima import budgets, catalog
from flatminima.cli import explain, factory, language
from flatminima.cli.device import usable
from flatminima.cli.options import (
    LOSSES,
    SCALINGS,
    AppDir,
    AsJson,
    BatchSize,
    Budget,
    Data,
    DataConfig,
    Device,
    DryRun,
    ImageColumn,
    ImageMode,
    ImageSize,
    LabelColumn,
    Length,
    Limit,
    Loss,
    MaxPixels,
    Model,
    ModelArg,
    Packing,
    Scaling,
    Seed,
    Subset,
    TextColumn,
    Threads,
)
from flatminima.cli.ranks import first, ranks
from flatminima.cli.terminal import bars, out, say, tell
from flatminima.cli.threshold import Threshold
from flatminima.errors import CheckpointError, DataError, UnknownName, UsageError
from flatminima.io import json_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatminima.core.distributed import Ranks
    from flatminima.core.minimum import Minimum
    from flatminima.landscape import Landscape
    from flatminima.rescaling import Audit
    from flatminima.rounds import MeasureFunction

_WRITES = ("measures.json", "report.html")
_MORE = "see flatminima list"
_CROSSED = 3  # exit code: it ran, but a threshold failed


@dataclass(frozen=True)
class Request:
    """What was asked for, as typed."""

    model: str
    data: str
    checkpoint: Path | None
    split: str
    measures: str | None
    scaling: str
    limit: int | None
    loss: str
    subset: int | None
    budget: str
    model_arg: tuple[str, ...]
    app_dir: Path | None
    data_config: str | None
    image_column: str | None
    label_column: str | None
    mode: str | None
    image_size: int | None
    max_pixels: int | None
    batch_size: int
    seed: int
    device: str | None
    threads: int | None
    text_column: str | None = None
    length: int | None = None
    packing: bool = False

    @property
    def names(self) -> list[str]:
        """Of the measures, in the order asked for. Raises UsageError for none, UnknownName with the nearest."""
        if self.measures is None:
            return budgets.names(self.budget)
        names = [n.strip() for n in self.measures.split(",") if n.strip()]
        if not names:
            raise UsageError(f"got --measures {self.measures!r}; name at least one, {_MORE}")
        return [catalog.measure(name).name for name in names]

    def check(self) -> None:
        """Refuse what can be refused without torch.

        Raises:
            UsageError: naming the option.
        """
        budgets.check(self.budget)
        _ = self.names
        if language.is_language(self.model):
            language.check(self.model, self.data, self.packing, self.length)
        else:
            factory.split(self.model)
        factory.arguments(list(self.model_arg))
        for kind, value, known in (("loss", self.loss, LOSSES), ("scaling", self.scaling, SCALINGS)):
            if value not in known:
                raise UnknownName(kind, value, known)
        if self.checkpoint is not None and not self.checkpoint.exists():
            raise CheckpointError(f"no file {self.checkpoint} for --checkpoint; check the path")
        if self.app_dir is not None and not self.app_dir.is_dir():
            raise UsageError(f"no folder {self.app_dir} for --app-dir; check the path")
        if self.data.startswith((".", "/")) and not Path(self.data).exists():
            raise DataError(f"no folder {self.data} for --data; check the path")

    def document(self) -> dict[str, Any]:
        """The options that say what was measured, for the report: those not given are left out."""
        values = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v not in (None, (), False)}


def measure(
    model: Model,
    data: Data,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights: .safetensors, or .pt read with weights_only=True.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data: train, test, train[:1000], ...")] = "train",
    measures: Annotated[
        str | None, typer.Option(help=f"Comma-separated names; by default all of the budget's ({_MORE}).")
    ] = None,
    budget: Budget = "default",
    scaling: Scaling = "unit",
    limit: Limit = None,
    loss: Loss = "cross_entropy",
    subset: Subset = None,
    model_arg: ModelArg = None,
    app_dir: AppDir = None,
    data_config: DataConfig = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    mode: ImageMode = None,
    image_size: ImageSize = None,
    text_column: TextColumn = None,
    length: Length = None,
    packing: Packing = False,
    max_pixels: MaxPixels = None,
    batch_size: BatchSize = 256,
    seed: Seed = 0,
    device: Device = None,
    threads: Threads = None,
    output: Annotated[Path | None, typer.Option(help="Folder for measures.json and report.html.")] = None,
    audited: Annotated[
        bool, typer.Option("--audit", help="Also under re-parameterisations that do not change the function.")
    ] = False,
    explained: Annotated[
        bool, typer.Option("--explain", help="Also the audit, spectrum, bi-criteria curve and loss landscapes.")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="Also what each parameter adds to the measures that add over them.")
    ] = False,
    fail_if: Annotated[
        list[str] | None, typer.Option(help="'MEASURE>VALUE' or 'MEASURE<VALUE': exit with 3 if so; repeat.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Measure a trained network: its weights, on the data it was trained on."""
    request = Request(
        model, data, checkpoint, split, measures, scaling, limit, loss, subset, budget, tuple(model_arg or ()), app_dir,
        data_config, image_column, label_column, mode, image_size, max_pixels, batch_size, seed, device,
        threads, text_column, length, packing,
    )  # fmt: skip
    request.check()
    names = explain.with_more(request.names) if explained else request.names
    thresholds = [Threshold.of(text, names) for text in fail_if or ()]
    if output is not None and first():
        writable(output, (*_WRITES, *(explain.FILES if explained else ())))
    kept = None if dry_run or not first() else output
    # stdout is for the result, not for what the network prints
    with bars(), contextlib.redirect_stdout(sys.stderr), kept_for(kept, request.document()):
        minimum, notes = _minimum(request)
        for note in notes if first() else ():  # only now: where something was refused, that line is all there is
            say(f"Note: {note}")
        if subset is not None and subset > len(minimum.samples):
            raise UsageError(
                f"got --subset {subset} of {len(minimum.samples)} samples; leave it out to take what there is"
            )
        wanted = [with_options(name, budget, subset, minimum) for name in names]
        if dry_run:
            planned = _plan(minimum, wanted, audited, explained, as_json)
        else:
            from flatminima.diagnosis import diagnose
            from flatminima.rounds import measure as run

            try:
                table = run(minimum, wanted)
                findings = diagnose(table, minimum)
                audit, seen = None, minimum if audited else None
                if explained and not audited:  # a table a factor: on a part of the samples, unless asked for
                    seen = explain.part(minimum)
                if seen is not None:
                    audit = _audit(seen, wanted[: len(request.names)])
                pictures = explain.landscapes(minimum, seed) if explained else {}
            except KeyboardInterrupt as stop:
                _keep(minimum, wanted, request, output, stop)
                raise
    if not first():
        return
    if dry_run:
        tell(planned)
        return
    more = {"explain": True} if explained else {"audit": True} if audited else {}
    document = table.to_dict() | {"command": request.document() | more, **_machine(minimum)}
    document["diagnosis"] = [asdict(f) for f in findings]
    if audit is not None:
        document["audit"] = audit.to_dict() | {"samples": 0 if seen is None else len(seen.samples)}
    if pictures:
        document["landscapes"] = explain.document(pictures)
    if as_json:
        typer.echo(json_text(document))
    else:
        from flatminima.table import render, render_layers

        render(table, out())
        if layers:
            render_layers(table, out())
        for finding in findings:
            out().print(f"{finding.severity}: {finding}", markup=False, highlight=False)
        if audit is not None:
            from flatminima.rescaling import render as render_audit

            if seen is not None and len(seen.samples) < len(minimum.samples):
                out().print(f"\nThe audit is of {len(seen.samples)} samples; --audit is of all.", highlight=False)
            render_audit(audit, out())
    sys.stdout.flush()  # before the notes, where both go to one terminal
    if output is None:
        say("", "Next: the same with --output FOLDER writes measures.json and report.html")
    else:
        _save(document, pictures, output)
    forget(kept)
    crossed = [text for t in thresholds if (text := t.crossed(table[t.measure])) is not None]
    for text in crossed:
        say(f"threshold: {text}")
    if crossed:
        raise typer.Exit(_CROSSED)


def _keep(
    minimum: Minimum, wanted: list[MeasureFunction], request: Request, output: Path | None, stop: KeyboardInterrupt
) -> None:
    """What was measured when a signal came, into the folder where the rest would have gone."""
    from flatminima.rounds import finished

    if output is None or not first():
        return
    table = finished(minimum, wanted)
    if not len(table):
        return
    document = table.to_dict() | {"command": request.document(), **_machine(minimum)}
    _save(document | {"diagnosis": []}, {}, output)
    kept = f"{len(table)} of {len(wanted)} measures are in {output / _WRITES[0]}"
    if hasattr(stop, "kept"):
        stop.kept = kept
    else:
        say(kept)


@contextmanager
def kept_for(output: Path | None, asked: dict[str, Any]) -> Iterator[None]:
    """Within the block what is finished is kept below the folder, for the same command."""
    if output is None:
        yield
        return
    from flatminima.core.keeping import keeping
    from flatminima.io import run_key

    with keeping(output, run_key(asked)):
        yield


def forget(output: Path | None) -> None:
    """What was kept for results that are written now."""
    if output is not None:
        from flatminima.core.keeping import done

        done(output)


def writable(output: Path, files: tuple[str, ...]) -> None:
    """Refuse before the work what would fail after it, leaving nothing behind.

    Raises:
        WriteFailed: the folder, or where it would be made, cannot be written.
        FolderInUse: another process writes there. UsageError: a folder has the name of a file.
    """
    from flatminima.io import cannot_write, refuse_in_use

    refuse_in_use(output)
    try:
        folder = output.absolute()
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
        taken = [name for name in files if (output / name).is_dir()]
    except OSError as error:
        raise cannot_write(output, error, to="to ") from None
    if taken:
        raise UsageError(f"cannot write to {output}: {taken[0]} is a folder there; choose another --output")


def _minimum(request: Request) -> tuple[Minimum, list[str]]:
    """What is to be measured, and what the user should know of it."""
    import torch

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    network, notes = built(request)
    if not language.is_language(request.model):
        return stands(request, network, loaded(request, request.split), ranks()), notes
    data, said = texts(request, request.split)
    minimum = stands(request, network, data, ranks())
    losses = language.said_of_losses(minimum)
    return minimum, [*notes, *said, *([] if losses is None else [losses])]


def built(request: Request) -> tuple[nn.Module, list[str]]:
    """The network with its weights, in eval mode, and notes on both."""
    import torch

    from flatminima.training import load_checkpoint

    usable(request.device)
    if language.is_language(request.model):
        return _of_the_hub(request)
    torch.manual_seed(request.seed)  # weights of a factory that has no checkpoint
    network = factory.build(request.model, factory.arguments(list(request.model_arg)), request.app_dir)
    notes = []
    if request.app_dir is not None:
        notes.append(f"imported {request.model.partition(':')[0]} with {request.app_dir} on the path")
    if request.checkpoint is None:
        notes.append("no --checkpoint, so these are the weights that the factory gave")
    else:
        notes += load_checkpoint(network, request.checkpoint)
    if any(module.training for module in network.modules()):
        notes.append("called model.eval(): no dropout, BatchNorm with its running statistics")
    return network.eval(), notes


def _of_the_hub(request: Request) -> tuple[nn.Module, list[str]]:
    """A model of Hugging Face, with the weights of --checkpoint where that is given."""
    from flatminima.training import load_checkpoint

    found = language.load(request.model)
    more = [] if request.checkpoint is None else load_checkpoint(found.model, request.checkpoint)
    return found.model.eval(), [*found.notes, *more]


def texts(request: Request, split: str) -> tuple[tuple[dict[str, Tensor], Tensor], tuple[str, ...]]:
    """Tokens and targets of a split, and notes."""
    return language.texts(
        request.model,
        request.data,
        split,
        limit=request.limit,
        length=request.length,
        packing=request.packing,
        text_column=request.text_column,
        label_column=request.label_column,
    )


def loaded(request: Request, split: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a split."""
    from flatminima.data import load_tensors
    from flatminima.progress import report

    return load_tensors(
        request.data,
        split,
        limit=request.limit,
        scaling=request.scaling,
        config=request.data_config,
        image_column=request.image_column,
        label_column=request.label_column,
        mode=request.mode,
        image_size=request.image_size,
        max_pixels=request.max_pixels,
        progress=lambda done, total, text: report(text, done, total),
    )


def stands(request: Request, network: nn.Module, data: tuple[Any, Tensor], shared: Ranks | None = None) -> Minimum:
    """The network at its weights on the data."""
    from flatminima.core.minimum import Minimum

    hub = language.is_language(request.model)
    return Minimum(
        network,
        data,
        language.loss(request.model, request.loss) if hub else request.loss,
        batch_size=language.batch_size(request.batch_size, data[1]) if hub else request.batch_size,
        device=usable(request.device),
        seed=request.seed,
        ranks=shared,
    )


def with_options(name: str, budget: str, subset: int | None, minimum: Minimum) -> MeasureFunction:
    """The measure with the budget's counts, and with its Gram subset where that is given."""
    from flatminima.rounds import positions

    function: MeasureFunction = catalog.measure(name).load()
    given = budgets.options(budget, name)
    options = budgets.for_sequences(given, function, positions(minimum), len(minimum.samples))
    if subset is not None and "subset" in signature(function).parameters:
        options["subset"] = subset
    return update_wrapper(partial(function, **options), function) if options else function


def _plan(minimum: Minimum, wanted: list[MeasureFunction], audited: bool, explained: bool, as_json: bool) -> str:
    """The plan, with the time that a short timing suggests."""
    from flatminima.cli.forecast import forecast

    found = forecast(minimum, wanted, audited=audited, explained=explained)
    samples = len(minimum.samples)
    if as_json:
        parts = {name: asdict(cost) | {"seconds": found.seconds_of(cost)} for name, cost in found.parts.items()}
        document = asdict(found.plan) | {"schema": 1, "seconds": found.seconds, "samples": samples, "parts": parts}
        return json_text(document)
    lines = [str(found.plan)]
    for name, cost in list(found.parts.items())[1:]:
        lines.append(f"{name}: {cost.forward:.2f} forward, {cost.backward:.2f} backward passes more")
    about = f"about {found.seconds:.0f} s" if found.seconds >= 1 else "less than a second"
    return "\n".join([*lines, f"{about} on {samples} samples; nothing was measured"])


def _audit(minimum: Minimum, wanted: list[MeasureFunction]) -> Audit | None:
    """The measures under re-parameterisations, or a note that there are none."""
    from flatminima.errors import Undefined
    from flatminima.rescaling import audit

    try:
        return audit(minimum, wanted)
    except Undefined as reason:
        say(f"Note: no audit: {reason.reason}")
        return None


def _machine(minimum: Minimum) -> dict[str, Any]:
    """Where it was measured."""
    import torch

    from flatminima.io import versions

    return {
        "device": str(minimum.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _save(document: dict[str, Any], pictures: dict[str, Landscape], output: Path) -> None:
    from flatminima.io import claimed, write_whole
    from flatminima.report import write_measures

    numbers, page = (output / name for name in _WRITES)
    with claimed(output):
        write_whole(numbers, json_text(document) + "\n")
        explain.write(pictures, output)
        write_measures(document, page)
    say("", f"Report:  {page}", f"Numbers: {numbers}")
    say("Next:    flatminima list says what each measure is; measure another checkpoint to compare")
