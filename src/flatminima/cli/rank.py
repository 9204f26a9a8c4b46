"""`flatminima rank`: which of several checkpoints to ship, and which measure was right where held-out errors are known.

Every candidate is first looked at on its training data; one that is untrained, broken or meets other data than in its
training is left out and named. Each checkpoint is measured once: with --output, its table is kept under the hash of its
weights and of the request, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatminima import budgets, catalog
from flatminima.cli.grouped import grouped
from flatminima.cli.measure import Request, built, loaded, stands, with_options
from flatminima.cli.options import (
    AppDir,
    AsJson,
    BatchSize,
    Budget,
    Data,
    Device,
    Loss,
    ModelArg,
    ModelConfig,
    Seed,
    Subset,
    TestData,
    Threads,
)
from flatminima.cli.other_scaling import other_scaling
from flatminima.cli.output import writable
from flatminima.cli.source import Reading, check_data, samples_of
from flatminima.cli.terminal import bars, out, say
from flatminima.errors import (
    CheckpointError,
    DataError,
    ModelError,
    NumericalError,
    UnknownName,
    UsageError,
)
from flatminima.io import json_text
from flatminima.reading import Unreadable, read_json, read_text

if TYPE_CHECKING:
    from flatminima.cli.source import Given
    from flatminima.core.minimum import Minimum
    from flatminima.ranking import Choice, Look, RankTable
    from flatminima.table import MeasureTable

_RESULT, _PAGE = "rank.json", "rank.html"
_MORE = "see flatminima list"
_NONE = "none"
_UNFITTED = 0.02  # training error above which they are tried


@dataclass(frozen=True)
class Held:
    """Samples beside those of training, where they were given."""

    test: Any = None
    unlabelled: Any = None


@grouped
def rank(
    reading: Reading,
    checkpoints: Annotated[list[Path], typer.Argument(help="Weights of the networks, two or more.")],
    model: Annotated[list[str], typer.Option(help="Import string, package.module:factory; repeat: one a checkpoint.")],
    data: Data,
    split: Annotated[str, typer.Option(help="Split that they were trained on.")] = "train",
    test_split: Annotated[str | None, typer.Option(help="Held-out split with labels: decides by paired tests.")] = None,
    test_data: TestData = None,
    unlabelled_split: Annotated[
        str | None, typer.Option(help="Held-out split whose labels are not read: agreement and confidence.")
    ] = None,
    gaps: Annotated[
        Path | None,
        typer.Option(help="CSV instead: checkpoint, gap, and a column for each hyper-parameter."),
    ] = None,
    measures: Annotated[
        str | None, typer.Option(help=f"Comma-separated, or 'none'; by default the budget's ({_MORE}).")
    ] = None,
    budget: Budget = "fast",
    by: Annotated[str | None, typer.Option(help="Measures that decide the order, comma-separated.")] = None,
    loss: Loss = "cross_entropy",
    subset: Subset = None,
    model_arg: ModelArg = None,
    model_config: ModelConfig = None,
    app_dir: AppDir = None,
    batch_size: BatchSize = 256,
    seed: Seed = 0,
    device: Device = None,
    threads: Threads = None,
    output: Annotated[Path | None, typer.Option(help="Folder for rank.json and rank.html; goes on.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which checkpoint to ship; with held-out errors, score the measures as well."""
    measured = measures != _NONE
    request = Request(
        model[0], data, None, split, measures if measured else None, reading, loss, subset, budget,
        tuple(model_arg or ()), app_dir, batch_size, seed, device, threads, model_config,
    )  # fmt: skip
    for one in model:
        replace(request, model=one).check()
    voters = None if by is None else [catalog.measure(n.strip()).name for n in by.split(",") if n.strip()]
    _check(checkpoints, model, split, test_split, test_data, gaps)
    if voters is not None and not set(voters) <= set(request.names):
        raise UsageError(f"no measure to order by is measured: --by {by}, and --measures {measures or budget}")
    known = None if gaps is None else read_gaps(gaps, checkpoints)
    if output is not None:
        writable(output, (_RESULT, _PAGE))
    with bars(), contextlib.redirect_stdout(sys.stderr):
        given = loaded(request, request.split)
        say(f"Note: data: {given.said}")
        held, notes = _held(request, given, test_split, test_data, unlabelled_split)
        requests = [
            replace(request, checkpoint=path, model=model[i % len(model)]) for i, path in enumerate(checkpoints)
        ]
        which = "none" if not measured else "all" if known is not None else "compared"
        looks, tables, more = _measured(requests, given.data, held, which, output)
    document, choice, scores = _document(request, checkpoints, looks, tables, known, voters, (*notes, *more))
    if output is not None:
        _save(document, output)
    if as_json:
        typer.echo(json_text(document))
        return
    _show(choice, scores)
    sys.stdout.flush()
    if output is not None:
        say("", f"Page:    {output / _PAGE}", f"Numbers: {output / _RESULT}")
    elif held.test is None and known is None:
        say("", "Next: --test-split test decides by paired tests, and says which measures were right")


def _check(
    checkpoints: Sequence[Path], model: Sequence[str], split: str, test_split: str | None, test_data: str | None,
    gaps: Path | None,
) -> None:  # fmt: skip
    if len(checkpoints) < 2:
        raise UsageError(f"got {len(checkpoints)} checkpoint; name two or more to be compared")
    if len({str(c) for c in checkpoints}) < len(checkpoints):
        raise UsageError("a checkpoint is named twice; name each once")
    for path in checkpoints:
        if not path.exists():
            raise CheckpointError(f"no file {path}; check the path")
    if len(model) not in (1, len(checkpoints)):
        raise UsageError(f"got {len(model)} --model for {len(checkpoints)} checkpoints; give one, or one each")
    if (test_split or test_data) is not None and gaps is not None:
        raise UsageError("got --test-split and --gaps; give one of them")
    if test_data is not None:
        check_data(test_data, "--test-data")
    elif test_split == split:
        raise DataError(f"got {split!r} for both --split and --test-split; what was trained on judges nothing")


def read_gaps(path: Path, checkpoints: Sequence[Path]) -> tuple[list[float], list[dict[str, str]] | None]:
    """Gap and hyper-parameters of each checkpoint, in their order.

    Raises:
        DataError: no such file, no such column or row, a gap that is no finite number.
    """
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


def _held(
    request: Request, train: Given, test_split: str | None, test_data: str | None, unlabelled_split: str | None
) -> tuple[Held, list[str]]:
    """Held-out samples, and what was understood of them."""
    import numpy as np

    whole = replace(request.reading, limit=None)
    notes: list[str] = []
    test = free = None
    if test_split is not None or test_data is not None:
        classes = train.classes if test_data is not None else None
        source, asked = test_data or str(request.data), test_split or "test"
        options: dict[str, Any] = {"app_dir": request.app_dir, "loss": request.loss, "classes": classes}
        try:
            found = samples_of(request.model, source, asked, whole, **options)
        except DataError as error:
            if test_split is not None or not isinstance(error.__cause__, UnknownName):
                raise
            found = samples_of(request.model, source, "train", whole, **options)  # a file of its own has one split
        from flatminima.core.samples import as_samples

        test = as_samples(found.data)
        notes.append(f"test data: {found.said}")
        seen = int(np.isin(test.input_hashes, as_samples(train.data).input_hashes).sum())
        if seen:
            notes.append(f"{seen:,} of {len(test):,} test samples are training samples too: errors on them are too low")
    if unlabelled_split is not None:
        free_of: dict[str, Any] = {"app_dir": request.app_dir, "loss": request.loss, "unlabelled": True}
        found = samples_of(request.model, str(request.data), unlabelled_split, whole, **free_of)
        free = found.data
        notes.append(f"samples without labels: {found.said}")
    for note in notes:
        say(f"Note: {note}")
    return Held(test, free), [n for n in notes if "too low" in n]


def _measured(
    requests: Sequence[Request], data: Any, held: Held, which: str, output: Path | None
) -> tuple[list[Look], list[MeasureTable | None], list[str]]:
    """Each candidate as it was looked at, its measures (of "none", of those "compared", of "all"), and notes."""
    import torch

    from flatminima.progress import report

    if requests[0].threads is not None:
        torch.set_num_threads(requests[0].threads)
    seen: set[str] = set()
    looks: list[Look] = []
    tables: list[MeasureTable | None] = []
    more: list[str] = []
    for k, request in enumerate(requests):
        found, minimum = _look(request, data, held, seen)
        looks.append(found)
        candidate = found.candidate
        if minimum is not None and candidate.train_error is not None and candidate.train_error > _UNFITTED:
            more += other_scaling(request, minimum, candidate.name, candidate.train_error)
        wanted = which == "all" or (which == "compared" and candidate.compared)  # known gaps score every network
        tables.append(_table(request, minimum, output) if wanted and minimum is not None else None)
        report("checkpoints", k + 1, len(requests))
    reasons = {one.candidate.left_out for one in looks if not one.shapes}
    if len(reasons) == 1 and not any(one.shapes for one in looks):  # what is wrong with all is wrong with the request
        raise UsageError(str(reasons.pop()))
    return looks, tables, more


def _look(request: Request, data: Any, held: Held, seen: set[str]) -> tuple[Look, Minimum | None]:
    """The candidate; one that cannot be made or run is left out with the reason."""
    from flatminima.ranking import Look, failed, look

    name = str(request.checkpoint)
    try:
        network, notes = built(request)
        minimum = stands(request, network, data)
    except (CheckpointError, DataError, ModelError, NumericalError) as error:
        return Look(failed(name, error)), None
    for note in notes:
        if note not in seen:
            say(f"Note: {note}")
            seen.add(note)
    return look(name, minimum, held.test, held.unlabelled), minimum


def _table(request: Request, minimum: Minimum, output: Path | None) -> MeasureTable:
    kept = None if output is None else output / "networks" / f"{_key(request)}.json"
    found = None if kept is None else _read(kept)
    if found is None:
        found = _one(request, minimum)
        if kept is not None:
            _keep(kept, found)
    return found


def _one(request: Request, minimum: Minimum) -> MeasureTable:
    from flatminima.rounds import measure

    return measure(minimum, [with_options(name, request.budget, request.subset, minimum) for name in request.names])


def _key(request: Request) -> str:
    """Of the weights' bytes and of everything asked for."""
    import flatminima
    from flatminima.io import run_key

    options = {name: budgets.options(request.budget, name) for name in request.names}
    return run_key([request.document(), options, flatminima.__version__], digest_size=12, content=request.checkpoint)


def _read(path: Path) -> MeasureTable | None:
    """What an earlier run kept; None where it is absent or damaged."""
    from flatminima.table import MeasureTable

    try:
        return MeasureTable.from_dict(read_json(path)["table"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _keep(path: Path, found: MeasureTable) -> None:
    from flatminima.io import make_folder, write_whole

    make_folder(path.parent)
    write_whole(path, json_text({"table": found.to_dict()}) + "\n")


def _document(
    request: Request,
    checkpoints: Sequence[Path],
    looks: Sequence[Look],
    tables: Sequence[MeasureTable | None],
    known: tuple[list[float], list[dict[str, str]] | None] | None,
    voters: list[str] | None,
    notes: Sequence[str],
) -> tuple[dict[str, Any], Choice, RankTable | None]:
    """Everything as plain types, the choice, and the measures' scores where gaps are known."""
    from flatminima.ranking import choose, score

    choice = choose(looks, tables, voters, seed=request.seed)
    choice = replace(choice, notes=(*choice.notes, *(f"Caution: {n}" for n in notes)))
    gaps: list[float | None] = [
        c.test_error - c.train_error if c.test_error is not None and c.train_error is not None else None
        for c in choice.candidates
    ]
    points = None
    if known is not None:
        gaps, points = list(known[0]), known[1]
    networks = []
    for i, path in enumerate(checkpoints):
        c, table = choice.candidates[i], tables[i]
        row: dict[str, Any] = {"checkpoint": str(path), "measures": None if table is None else table.to_dict()}
        row |= {k: v for k in ("train_error", "test_error") if (v := getattr(c, k)) is not None}
        networks.append(row if gaps[i] is None else row | {"gap": gaps[i]})
    scored = [(t, g, i) for i, (t, g) in enumerate(zip(tables, gaps, strict=True)) if t is not None and g is not None]
    scores = None
    if scored:
        some = None if points is None else [points[i] for _, _, i in scored]
        scores = score([t for t, _, _ in scored], [g for _, g, _ in scored], hyperparameters=some, seed=request.seed)
    document = {
        "schema": 2, "command": request.document(), "answer": choice.answer, "choice": choice.to_dict(),
        "order": None if choice.order is None else choice.order.to_dict(), "networks": networks,
    }  # fmt: skip
    if scores is not None:
        document["measures"] = scores.to_dict()
    return document, choice, scores


def _save(document: dict[str, Any], output: Path) -> None:
    from flatminima.io import DAY, PATIENCE, claimed, clear_left, write_whole
    from flatminima.report.ranking import write_ranking

    clear_left(output / "networks", DAY)  # other processes may be writing tables
    with claimed(output, wait=PATIENCE):
        write_whole(output / _RESULT, json_text(document) + "\n")
        write_ranking(document, output / _PAGE)


def _show(choice: Choice, scores: RankTable | None) -> None:
    from flatminima.ranking.render import render_choice
    from flatminima.ranking.table import render

    render_choice(choice, out())
    if scores is not None:
        out().print("\nHow each measure orders the known gaps (Kendall's tau, bootstrap over networks):", markup=False)
        render(scores, out())
