"""A landscape as a figure: a line with its quadratic model, or contours, with the ball of the noise drawn in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flatminima.io import write_whole
from flatminima.landscape.surface import Landscape
from flatminima.report.axes import legend_below, linear, number, round_levels
from flatminima.report.theme import GREY, PALETTE, WIDTH, standalone, style, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from flatminima.report.picture import Picture

_LEVELS = 14
_SPREAD = 30  # largest over smallest loss, above which contours are logarithmic


def write(found: Landscape, folder: Path, name: str = "landscape") -> list[Path]:
    """<name>.svg and <name>.png in a folder that exists."""
    with style("landscape"):
        figure = draw(found)
        element = svg(figure, describe_landscape(found))
        picture = figure.png()
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    write_whole(paths[0], standalone(element))
    write_whole(paths[1], picture)
    return paths


def describe_landscape(found: Landscape) -> str:
    """Describe the figure for a reader who does not see it."""
    finite = found.losses[np.isfinite(found.losses)]
    top = f"{finite.max():.3g}" if len(finite) else "overflow"
    plane = "on a line" if found.losses.ndim == 1 else "on a plane"
    return f"Mean loss {plane} through the given weights: {found.centre:.3g} there, up to {top} around them"


def draw(found: Landscape) -> Picture:
    """The figure; to be made and saved within `theme.style`."""
    from flatminima.report.picture import Picture

    if found.losses.ndim == 2:
        figure = Picture(figsize=(WIDTH, 0.92 * WIDTH), layout="constrained")
        _plane(found, figure.add_subplot(), figure)
        return figure
    rows = 1 if found.errors is None else 2
    figure = Picture(figsize=(WIDTH, 1.7 * rows + 1.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, 1, sharex=True))
    _line(found, axes[0])
    if found.errors is not None:
        axes[1].plot(found.positions, 100 * found.errors, color=PALETTE[2])
        axes[1].set_ylabel("error (%)")
        axes[1].grid()
        linear(axes[1].yaxis, 4)
        _band(found, axes[1])
    axes[-1].set_xlabel(found.labels[0])
    linear(axes[-1].xaxis, 4)
    legend_below(figure)
    return figure


def _line(found: Landscape, axes: Axes) -> None:
    axes.plot(found.positions, _masked(found.losses), color=PALETTE[0], label="mean loss")
    curvature = found.curvatures[0]
    if curvature is not None:
        model = found.centre + 0.5 * curvature * (found.lengths[0] * found.positions) ** 2
        axes.plot(found.positions, model, "--", color=PALETTE[5], label="quadratic model")
    axes.plot(0, found.centre, "o", color=PALETTE[1], label=f"the given weights, {_seen(found)}")
    _band(found, axes, label=_ball_label(found))
    axes.set_ylabel(_unit(found))
    axes.grid()
    linear(axes.yaxis, 4)


def _plane(found: Landscape, axes: Axes, figure: Any) -> None:
    from matplotlib.colors import LogNorm

    values = _masked(found.losses)
    low, high = float(values.min()), float(values.max())
    logarithmic_scale = low > 0 and high > _SPREAD * low
    levels = (
        np.geomspace(low, high, _LEVELS) if logarithmic_scale else np.linspace(low, max(high, low + 1e-12), _LEVELS)
    )
    options: dict[str, Any] = {"levels": levels, "norm": LogNorm(low, high) if logarithmic_scale else None}
    x = y = found.positions
    filled = axes.contourf(x, y, values.T, cmap="cividis", **options)
    axes.contour(x, y, values.T, levels=levels, colors="white", linewidths=0.4)
    ball = found.ball.outline()
    axes.plot(0, 0, "P", color=PALETTE[5], mec="white", ms=8, mew=0.8, label=f"the given weights, {_seen(found)}")
    axes.plot(ball[:, 0], ball[:, 1], color=PALETTE[1], lw=1.5, label=_ball_label(found))
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(y[0], y[-1])
    axes.set_xlabel(found.labels[0])
    axes.set_ylabel(found.labels[1])
    for axis in (axes.xaxis, axes.yaxis):
        linear(axis, 4)
    bar = figure.colorbar(filled, ax=axes)
    if logarithmic_scale:
        bar.set_ticks(round_levels(low, high))
        bar.ax.yaxis.set_major_formatter(lambda value, _: number(value))
    else:
        linear(bar.ax.yaxis)
    bar.minorticks_off()
    bar.set_label(_unit(found))
    legend_below(figure)


def _band(found: Landscape, axes: Axes, label: str | None = None) -> None:
    low, high = found.ball.outline()[:, 0]
    axes.axvspan(low, high, color=GREY, alpha=0.3, lw=0, label=label)


def _ball_label(found: Landscape) -> str:
    """With its reach in numbers: it may be smaller than a pixel."""
    scale = found.ball.noise["scale"]
    name = f"alpha {scale['alpha']:g}" if "alpha" in scale else "given sigma"
    reach = found.ball.radius / min(found.lengths)
    return f"noise, {name}: reach {number(float(f'{reach:.2g}'))}"


def _seen(found: Landscape) -> str:
    """What the network at these weights does on the samples: its error where labels are known, else its loss."""
    middle = int(np.argmin(np.abs(found.positions)))
    if found.errors is not None and found.errors.ndim == 1 and abs(found.positions[middle]) < 1e-9:
        return f"{100 * float(found.errors[middle]):.3g} % error"
    return f"loss {found.centre:.3g}"


def _unit(found: Landscape) -> str:
    return f"mean {found.loss.replace('_', '-')}" + (" (nats)" if found.loss.endswith(("entropy", "lm")) else "")


def _masked(values: Any) -> Any:
    return np.ma.masked_invalid(values)
