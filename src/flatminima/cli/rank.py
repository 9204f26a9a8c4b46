"""`flatminima rank`: which of several checkpoints to ship, and which measure was right where held-out errors are known.

Every candidate is first looked at on its training data; one that is untrained, broken or meets other data than in its
training is left out and named. Each checkpoint is measured once: with --output, its table is kept under the hash of its
weights and of the request, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatminima import catalog
from flatminima.cli.candidates import held_out, measured
from flatminima.cli.early_checks import check_data
from flatminima.cli.gaps import read_gaps
from flatminima.cli.option_groups import grouped
from flatminima.cli.options import (
    MODEL_HELP,
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
from flatminima.cli.output import writable
from flatminima.cli.request import MORE, Request, load_data
from flatminima.cli.sample_options import Reading
from flatminima.cli.terminal import bars, out, say, say_notes
from flatminima.errors import CheckpointError, DataError, UsageError
from flatminima.io import json_text

if TYPE_CHECKING:
    from flatminima.ranking import Choice, Look, RankTable
    from flatminima.table import MeasureTable

_RESULT, _PAGE = "rank.json", "rank.html"
_NONE = "none"


@grouped
def rank(
    reading: Reading,
    checkpoints: Annotated[list[Path], typer.Argument(help="Weights of the networks, two or more.")],
    model: Annotated[list[str], typer.Option(help=f"{MODEL_HELP} Repeat: one a checkpoint.")],
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
        str | None, typer.Option(help=f"Comma-separated, or 'none'; by default the budget's ({MORE}).")
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
    some = measures != _NONE
    request = Request(
        model[0], data, None, split, measures if some else None, reading, loss, subset, budget,
        tuple(model_arg or ()), app_dir, batch_size, seed, device, threads, model_config,
    )  # fmt: skip
    for one in model:
        replace(request, model=one).check()
    voters = None if by is None else [catalog.measure_row(n.strip()).name for n in by.split(",") if n.strip()]
    _check(checkpoints, model, split, test_split, test_data, gaps)
    if voters is not None and not set(voters) <= set(request.names):
        raise UsageError(f"no measure to order by is measured: --by {by}, and --measures {measures or budget}")
    known = None if gaps is None else read_gaps(gaps, checkpoints)
    if output is not None:
        writable(output, (_RESULT, _PAGE), shared=True)
    with bars(), contextlib.redirect_stdout(sys.stderr):
        given = load_data(request, request.split)
        say_notes(given.notes())
        held, notes = held_out(request, given, test_split, test_data, unlabelled_split)
        requests = [
            replace(request, checkpoint=path, model=model[i % len(model)]) for i, path in enumerate(checkpoints)
        ]
        which = "none" if not some else "all" if known is not None else "compared"
        looks, tables, more = measured(requests, given.data, held, which, output)
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
    from flatminima.ranking.table import render_correlations

    render_choice(choice, out())
    if scores is not None:
        out().print("\nHow each measure orders the known gaps (Kendall's tau, bootstrap over networks):", markup=False)
        render_correlations(scores, out())
