"""Figures of studies: numbers on axes do not touch, legends do not hide what is drawn."""

from itertools import pairwise

import pytest

from flatminima.report.theme import style
from flatminima.studies.plot import label, lines, panels


def drawn(x, entries=1, **how):
    with style("test"):
        figure, (axes,) = panels(1)
        for index in range(entries):
            lines(axes, x, [float(v) for v in x], label=f"entry {index}", index=index)
        label(axes, "epoch" if not how else "x", "y", **how)
        figure.draw_without_rendering()
    return figure, axes


@pytest.mark.parametrize(
    "x", [[2**k for k in range(3, 13)], [0.005, 0.01, 0.05, 0.1, 0.5], [8, 16, 32, 64], [64, 128, 256, 512, 1024, 4096]]
)
def test_numbers_of_a_logarithmic_axis_do_not_touch(x):
    _, axes = drawn(x, log_x=True)
    boxes = [t.get_window_extent() for t in axes.get_xticklabels() if t.get_text()]
    assert len(boxes) >= 3 and all(a.x1 < b.x0 for a, b in pairwise(boxes))
    assert axes.get_xticklabels()[-1].get_text() == f"{x[-1]:g}"


def test_epochs_are_whole():
    _, axes = drawn(list(range(1, 13)))
    assert all(float(place).is_integer() for place in axes.get_xticks())


@pytest.mark.parametrize(("entries", "beside"), [(3, False), (9, True)])
def test_a_long_legend_stands_beside_the_axes(entries, beside):
    _, axes = drawn([1, 2, 3], entries)
    outside = axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1
    assert bool(outside) == beside
