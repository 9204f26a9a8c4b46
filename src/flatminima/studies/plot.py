"""What the studies' figures share: a line a group with its range over seeds, and labelled axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flatminima.report.theme import MARKERS, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (3.4, 2.7)  # inches
_TICKS = 6
_MARKED = 12  # points of a line with a marker


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
) -> None:
    """The mean of y at each x over repetitions, and a band from the least to the greatest.

    Args:
        axes: to draw on. x, y: one of each a run; runs with equal x are repetitions.
        label: in the legend. index: which colour and marker. dashed: for a control.
    """
    if not x:
        return
    places = sorted(set(x))
    groups = [[b for a, b in zip(x, y, strict=True) if a == place] for place in places]
    colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
    means = [sum(g) / len(g) for g in groups]
    style = "--" if dashed else ":" if index >= len(PALETTE) else "-"  # a second round of colours is dotted
    every = -(-len(places) // _MARKED)
    axes.plot(places, means, marker=marker, markevery=every, ls=style, color=colour, label=label, ms=4, lw=1.4)
    axes.fill_between(places, [min(g) for g in groups], [max(g) for g in groups], color=colour, alpha=0.18, lw=0)


def label(axes: Axes, x: str, y: str, title: str = "", *, log_x: bool = False, log_y: bool = False) -> None:
    """Names and scales of the axes, numbers as plain text at the points drawn; a legend where something is labelled."""
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize=10)
    if log_x and axes.lines:
        axes.set_xscale("log")
        places = sorted({float(v) for line in axes.lines for v in np.asarray(line.get_xdata())})
        step = -(-len(places) // _TICKS)
        axes.set_xticks(places[::step], [f"{v:g}" for v in places[::step]], minor=False)
        axes.set_xticks([], minor=True)
    if log_y and axes.lines:
        axes.set_yscale("log")
        plain_numbers(axes, "y")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)


def plain_numbers(axes: Axes, which: str) -> None:
    """Powers of ten as 1e-3: the theme keeps mathematical typesetting off."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
