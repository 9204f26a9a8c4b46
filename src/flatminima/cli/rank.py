"""`flatminima rank`: which of several checkpoints to trust, and, where held-out errors are known, which measure.

Each checkpoint is measured once: with --output, its table is kept under the hash of its weights and of the request, so
that the same command goes on where it was stopped.
"""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatminima import budgets, catalog
from flatminima.cli.measure import Request, built, loaded, stands, with_options, writable
from flatminima.cli.options import (
    AppDir,
    AsJson,
    BatchSize,
    Budget,
    Data,
    Device,
    Limit,
    Loss,
    MaxPixels,
    ModelArg,
    Scaling,
    Seed,
    Subset,
    Threads,
)
from flatminima.cli.terminal import bars, out, say
from flatminima.errors import CheckpointError, DataError, UsageError
from flatminima.io import json_text
from flatminima.reading import Unreadable, read_json, read_text

if TYPE_CHECKING:
    from torch import Tensor

    from flatminima.ranking import Order, RankTable
    from flatminima.table import MeasureTable

_RESULT = "rank.json"
_MORE = "see flatminima list"


def rank(
    checkpoints: Annotated[list[Path], typer.Argument(help="Weights of the networks, two or more.")],
    model: Annotated[str, typer.Option(help="Import string of their common architecture, package.module:factory.")],
    data: Data,
    split: Annotated[str, typer.Option(help="Split that they were trained on.")] = "train",
    test_split: Annotated[str | None, typer.Option(help="Held-out split: then measures are scored too.")] = None,
    gaps: Annotated[
        Path | None,
        typer.Option(help="CSV instead: checkpoint, gap, and a column for each hyper-parameter."),
    ] = None,
    measures: Annotated[str | None, typer.Option(help=f"Comma-separated; by default the budget's ({_MORE}).")] = None,
    budget: Budget = "fast",
    by: Annotated[str | None, typer.Option(help="Measures that decide the order, comma-separated.")] = None,
    scaling: Scaling = "unit",
    max_pixels: MaxPixels = None,
    limit: Limit = None,
    loss: Loss = "cross_entropy",
    subset: Subset = None,
    model_arg: ModelArg = None,
    app_dir: AppDir = None,
    batch_size: BatchSize = 256,
    seed: Seed = 0,
    device: Device = None,
    threads: Threads = None,
    output: Annotated[Path | None, typer.Option(help="Folder for rank.json; keeps what is measured.")] = None,
    as_json: AsJson = False,
) -> None:
    """Order checkpoints by their measures; with held-out errors, score the measures as well."""
    request = Request(
        model, data, None, split, measures, scaling, limit, loss, subset, budget, tuple(model_arg or ()), app_dir,
        None, None, None, None, None, max_pixels, batch_size, seed, device, threads,
    )  # fmt: skip
    request.check()
    voters = None if by is None else [catalog.measure(n.strip()).name for n in by.split(",") if n.strip()]
    _check(checkpoints, test_split, gaps)
    known = None if gaps is None else read_gaps(gaps, checkpoints)
    if output is not None:
        writable(output, (_RESULT,))
    with bars(), contextlib.redirect_stdout(sys.stderr):
        tables, errors = _measured(request, checkpoints, test_split, output)
    found, order, scores = _scored(checkpoints, tables, errors, known, voters, seed)
    document = {"schema": 1, "command": request.document(), "networks": found, "order": order.to_dict()}
    if scores is not None:
        document["measures"] = scores.to_dict()
    if output is not None:
        from flatminima.io import DAY, PATIENCE, claimed, clear_left, write_whole

        clear_left(output / "networks", DAY)  # other processes may be writing tables
        with claimed(output, wait=PATIENCE):
            write_whole(output / _RESULT, json_text(document) + "\n")
    if as_json:
        typer.echo(json_text(document))
        return
    _show(order, scores)
    if output is not None:
        say("", f"Numbers: {output / _RESULT}")
    elif scores is None:
        say("", "Next: --test-split test (or --gaps FILE) also says which measures were right")


def _check(checkpoints: Sequence[Path], test_split: str | None, gaps: Path | None) -> None:
    if len(checkpoints) < 2:
        raise UsageError(f"got {len(checkpoints)} checkpoint; name two or more to be ordered")
    if len({str(c) for c in checkpoints}) < len(checkpoints):
        raise UsageError("a checkpoint is named twice; name each once")
    for path in checkpoints:
        if not path.exists():
            raise CheckpointError(f"no file {path}; check the path")
    if test_split is not None and gaps is not None:
        raise UsageError("got --test-split and --gaps; give one of them")


def read_gaps(path: Path, checkpoints: Sequence[Path]) -> tuple[list[float], list[dict[str, str]] | None]:
    """Gap and hyper-parameters of each checkpoint, in their order.

    Raises:
        DataError: no such file, no such column or row, a gap that is no finite number.
    """
    import math

    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except (Unreadable, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}; expected a CSV with columns checkpoint, gap") from None
    if not rows or not {"checkpoint", "gap"} <= set(rows[0]):
        raise DataError(f"{path} has no columns checkpoint and gap; its first line must name them")
    by_name = {row["checkpoint"]: row for row in rows}
    gaps, points = [], []
    for checkpoint in checkpoints:
        row = by_name.get(str(checkpoint)) or by_name.get(checkpoint.name)
        if row is None:
            raise DataError(f"{path} has no row for {checkpoint}; add one, by its path or its name")
        try:
            gap = float(row["gap"])
        except (TypeError, ValueError):
            gap = math.nan
        if not math.isfinite(gap):
            raise DataError(f"the gap of {checkpoint} in {path} is {row['gap']!r}; expected a finite number")
        gaps.append(gap)
        points.append({k: str(v) for k, v in row.items() if k not in ("checkpoint", "gap") and k is not None})
    return gaps, points if points[0] else None


def _measured(
    request: Request, checkpoints: Sequence[Path], test_split: str | None, output: Path | None
) -> tuple[list[MeasureTable], list[tuple[float, float] | None]]:
    """A table, and where there is a held-out split training and held-out error, of each checkpoint."""
    import torch

    from flatminima.progress import report

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    seen: set[str] = set()
    data: dict[str, tuple[Tensor, Tensor]] = {}
    tables, errors = [], []
    for k, path in enumerate(checkpoints):
        kept = None if output is None else output / "networks" / f"{_key(request, path, test_split)}.json"
        found = None if kept is None else _read(kept)
        if found is None:
            for part in (request.split, test_split):
                if part is not None and part not in data:
                    data[part] = loaded(request, part)
            found, notes = _one(replace(request, checkpoint=path), data, test_split)
            for note in notes:
                if note not in seen:
                    say(f"Note: {note}")
                    seen.add(note)
            if kept is not None:
                _keep(kept, found)
        tables.append(found[0])
        errors.append(found[1])
        report("checkpoints", k + 1, len(checkpoints))
    return tables, errors


def _one(
    request: Request, data: dict[str, tuple[Tensor, Tensor]], test_split: str | None
) -> tuple[tuple[MeasureTable, tuple[float, float] | None], list[str]]:
    from flatminima.rounds import measure
    from flatminima.training import evaluate

    network, notes = built(request)
    minimum = stands(request, network, data[request.split])
    table = measure(minimum, [with_options(name, request.budget, request.subset, minimum) for name in request.names])
    if test_split is None:
        return (table, None), notes
    if not minimum.loss.labels:
        raise UsageError(f"--test-split needs a classifier, and --loss is {request.loss}; give --gaps instead")
    errors = []
    for part in (request.split, test_split):
        x, y = data[part]
        errors.append(evaluate(minimum.model, x.to(minimum.device), y.to(minimum.device)).error)
    return (table, (errors[0], errors[1])), notes


def _key(request: Request, checkpoint: Path, test_split: str | None) -> str:
    """Of the weights' bytes and of everything asked for."""
    import flatminima
    from flatminima.io import run_key

    options = {name: budgets.options(request.budget, name) for name in request.names}
    asked = [request.document(), options, test_split, flatminima.__version__]
    return run_key(asked, digest_size=12, content=checkpoint)


def _read(path: Path) -> tuple[MeasureTable, tuple[float, float] | None] | None:
    """What an earlier run kept; None where it is absent or damaged."""
    from flatminima.table import MeasureTable

    try:
        document = read_json(path)
        errors = document["errors"]
        return MeasureTable.from_dict(document["table"]), None if errors is None else (errors[0], errors[1])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _keep(path: Path, found: tuple[MeasureTable, tuple[float, float] | None]) -> None:
    from flatminima.io import make_folder, write_whole

    make_folder(path.parent)
    write_whole(path, json_text({"table": found[0].to_dict(), "errors": found[1]}) + "\n")


def _scored(
    checkpoints: Sequence[Path],
    tables: list[MeasureTable],
    errors: list[tuple[float, float] | None],
    known: tuple[list[float], list[dict[str, str]] | None] | None,
    voters: list[str] | None,
    seed: int,
) -> tuple[list[dict[str, Any]], Order, RankTable | None]:
    """The networks as plain types, their order, and the measures' scores where gaps are known."""
    from flatminima.ranking import order, rank

    names = [str(path) for path in checkpoints]
    gaps: list[float] | None = None
    points = None
    if known is not None:
        gaps, points = known
    elif all(e is not None for e in errors):
        gaps = [e[1] - e[0] for e in errors if e is not None]
    networks = []
    for i, (name, table) in enumerate(zip(names, tables, strict=True)):
        row: dict[str, Any] = {"checkpoint": name, "measures": table.to_dict()}
        error = errors[i]
        if error is not None:
            row |= {"train_error": error[0], "test_error": error[1]}
        if gaps is not None:
            row["gap"] = gaps[i]
        networks.append(row)
    scores = None if gaps is None else rank(tables, gaps, hyperparameters=points, seed=seed)
    return networks, order(tables, names, voters, seed=seed), scores


def _show(order: Order, scores: RankTable | None) -> None:
    from flatminima.ranking.order import render_order
    from flatminima.ranking.table import render

    render_order(order, out())
    if scores is not None:
        out().print("\nHow each measure orders the known gaps (Kendall's tau, bootstrap over networks):", markup=False)
        render(scores, out())
