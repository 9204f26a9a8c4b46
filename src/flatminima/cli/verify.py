"""`flatminima certify --verify`: the numbers of a record again, from a network and data that are typed here.

A record is compared and never obeyed. All that is taken from it without being typed is one of the library's own
networks with plain numbers, and how the inputs were read: split, scaling, limit, names of columns.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flatminima.catalog.choices import LAYOUTS, SCALINGS
from flatminima.cli import factory
from flatminima.cli.around import maker
from flatminima.cli.device import take_threads, usable
from flatminima.cli.sample_options import Reading
from flatminima.cli.source import Source
from flatminima.cli.terminal import bars, say_notes, tell
from flatminima.errors import CheckpointError, FlatMinimaError, UsageError
from flatminima.io import json_text

if TYPE_CHECKING:
    from flatminima.certification import Certificate, Comparison

_DISAGREES = 3
_OURS = "flatminima.models:"
_SPLIT = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}(\[[0-9%:]{0,20}\])?")
_DECIMALS = re.compile(r"[-+0-9.eE]+(, ?[-+0-9.eE]+)*")
_LONGEST = 200  # characters of them
_LONGEST_NAMES = 10_000  # characters of the names of columns
_LARGEST = 1 << 20  # of a number that a record gives to a network


@dataclass(frozen=True)
class Typed:
    """The options, as typed."""

    model: str | None
    data: str | None
    model_arg: tuple[str, ...]
    app_dir: str | None
    prior_split: str | None
    reading: Reading = field(default_factory=Reading)


def verify_record(path: Path, typed: Typed, device: str | None, threads: int | None, as_json: bool) -> None:
    """Recompute a certificate and show each number; exit 3 where one differs.

    Raises:
        UsageError: nothing typed that the record may not give. CheckpointError: a file that is no record.
    """
    if not path.exists():
        raise CheckpointError(f"no file {path} for --verify; name the certificate.json that flatminima certify wrote")
    if typed.data is None:
        _contradicts_itself(path)
        raise UsageError(
            "--verify needs --data, the data that the certificate was made from: a record names none to open; its "
            "bounds follow from its own counts, which is all that can be seen without"
        )
    with bars(), contextlib.redirect_stdout(sys.stderr):
        from flatminima.certification.record import read_document

        take_threads(threads)
        document = read_document(path)
        try:
            source = recorded_source(document.get("source"), typed)
            source.check()
            again, rows = _again(path, document, source, typed, usable(device))
        except FlatMinimaError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
            if "OutOfMemory" in type(error).__name__:
                raise
            # of an edited record, or a network that does not take the data
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{path} is not a certificate of this version ({reason})") from error
    agrees = all(row.agrees for row in rows)
    first = again.statement if agrees else f"Not the certificate that these weights give, which is: {again.statement}"
    rest = not_recomputed(again.standing)
    if as_json:
        numbers = [{k: None if v != v else v for k, v in asdict(r).items()} | {"agrees": r.agrees} for r in rows]
        shown = {"schema": 2, "statement": first, "standing": again.standing, "agrees": agrees, "numbers": numbers}
        typer.echo(json_text(shown | {"not_recomputed": rest}))
    else:
        tell(first)
        for row in rows:
            differs = "" if row.agrees else "DIFFERS"
            tell(f"{row.name:<20} {row.recorded:<14.8g} {row.recomputed:<14.8g} {differs}".rstrip())
        tell(f"not recomputed: {rest}")
        tell("every number agrees" if agrees else "not the certificate that these weights give")
    if not agrees:
        raise typer.Exit(_DISAGREES)


def _contradicts_itself(path: Path) -> None:
    """Exit 3 for a record whose bounds do not follow from its own counts, which takes neither network nor data."""
    from flatminima.certification import Certificate
    from flatminima.certification.pipeline import contradiction
    from flatminima.certification.record import read_document

    try:
        found = contradiction(Certificate.from_dict(read_document(path)))
    except (FlatMinimaError, TypeError, ValueError, ArithmeticError):
        return  # no record, or a damaged one: what is missing is said first
    if found:
        typer.echo(f"not a certificate: {found}")
        raise typer.Exit(_DISAGREES)


def recorded_source(values: Any, typed: Typed) -> Source:
    """Network and data as typed; of the record only what can neither run nor open anything.

    Raises:
        UsageError: the record's network is none of the library's own, and --model is not given.
    """
    values = values if isinstance(values, Mapping) else {}
    model, arguments = typed.model, typed.model_arg
    if model is None:
        model, arguments = _own_model(values), tuple(str(a) for a in values.get("model_arg") or ())
    split, scaling, limit = values.get("split", "train"), values.get("scaling", "unit"), values.get("limit")
    if not isinstance(split, str) or not _SPLIT.fullmatch(split):
        raise CheckpointError("the record's split is no name of a split with a range: it was edited")
    if scaling not in SCALINGS or not (limit is None or (isinstance(limit, int) and limit > 0)):
        raise CheckpointError("the record's scaling or limit is none that flatminima writes: it was edited")
    assert typed.data is not None
    own = _recorded_reading(values, typed.reading)
    reading = replace(typed.reading, scaling=scaling, limit=limit, **own)
    return Source(model, typed.data, split, None, reading, arguments, None, None, typed.app_dir, 0)


def _recorded_reading(values: Mapping[str, Any], typed: Reading) -> dict[str, Any]:
    """How the inputs are read, of the record where none is typed: numbers, and names of columns of the typed data.

    They run and open nothing. What the labels are is never taken: it is what the bound is about.

    Raises:
        CheckpointError: something else there than what flatminima writes.
    """
    found = {name: values[name] for name in _READING if values.get(name) is not None and getattr(typed, name) is None}
    if typed.mean is not None or typed.std is not None:
        found = {name: value for name, value in found.items() if name not in ("mean", "std")}
    for name, value in found.items():
        if not _READING[name](value):
            raise CheckpointError(f"the record's {name} is none that flatminima writes: it was edited")
    if found:
        said = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in found.items())
        say_notes([f"from the record, where none is typed: {said}"])
    for name in ("label_column", "classes"):
        recorded = values.get(name)
        if getattr(typed, name) is None and isinstance(recorded, str) and _is_names(recorded):
            option = f"--{name.replace('_', '-')} {recorded}"
            say_notes([f"the record was made with {option}; type it if that is what the bound is to be about"])
    return found


def _is_decimals(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and _DECIMALS.fullmatch(value) is not None


def _is_names(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAMES and value.isprintable()


_READING: Mapping[str, Callable[[Any], bool]] = {
    "mean": _is_decimals,
    "std": _is_decimals,
    "image_size": lambda value: type(value) is int and 0 < value <= _LARGEST,
    "columns": _is_names,
    "image_column": _is_names,
    "layout": lambda value: value in LAYOUTS,
    "mode": lambda value: value in ("L", "RGB"),
}


def _own_model(values: Mapping[str, Any]) -> str:
    """A network of the library that the record names, its arguments plain numbers."""
    from flatminima.models import MODELS

    name = values.get("model")
    if not (isinstance(name, str) and name.startswith(_OURS) and name.removeprefix(_OURS) in MODELS):
        raise UsageError(
            "--verify needs --model (and its --model-arg, --app-dir): the record's network is none of "
            "flatminima.models, and a record names no code to be run"
        )
    pairs = values.get("model_arg") or ()
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, str) for p in pairs):
        raise CheckpointError("the record's model_arg is no list of key=value: it was edited")
    for value in factory.arguments(list(pairs)).values():
        if not _plain(value):
            raise UsageError(
                f"the record gives {name} an argument that is no plain number: type --model and --model-arg"
            )
    return name


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) <= 64 and all(_plain(v) and not isinstance(v, tuple | list) for v in value)
    return value is None or (isinstance(value, bool | int | float) and math.isfinite(value) and abs(value) <= _LARGEST)


def _again(
    path: Path, document: Mapping[str, Any], source: Source, typed: Typed, device: str | None
) -> tuple[Certificate, list[Comparison]]:
    """The certificate as it is computed here, and each number beside the recorded one."""
    from flatminima.certification import recomputed
    from flatminima.certification.record import compare_numbers

    prior = None
    if "recipe" not in document["details"]:
        recorded = (document.get("source") or {}).get("prior_split")
        split = typed.prior_split
        if split is None and isinstance(recorded, str) and _SPLIT.fullmatch(recorded):
            split = recorded
        prior = None if split is None else source.whole().samples(split, None)
    found = recomputed(path, maker(source, device), source.samples(source.split, device), prior)
    return found[1], compare_numbers(*found)


def not_recomputed(standing: str) -> str:
    """Statements that are the record's word and were not recomputed."""
    chosen = "that no more certificates could have been chosen than it counts"
    if standing == "certificate":
        return chosen
    return f"that the prior's weights were made without the bound's samples (its command does that again); {chosen}"
