"""A page for what a command left in a folder: certificate, landscape, training, or an order of networks.

Each is a document of JSON; the page shows it as tables, with the pictures that lie beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatminima.display import ceiled, ceiled_digits
from flatminima.report.page import render_template, version_rows
from flatminima.report.sections import RECORDED, condition_status, pictures
from flatminima.untrusted import parsed, read_text

_Document = Mapping[str, Any]
_BOUNDS = ("risk_bound", "monte_carlo_upper", "holdout_bound", "cross_entropy_bound")
_UP: Mapping[str, Callable[[float], float]] = {name: lambda v: float(ceiled(v)) for name in _BOUNDS} | {
    "delta": ceiled_digits
}
_LONG = 24  # characters of a cell, above which a phone shows each row as lines of text


@dataclass(frozen=True)
class Section:
    """A table of a page.

    Attributes:
        title: its heading. heads: of the columns. rows: of text and numbers.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Page:
    """Content of a page: a title, sentences, tables, and where the numbers come from."""

    title: str
    subtitle: str
    verdict: tuple[str, ...]
    sections: tuple[Section, ...] = ()
    provenance: tuple[tuple[str, str], ...] = field(default=())


def certificate_page(document: _Document, folder: Path) -> Page:
    """The statement, the bound's inputs and the conditions; bounds and delta are rounded up.

    Args:
        document: whose statement was derived again from its fields (see `certification.pipeline.derived`).
    """
    numbers = ("risk_bound", "empirical_risk", "monte_carlo_upper", "kl", "sigma", "n", "draws", "delta",
               "holdout_bound", "constant_error", "cross_entropy_bound")  # fmt: skip
    found = [(name, document[name]) for name in numbers if document.get(name) is not None]
    rows = tuple((name.replace("_", " "), _UP[name](value) if name in _UP else value) for name, value in found)
    conditions = tuple((a["text"], condition_status(a), a["evidence"]) for a in document["assumptions"])
    return Page(
        "Certificate",
        f"{document['n']:,} samples, prior: {document['prior']}",
        (document["statement"], RECORDED),
        (
            Section("Numbers", ("", "value"), rows),
            Section("Conditions", ("condition", "status", "evidence"), conditions),
        ),
        _command(document),
    )


def landscape_page(document: _Document, folder: Path) -> Page:
    """The loss at the minimum and around it; the figure lies beside."""
    losses = [v for v in _flat(document["losses"]) if v is not None]
    rows = (
        ("loss at the given weights", document["centre"]),
        ("smallest", min(losses, default=None)),
        ("largest", max(losses, default=None)),
        ("reach of the noise", document["ball"]["radius"]),
    )
    axes = tuple(zip(document["labels"], document["curvatures"], document["lengths"], strict=True))
    lower = bool(losses) and min(losses) < document["centre"]
    return Page(
        "The loss around the weights",
        f"{document['samples']:,} samples, loss {document['loss']}, along {', '.join(document['labels'])}",
        (
            f"The mean loss is {document['centre']:.4g} at the weights, up to {max(losses, default=0.0):.4g} around.",
            *(("A point of the picture is lower than the weights themselves: no minimum along it.",) if lower else ()),
        ),
        (Section("Losses", ("", "value"), rows), Section("Directions", ("axis", "curvature", "length"), axes)),
        _command(document),
    )


def training(document: _Document, folder: Path) -> Page:
    """The result of a training, epoch by epoch."""
    found = [(name, document[name]) for name in ("train", "validation", "test") if document.get(name)]
    said = [f"{name}: loss {r['loss']:.4g}, error {100 * r['error']:.2f}%." for name, r in found]
    epochs = []
    metrics = folder / "metrics.jsonl"
    if metrics.is_file():
        epochs = [parsed(line) for line in read_text(metrics).splitlines() if line.strip()]
    heads = tuple(dict.fromkeys(key for row in epochs for key, value in row.items() if isinstance(value, int | float)))
    rows = tuple(tuple(row.get(key) for key in heads) for row in epochs)
    seconds = f"{document['seconds']:.3g} s"
    return Page(
        f"Training with {document['optimizer'] if document['method'] == 'plain' else document['method']}",
        f"{document['optimizer']}, {document['epochs']} epochs, {document['steps']:,} steps, {seconds}",
        (*said, f"Stopped because: {document['stopped_because']}."),
        (Section("Epochs", heads, rows),) if rows else (),
        _command(document),
    )


def order_page(document: _Document, folder: Path) -> Page:
    """Networks in their order, with errors where they are known."""
    places = document["order"]["places"]
    heads = tuple(dict.fromkeys(key for place in places for key, value in place.items() if _is_plain(value)))
    rows = tuple(tuple(place.get(key) for key in heads) for place in places)
    known = ("checkpoint", "train_error", "test_error", "gap")
    networks = tuple(tuple(network.get(key) for key in known) for network in document["networks"])
    said = document.get("answer") or (
        f"{len(places)} networks, ordered by {', '.join(document['order']['measures'])}: these order gaps, not errors."
    )
    return Page(
        "Networks in order",
        f"{len(places)} checkpoints",
        (str(said),),
        (Section("Order", heads, rows), Section("Networks", known, networks)),
        _command(document),
    )


# the file that a command leaves, and its page
PAGES: dict[str, Callable[[_Document, Path], Page]] = {
    "certificate.json": certificate_page,
    "landscape.json": landscape_page,
    "result.json": training,
    "rank.json": order_page,
}


def folder_page(name: str, document: _Document, folder: Path) -> str:
    """The page of the file called `name`, which held `document`, as HTML."""
    page = PAGES[name](document, folder)
    return render_template(
        "folder.html.j2",
        title=page.title,
        subtitle=page.subtitle,
        verdict=page.verdict,
        sections=[
            {
                "title": s.title,
                "heads": s.heads,
                "rows": [[_text(v) for v in row] for row in s.rows],
                "numeric": [_numeric([row[i] for row in s.rows]) for i in range(len(s.heads))],
                "rows_apart": any(len(str(v)) > _LONG for row in s.rows for v in row if isinstance(v, str)),
            }
            for s in page.sections
        ],
        pictures=pictures(folder),
        provenance=[*page.provenance, *version_rows(dict(document.get("versions", {}))), ("numbers", name)],
    )


def _text(value: Any) -> str:
    """A cell as it is shown."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _numeric(column: list[Any]) -> bool:
    """Whether a column holds numbers, perhaps with gaps: it and its head are set to the right."""
    return all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in column)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _flat(values: Any) -> list[Any]:
    return [one for part in values for one in _flat(part)] if isinstance(values, list) else [values]


def _command(document: _Document) -> tuple[tuple[str, str], ...]:
    command = document.get("command")
    return (("command", command),) if isinstance(command, str) else ()
