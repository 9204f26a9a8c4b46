"""The candidates of `flatminima rank`: each looked at, and measured once; what was measured is kept under its hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima import budgets
from flatminima.cli.device import take_threads
from flatminima.cli.load_samples import samples_of
from flatminima.cli.request import Request, load_network, make_minimum, with_options
from flatminima.cli.scaling_hint import other_scaling
from flatminima.cli.terminal import say_notes
from flatminima.errors import CheckpointError, DataError, ModelError, NumericalError, UnknownName, UsageError
from flatminima.io import json_text
from flatminima.untrusted import read_json

if TYPE_CHECKING:
    from flatminima.cli.load_samples import Given
    from flatminima.core.minimum import Minimum
    from flatminima.ranking import Look
    from flatminima.table import MeasureTable

_UNFITTED = 0.02  # training error above which they are tried


@dataclass(frozen=True)
class Held:
    """Samples beside those of training, where they were given."""

    test: Any = None
    unlabelled: Any = None


def held_out(
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
        options["trained_on"] = str(request.data)
        try:
            found = samples_of(request.model, source, asked, whole, **options)
        except DataError as error:
            if test_split is not None or not isinstance(error.__cause__, UnknownName):
                raise
            found = samples_of(request.model, source, "train", whole, **options)  # a file of its own has one split
        from flatminima.core.samples import as_samples

        test = as_samples(found.data)
        notes.extend(found.notes("test data"))
        seen = int(np.isin(test.input_hashes, as_samples(train.data).input_hashes).sum())
        if seen:
            notes.append(f"{seen:,} of {len(test):,} test samples are training samples too: errors on them are too low")
    if unlabelled_split is not None:
        free_of: dict[str, Any] = {"app_dir": request.app_dir, "loss": request.loss, "unlabelled": True}
        found = samples_of(request.model, str(request.data), unlabelled_split, whole, **free_of)
        free = found.data
        notes.extend(found.notes("data without labels"))
    say_notes(notes)
    return Held(test, free), [n for n in notes if "too low" in n]


def measured(
    requests: Sequence[Request], data: Any, held: Held, which: str, output: Path | None
) -> tuple[list[Look], list[MeasureTable | None], list[str]]:
    """Each candidate as it was looked at, its measures (of "none", of those "compared", of "all"), and notes."""

    from flatminima.progress import report

    take_threads(requests[0].threads)
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
        network, notes = load_network(request)
        minimum = make_minimum(request, network, data)
    except (CheckpointError, DataError, ModelError, NumericalError) as error:
        return Look(failed(name, error)), None
    say_notes(note for note in notes if note not in seen)
    seen.update(notes)
    return look(name, minimum, held.test, held.unlabelled), minimum


def _table(request: Request, minimum: Minimum, output: Path | None) -> MeasureTable:
    kept = None if output is None else output / "networks" / f"{_key(request)}.json"
    found = None if kept is None else read_table(kept)
    if found is None:
        found = _one(request, minimum)
        if kept is not None:
            _keep(kept, found)
    return found


def _one(request: Request, minimum: Minimum) -> MeasureTable:
    from flatminima.measuring import measure

    return measure(minimum, [with_options(name, request.budget, request.subset, minimum) for name in request.names])


def _key(request: Request) -> str:
    """Of the weights' bytes and of everything asked for."""
    import flatminima
    from flatminima.io import run_key

    options = {name: budgets.options(request.budget, name) for name in request.names}
    return run_key([request.document(), options, flatminima.__version__], digest_size=12, content=request.checkpoint)


def read_table(path: Path) -> MeasureTable | None:
    """Read what an earlier run kept; None where it is absent or damaged."""
    from flatminima.table import MeasureTable

    try:
        return MeasureTable.from_dict(read_json(path)["table"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _keep(path: Path, found: MeasureTable) -> None:
    from flatminima.io import make_folder, write_whole

    make_folder(path.parent)
    write_whole(path, json_text({"table": found.to_dict()}) + "\n")
