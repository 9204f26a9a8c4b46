"""Axes that every figure shares: round numbers, scales chosen by the values, legends beside what is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_SPREAD = 50  # times the smallest value, above which an axis is logarithmic
_TICKS = 5
_DECADES = 3.0  # powers of ten on an axis from which few of them are enough
_DECADE = 1.1  # fewer, and the axis may have one power of ten or none
_PLAIN = (1e-4, 1e6)  # sizes of numbers that are written without an exponent
_KEY = 9  # points of a legend's text
_SHORT = 20  # characters of a label, up to which a legend below a narrow figure has two columns


def number(value: float) -> str:
    """A tick's number as a person writes it; mathematical typesetting is off.

    Examples:
        >>> number(0.25), number(12000), number(1e-7), number(3e8)
        ('0.25', '12,000', '1e-7', '3e8')
    """
    value = float(f"{value:.10g}")
    if value == 0 or _PLAIN[0] <= abs(value) < _PLAIN[1]:
        text = f"{value:,.6g}"
    else:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    return "−" + text[1:] if text.startswith("-") else text


def linear(axis: Axis, ticks: int = _TICKS, *, whole: bool = False) -> None:
    """Set round numbers, at most `ticks` intervals."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10], integer=whole))
    plain_ticks(axis)


def logarithmic(axis: Axis, low: float, high: float) -> None:
    """Powers of ten; with few of them also twice and five times these; within one decade, round numbers.

    Args:
        axis: whose scale is logarithmic already. low, high: what it shows, both above 0.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

    decades = math.log10(high / low) if high > low > 0 else 0.0
    if decades >= _DECADES:
        axis.set_major_locator(LogLocator(numticks=_TICKS + 1))
    elif decades >= _DECADE:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=2 * _TICKS - 1))
    else:
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axis.set_minor_locator(NullLocator())
    plain_ticks(axis)
    axis.set_minor_formatter(NullFormatter())


def spans_decades(values: Iterable[float]) -> bool:
    """Whether values are all positive and so far apart that only a logarithmic axis shows them."""
    known = list(values)
    return bool(known) and min(known) > 0 and max(known) > _SPREAD * min(known)


def plain_ticks(axis: Axis) -> None:
    """Ticks as plain numbers, without a factor at the axis's end."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def round_levels(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, both above 0, about equally far apart on a logarithmic scale.

    Examples:
        >>> round_levels(0.019, 9.8)
        [0.02, 0.05, 0.2, 0.5, 2.0, 5.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    inside = [float(f"{v:.3g}") for v in found if low <= v <= high]
    for kept in ((1, 2, 5), (2, 5), (1,)):
        chosen = [v for v in inside if round(v / 10 ** math.floor(math.log10(v) + 1e-9)) in kept]
        if len(chosen) <= most:
            return chosen
    return chosen[:: -(-len(chosen) // most)]


def legend_below(figure: Figure) -> None:
    """A legend under the axes of a narrow figure, where it hides nothing; none where nothing is labelled."""
    handles, labels = [], []
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    if handles:
        columns = 2 if max(map(len, labels)) <= _SHORT else 1
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)


def legends_beside(figure: Figure) -> None:
    """Legends out of the axes: one for the figure where all of several are alike, else beside the axes.

    Of axes that have the same legend one keeps it: the last one of the first row of them.
    """
    drawn = {axes: _entries(axes) for axes in figure.axes if axes.get_legend() is not None and axes.name != "3d"}
    kinds = list(dict.fromkeys(drawn.values()))
    for title, labels in kinds:
        own = [axes for axes in drawn if drawn[axes] == (title, labels)]
        handles = own[0].get_legend_handles_labels()[0]
        for axes in own:
            axes.get_legend().remove()  # type: ignore[union-attr]
        look: dict[str, Any] = {"frameon": False, "fontsize": _KEY, "title": title or None, "title_fontsize": _KEY}
        if len(own) > 1 and len(kinds) == 1:
            figure.legend(handles, labels, loc="outside right upper", **look)
        else:
            last = [axes for axes in own if _row_of(axes) == _row_of(own[0])][-1]
            last.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0), **look)


def _entries(axes: Axes) -> tuple[str, tuple[str, ...]]:
    """The title of a legend and its labels."""
    legend = axes.get_legend()
    assert legend is not None
    return legend.get_title().get_text(), tuple(text.get_text() for text in legend.get_texts())


def _row_of(axes: Axes) -> int:
    place = axes.get_subplotspec()
    return -1 if place is None else place.rowspan.start
