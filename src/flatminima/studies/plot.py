"""Shared by the studies' figures: a line a group with its range over seeds, and labelled axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import numpy as np

from flatminima.report.axes import linear, logarithmic, number, plain_ticks
from flatminima.report.theme import MARKERS, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (3.4, 2.7)  # inches
_APART, _DIGIT = 0.04, 0.052  # of an axis: the least gap between two numbers on it, and the width of a digit
_MARKED = 12  # points of a line with a marker
_ROOM = 20  # characters of all names along an axis that do not touch at full size


def panels(columns: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    return figure, list(grid.flat)


def lines(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    *,
    label: str | None = None,
    index: int = 0,
    dashed: bool = False,
    geometric: bool = False,
) -> None:
    """The mean of y at each x over repetitions, and a band of one standard deviation, as the papers draw them.

    Args:
        axes: to draw on. x, y: one of each a run; runs with equal x are repetitions.
        label: in the legend. index: which colour and marker. dashed: for a control.
        geometric: mean and deviation of ln y, for a logarithmic axis; of y itself where a value is not positive.
    """
    if not x:
        return
    places = sorted(set(x))
    groups = [[b for a, b in zip(x, y, strict=True) if a == place] for place in places]
    colour, marker = colour_and_marker(index)
    style = "--" if dashed else ":" if index >= len(PALETTE) else "-"  # a second round of colours is dotted
    if geometric and min(y) > 0:
        logs = [_spread_of([math.log(v) for v in g]) for g in groups]
        means, bands = [math.exp(m) for m, _ in logs], [(math.exp(m - wide), math.exp(m + wide)) for m, wide in logs]
    else:
        means, bands = [fmean(g) for g in groups], [_band(g) for g in groups]
    every = -(-len(places) // _MARKED)
    axes.plot(places, means, marker=marker, markevery=every, ls=style, color=colour, label=label, ms=4, lw=1.4)
    axes.fill_between(places, [b[0] for b in bands], [b[1] for b in bands], color=colour, alpha=0.18, lw=0)


def colour_and_marker(index: int) -> tuple[str, str]:
    """Those of a line; in a second round a colour has another marker."""
    return PALETTE[index % len(PALETTE)], MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]


def _spread_of(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def _band(values: Sequence[float]) -> tuple[float, float]:
    """Mean -+ standard deviation; of positive values not below the least, which an axis of logarithms can show."""
    mean, wide = _spread_of(values)
    low = mean - wide
    return (min(values) if low <= 0 < min(values) else low), mean + wide


def label(
    axes: Axes, x: str, y: str, title: str = "", *, log_x: bool = False, log_y: bool = False, legend: str = ""
) -> None:
    """Names and scales of the axes, numbers as plain text at the points drawn, a legend beside what is labelled.

    Args:
        axes: drawn on already. x, y: quantity and unit. title: of the panel. log_x, log_y: which is logarithmic.
        legend: what its entries are values of.
    """
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize=10)
    if log_x and axes.lines:
        axes.set_xscale("log")
        places = _spread(sorted({float(v) for line in axes.lines for v in np.asarray(line.get_xdata())}))
        axes.set_xticks(places, [number(v) for v in places], minor=False)
        axes.set_xticks([], minor=True)
    elif x == "epoch":
        linear(axes.xaxis, whole=True)
    else:
        plain_ticks(axes.xaxis)
    if log_y and axes.lines:
        axes.set_yscale("log")
        plain_numbers(axes, "y")
    elif axes.has_data():
        linear(axes.yaxis)
    entries = len(axes.get_legend_handles_labels()[0])
    if entries:
        axes.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), title=legend or None)


def ticks_at(axes: Axes, places: Sequence[float], names: Sequence[str] | None = None) -> None:
    """Ticks at the places along x that were tried, each with its name or number."""
    told = [number(place) for place in places] if names is None else list(names)
    axes.set_xticks(list(places), told)
    if sum(map(len, told)) > _ROOM:
        axes.tick_params("x", labelsize="small")


def _spread(places: Sequence[float]) -> list[float]:
    """Positive places, rising, without those whose numbers would touch on a logarithmic axis; the last one stays."""
    span = math.log(places[-1] / places[0])
    kept = [places[-1]]
    for place in reversed(places[:-1]):
        width = _APART + _DIGIT * (len(number(place)) + len(number(kept[0]))) / 2
        if math.log(kept[0] / place) >= width * span:
            kept.insert(0, place)
    return kept


def plain_numbers(axes: Axes, which: str) -> None:
    """Few round numbers on a logarithmic axis."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    logarithmic(axis, *axis.get_view_interval())
