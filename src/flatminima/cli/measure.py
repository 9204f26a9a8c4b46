"""`flatminima measure`: the measures of a network of the user's.

In this order: what needs no torch is checked, then the network is built, then data is read, then anything is
measured; the result is printed before it is written.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass
from functools import partial, update_wrapper
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatminima import budgets, catalog
from flatminima.catalog.choices import LOSSES
from flatminima.cli import explain, factory, language
from flatminima.cli.device import usable
from flatminima.cli.grouped import grouped
from flatminima.cli.options import (
    DATA_HELP,
    AppDir,
    AsJson,
    BatchSize,
    Budget,
    Device,
    DryRun,
    Loss,
    Model,
    ModelArg,
    ModelConfig,
    Seed,
    Subset,
    Threads,
)
from flatminima.cli.output import forget, kept_for, writable
from flatminima.cli.ranks import first, ranks
from flatminima.cli.source import Given, Reading, check_network, check_samples, samples_of
from flatminima.cli.terminal import bars, out, say, tell
from flatminima.cli.threshold import Threshold, refuse_crossed
from flatminima.errors import UnknownName, UsageError
from flatminima.io import json_text

if TYPE_CHECKING:
    from torch import nn

    from flatminima.cli.source import Given
    from flatminima.core.distributed import Ranks
    from flatminima.core.minimum import Minimum
    from flatminima.landscape import Landscape
    from flatminima.rescaling import Audit
    from flatminima.rounds import MeasureFunction

_WRITES = ("measures.json", "report.html")
_MORE = "see flatminima list"


@dataclass(frozen=True)
class Request:
    """The request, as typed."""

    model: str
    data: str | None
    checkpoint: Path | None
    split: str
    measures: str | None
    reading: Reading
    loss: str
    subset: int | None
    budget: str
    model_arg: tuple[str, ...]
    app_dir: Path | None
    batch_size: int
    seed: int
    device: str | None
    threads: int | None
    model_config: Path | None = None
    no_data: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the measures, in the order asked for. Raises UsageError for none, UnknownName with the nearest."""
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
        check_network(self.model, list(self.model_arg), self.model_config, self.checkpoint, self.app_dir)
        if self.loss not in LOSSES:
            raise UnknownName("loss", self.loss, LOSSES)
        self.reading.check()
        if self.data is not None:
            check_samples(self.model, self.data, self.reading)
        elif not self.no_data:
            raise UsageError("measure needs --data, the samples that the network was trained on, or --no-data")
        if self.no_data and self.data is not None:
            raise UsageError(f"got --data {self.data} and --no-data; give one of them")

    def document(self) -> dict[str, Any]:
        """The options that say what was measured, for the report: those not given are left out."""
        values = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items() if k != "reading"}
        values |= self.reading.document()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v not in (None, (), False)}


@grouped
def measure(
    reading: Reading,
    model: Model,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    no_data: Annotated[bool, typer.Option("--no-data", help="Only measures that read the weights alone.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights: .safetensors, or .pt read with weights_only=True.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data: train, test, train[:1000], ...")] = "train",
    measures: Annotated[
        str | None, typer.Option(help=f"Comma-separated names; by default all of the budget's ({_MORE}).")
    ] = None,
    budget: Budget = "default",
    loss: Loss = "cross_entropy",
    subset: Subset = None,
    model_arg: ModelArg = None,
    model_config: ModelConfig = None,
    app_dir: AppDir = None,
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
        model, data, checkpoint, split, measures, reading, loss, subset, budget, tuple(model_arg or ()), app_dir,
        batch_size, seed, device, threads, model_config, no_data,
    )  # fmt: skip
    request.check()
    if no_data:
        from flatminima.cli.weights_alone import measure_weights

        measure_weights(request, output, fail_if, as_json)
        return
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
        save(document, pictures, output)
    forget(kept)
    refuse_crossed(thresholds, table)


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
    save(document | {"diagnosis": []}, {}, output)
    kept = f"{len(table)} of {len(wanted)} measures are in {output / _WRITES[0]}"
    if hasattr(stop, "kept"):
        stop.kept = kept
    else:
        say(kept)


def _minimum(request: Request) -> tuple[Minimum, list[str]]:
    """What is to be measured, and what the user should know of it."""
    import torch

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    network, notes = built(request)
    given = loaded(request, request.split)
    minimum = stands(request, network, given.data, ranks())
    losses = language.said_of_losses(minimum) if language.is_language(request.model) else None
    return minimum, [*notes, *given.notes, *([] if losses is None else [losses])]


def built(request: Request) -> tuple[nn.Module, list[str]]:
    """The network with its weights, in eval mode, and notes on both."""
    import torch

    from flatminima.training import load_checkpoint

    usable(request.device)
    if language.is_language(request.model):
        return _of_the_hub(request)
    torch.manual_seed(request.seed)  # weights of a factory that has no checkpoint
    arguments = factory.arguments(list(request.model_arg))
    network = factory.build(request.model, arguments, request.app_dir, request.model_config)
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


def loaded(request: Request, split: str) -> Given:
    """The samples of a split."""
    return samples_of(
        request.model, str(request.data), split, request.reading, app_dir=request.app_dir, loss=request.loss
    )


def stands(request: Request, network: nn.Module, data: Any, shared: Ranks | None = None) -> Minimum:
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


def save(document: dict[str, Any], pictures: dict[str, Landscape], output: Path) -> None:
    from flatminima.io import claimed, write_whole
    from flatminima.report import write_measures

    numbers, page = (output / name for name in _WRITES)
    with claimed(output):
        write_whole(numbers, json_text(document) + "\n")
        explain.write(pictures, output)
        write_measures(document, page)
    say("", f"Report:  {page}", f"Numbers: {numbers}")
    say("Next:    flatminima list says what each measure is; measure another checkpoint to compare")
