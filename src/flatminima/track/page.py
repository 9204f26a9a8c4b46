"""The page of `flatminima track`: loss, eigenvalue against its threshold, trace, events; it loads nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from flatminima.report.axes import legend_below, linear, logarithmic, spans_decades
from flatminima.report.page import render_template
from flatminima.report.theme import GREY, PALETTE, WIDTH, style, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from flatminima.track.table import TrackTable

_SPREAD = 50.0  # times the smallest value, above which an axis is logarithmic
_MARKED = 40  # points of a curve that has markers
_GROUPS = 4  # of an optimizer, whose own thresholds are drawn
_ROWS = 200  # of the table, the last ones
_MODES = {
    "eval": "dropout off, BatchNorm with its running statistics",
    "train": "one fixed dropout mask, BatchNorm with the statistics of the probe",
}
_LABELS = {
    "loss": "training loss",
    "eigenvalue": "largest eigenvalue of the Hessian",
    "preconditioned": "largest eigenvalue, preconditioned",
    "gauss_newton": "largest eigenvalue, Gauss-Newton",
    "trace": "trace of the Hessian",
    "critical_sharpness": "critical sharpness, along the gradient",
    "update_sharpness": "critical sharpness, along the update",
    "gradient_norm": "norm of the gradient",
    "distance": "distance from the start",
}
_SHARPNESS = ("eigenvalue", "gauss_newton", "critical_sharpness")
_IN_THE_METRIC = ("preconditioned", "update_sharpness")


def page(table: TrackTable, *, refresh: int | None = None) -> str:
    """The HTML of a table.

    Args:
        table: of a tracker or of a log. refresh: seconds after which a browser reads the file again; None: never.
    """
    return render_template(
        "track.html.j2",
        title="Curvature while training",
        subtitle=_subtitle(table),
        refresh=refresh,
        verdict=summary_sentences(table),
        figures=figures(table),
        events=[(row["step"], event) for row in table for event in row["events"]],
        missing=_missing(table),
        columns=table.columns(),
        rows=[_cells(table, row) for row in table[-_ROWS:]],
        left_out=max(0, len(table) - _ROWS),
        provenance=_provenance(table),
    )


def summary_sentences(table: TrackTable) -> list[str]:
    """Sentences that a reader should know first."""
    if not len(table):
        return ["No check has been made yet."]
    last, said = table[-1], [f"{len(table)} checks, the last at step {table[-1]['step']:,}."]
    if last["loss"] is not None:
        said.append(f"The training loss is {last['loss']:.4g}.")
    edge = table.series("edge")
    if edge:
        third = [value for _, value in edge[-max(1, len(edge) // 3) :]]
        mean, (step, now) = sum(third) / len(third), edge[-1]
        limit = next(row["threshold"] for row in reversed(table) if row["step"] == step)
        said.append(
            f"At step {step:,} the eigenvalue is {100 * now:.3g}% of the optimizer's threshold of stability "
            f"{limit:.4g}; over the last third {100 * mean:.3g}% in the mean."
        )
    else:
        value = table.series("eigenvalue")
        said += [f"The largest eigenvalue is {value[-1][1]:.4g}."] if value else []
    missed = sum(1 for row in table for reason in row["undefined"].values() if "not converged" in reason)
    if missed:
        said.append(f"{missed} numbers are missing because they had not converged.")
    events = sum(len(row["events"]) for row in table)
    said.append(f"{events} events, below." if events else "No events.")
    return said


def figures(table: TrackTable) -> list[tuple[str, Any]]:
    """(title, SVG) of what the table holds."""
    found: list[tuple[str, Any]] = []
    marks = [row["step"] for row in table if row["events"]]
    preconditioned = _differs(table)

    def add(title: str, names: Sequence[str], *, threshold: bool = False, ylabel: str = "") -> None:
        shown = [name for name in names if table.series(name)]
        if shown:
            found.append((title, Markup(_figure(table, title, shown, marks, threshold, ylabel))))

    add("Training loss", ["loss"])
    add("Curvature", _SHARPNESS, threshold=not preconditioned, ylabel="curvature (loss / weight²)")
    if preconditioned:
        add("Curvature in the optimizer's metric", _IN_THE_METRIC, threshold=True, ylabel="1 / learning rate")
    add("Trace", ["trace"])
    add("Gradient", ["gradient_norm"])
    add("Distance", ["distance"])
    drawn = {"loss", "lr", "threshold", *_SHARPNESS, *_IN_THE_METRIC, "trace", "gradient_norm", "distance"}
    for name in table.columns():
        if name not in drawn and len(table.series(name)) > 1:
            add(name, [name])
    return found


def _differs(table: TrackTable) -> bool:
    """Whether the preconditioned eigenvalue is another number than the Hessian's."""
    plain = dict(table.series("eigenvalue"))
    pairs = [(value, plain[step]) for step, value in table.series("preconditioned") if step in plain]
    return any(abs(a - b) > 1e-9 * abs(b) for a, b in pairs) or (bool(table.series("preconditioned")) and not pairs)


def _figure(
    table: TrackTable, title: str, names: Sequence[str], marks: Sequence[int], threshold: bool, ylabel: str
) -> str:
    from matplotlib.figure import Figure

    with style(f"track-{title}"):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axes = figure.add_subplot()
        values: list[float] = []
        for i, name in enumerate(names):
            points = table.series(name)
            steps, heights = [step for step, _ in points], [value for _, value in points]
            marker = "o" if len(points) <= _MARKED else None
            label = _LABELS.get(name, name)
            axes.plot(steps, heights, color=PALETTE[i], lw=1.4, marker=marker, ms=3, label=label)
            _band(axes, table, name, PALETTE[i])
            values += heights
            values += [r["values"][name] + r["stderr"][name] for r in table if name in r["stderr"]]
        for i, (label, edge) in enumerate(_thresholds(table) if threshold else []):
            steps, limits = [step for step, _ in edge], [value for _, value in edge]
            axes.step(steps, limits, where="post", color=GREY, ls=":" if i else "--", lw=0.8 if i else 1.2, label=label)
            values += [v for v in limits if v < _SPREAD * max(values)]
        for i, step in enumerate(marks):
            axes.axvline(step, color=PALETTE[5], lw=0.8, ls=":", label="_" if i else "event")
        _scale(axes, values)
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel or _LABELS.get(names[0], names[0]))
        axes.grid(axis="y")
        if len(axes.get_legend_handles_labels()[0]) > 1:
            legend_below(figure)
        return svg(figure, f"{title} by step: {', '.join(_LABELS.get(name, name) for name in names)}")


def _thresholds(table: TrackTable) -> list[tuple[str, list[tuple[int, float]]]]:
    """(label, points) of the threshold, then of each group of the optimizer that has another one."""
    whole = table.series("threshold")
    if not whole:
        return []
    found = [("threshold of stability", whole)]
    known = dict(whole)
    for i in range(min(_GROUPS, max(len(row.get("thresholds") or ()) for row in table))):
        points = [(row["step"], row["thresholds"][i]) for row in table if len(row.get("thresholds") or ()) > i]
        points = [(step, value) for step, value in points if value is not None]
        if not all(math.isclose(value, known.get(step, math.nan), rel_tol=1e-6) for step, value in points):
            found.append((f"of parameter group {i} alone", points))
    return found


def _band(axes: Axes, table: TrackTable, name: str, colour: str) -> None:
    """One standard error, where there is one."""
    points = [(r["step"], r["values"][name], r["stderr"][name]) for r in table if name in r["stderr"]]
    if points:
        steps, values, errors = zip(*points, strict=True)
        low = [v - e for v, e in zip(values, errors, strict=True)]
        high = [v + e for v, e in zip(values, errors, strict=True)]
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    linear(axes.xaxis, whole=True)
    if spans_decades(values):
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 1.5, max(values) * 1.5)
        logarithmic(axes.yaxis, min(values) / 1.5, max(values) * 1.5)
        return
    if values:
        room = 0.08 * (max(values) - min(values) or abs(max(values)) or 1.0)
        axes.set_ylim(min(0.0, min(values)) - room * (min(values) < 0), max(values) + room)
    linear(axes.yaxis)


def _cells(table: TrackTable, row: dict[str, Any]) -> dict[str, Any]:
    cells = []
    for name in table.columns():
        value, error = row["values"].get(name, row.get(name)), row["stderr"].get(name)
        shown = "–" if value is None else f"{value:.4g}" + (f" ± {error:.1g}" if error is not None else "")
        cells.append(shown)
    return {"step": row["step"], "cells": cells}


def _missing(table: TrackTable) -> list[tuple[str, str, int]]:
    """(quantity, reason, how often) of what has no value."""
    counts: dict[tuple[str, str], int] = {}
    for row in table:
        for name, reason in row["undefined"].items():
            key = (name, "not converged within the products allowed" if "not converged" in reason else reason)
            counts[key] = counts.get(key, 0) + 1
    return [(name, reason, count) for (name, reason), count in counts.items()]


def _subtitle(table: TrackTable) -> str:
    h = table.header
    if not h:
        return "this process does not look: another one does"
    return f"{h['model']}, {h['parameters']:,} parameters, a probe of {h['samples']:,} samples"


def _provenance(table: TrackTable) -> list[tuple[str, str]]:
    h = table.header
    if not h:
        return []
    looks = ", ".join(f"{name} every {interval}" for name, interval in h["intervals"].items())
    seconds = sum(row["seconds"] for row in table)
    products = sum(row["products"] for row in table)
    rows = [
        ("loss", h["loss_function"]),
        ("optimizer", str(h["optimizer"])),
        ("looked at in", f"{h['mode']} mode: {_MODES.get(h['mode'], '')}"),
        ("quantities", looks),
        ("tolerance", f"{h['tolerance']:g}, of the eigenvalues"),
        ("checks", f"{seconds:.1f} s, {products} curvature products"),
        ("versions", ", ".join(f"{k} {v}" for k, v in h["versions"].items())),
        ("written", time.strftime("%Y-%m-%d %H:%M:%S")),
    ]
    return rows
