"""`flatminima measure`: the measures of a network of the user's.

In this order: what needs no torch is checked, then the network is built, then data is read, then anything is
measured; the result is printed before it is written.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatminima.cli import explain
from flatminima.cli.measure_output import WRITES, Measured, keep_finished, save
from flatminima.cli.option_groups import grouped
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
from flatminima.cli.output import in_place_of_kept, kept_for, writable
from flatminima.cli.request import MORE, Request, initial_network, minimum_of, with_options
from flatminima.cli.sample_options import Reading
from flatminima.cli.terminal import bars, say, say_notes, tell
from flatminima.cli.threshold import Threshold, refuse_crossed
from flatminima.cli.torchrun import first
from flatminima.cli.without_data import WeightsOptions, measure_weights
from flatminima.errors import UsageError
from flatminima.io import json_text

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum
    from flatminima.measuring import MeasureFunction
    from flatminima.rescaling import Audit


@grouped
def measure(
    reading: Reading,
    weights: WeightsOptions,
    model: Model,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights: .safetensors, or .pt read with weights_only=True.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data: train, test, train[:1000], ...")] = "train",
    measures: Annotated[
        str | None, typer.Option(help=f"Comma-separated names; by default all of the budget's ({MORE}).")
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
        batch_size, seed, device, threads, model_config, weights.no_data, weights.initial,
    )  # fmt: skip
    request.check()
    weights.check()
    if weights.no_data:
        measure_weights(request, weights, output, fail_if, as_json)
        return
    names = explain.with_more(request.names) if explained else request.names
    thresholds = [Threshold.of(text, names) for text in fail_if or ()]
    if output is not None and first():
        writable(output, (*WRITES, *(explain.FILES if explained else ())))
    kept = None if dry_run or not first() else output
    # stdout is for the result, not for what the network prints
    with bars(), contextlib.redirect_stdout(sys.stderr), kept_for(kept, request.document()):
        minimum, wanted = _prepared(request, names)
        if dry_run:
            from flatminima.cli.forecast import plan_text

            planned = plan_text(minimum, wanted, audited, explained, as_json)
        else:
            found = _measured(minimum, wanted, request, audited, explained, output)
    if not first():
        return
    if dry_run:
        tell(planned)
        return
    more = {"explain": True} if explained else {"audit": True} if audited else {}
    document = found.document(request.document() | more, minimum)
    if as_json:
        typer.echo(json_text(document))
    else:
        found.show(minimum, layers)
    sys.stdout.flush()  # before the notes, where both go to one terminal
    if output is None:
        say("", "Next: the same with --output FOLDER writes measures.json and report.html")
    else:
        in_place_of_kept(kept, lambda: save(document, found.pictures, output))
    refuse_crossed(thresholds, found.table)


def _prepared(request: Request, names: list[str]) -> tuple[Minimum, list[MeasureFunction]]:
    """The network on its data, and the measures with their options."""
    minimum, notes = minimum_of(request)
    say_notes(notes if first() else ())  # only now: where something was refused, that line is all there is
    subset = request.subset
    if subset is not None and subset > len(minimum.samples):
        raise UsageError(f"got --subset {subset} of {len(minimum.samples)} samples; leave it out to take what there is")
    initial = initial_network(request)
    return minimum, [with_options(name, request.budget, subset, minimum, initial) for name in names]


def _measured(
    minimum: Minimum, wanted: list[MeasureFunction], request: Request, audited: bool, explained: bool,
    output: Path | None,
) -> Measured:  # fmt: skip
    from flatminima.diagnosis import diagnose
    from flatminima.measuring import measure as run

    try:
        table = run(minimum, wanted)
        findings = diagnose(table, minimum)
        audit, seen = None, minimum if audited else None
        if explained and not audited:  # a table a factor: on a part of the samples, unless asked for
            seen = explain.part(minimum)
        if seen is not None:
            audit = _audit(seen, wanted[: len(request.names)])
        pictures = explain.landscapes(minimum, request.seed) if explained else {}
    except KeyboardInterrupt as stop:
        keep_finished(minimum, wanted, request, output, stop)
        raise
    return Measured(table, findings, audit, 0 if seen is None else len(seen.samples), pictures)


def _audit(minimum: Minimum, wanted: list[MeasureFunction]) -> Audit | None:
    """The measures under re-parameterisations, or a note that there are none."""
    from flatminima.errors import Undefined
    from flatminima.rescaling import audit

    try:
        return audit(minimum, wanted)
    except Undefined as reason:
        say(f"Note: no audit: {reason.reason}")
        return None
