"""Figures of studies: numbers on axes do not touch, legends do not hide what is drawn."""

from itertools import pairwise

import pytest

from flatminima.report.axes import legends_beside, linear, logarithmic, number
from flatminima.report.theme import style
from flatminima.studies._jia import METRICS, figure
from flatminima.studies.plot import label, lines, panels


def drawn(x, entries=1, **how):
    with style("test"):
        whole, (axes,) = panels(1)
        for index in range(entries):
            lines(axes, x, [float(v) for v in x], label=f"entry {index}", index=index)
        label(axes, "epoch" if not how else "x", "y", **how)
        whole.draw_without_rendering()
    return whole, axes


@pytest.mark.parametrize(
    "x", [[2**k for k in range(3, 13)], [0.005, 0.01, 0.05, 0.1, 0.5], [8, 16, 32, 64], [64, 128, 256, 512, 1024, 4096]]
)
def test_numbers_of_a_logarithmic_axis_do_not_touch(x):
    _, axes = drawn(x, log_x=True)
    boxes = [t.get_window_extent() for t in axes.get_xticklabels() if t.get_text()]
    assert len(boxes) >= 3 and all(a.x1 < b.x0 for a, b in pairwise(boxes))
    assert axes.get_xticklabels()[-1].get_text() == number(x[-1])


def test_epochs_are_whole():
    _, axes = drawn(list(range(1, 13)))
    assert all(float(place).is_integer() for place in axes.get_xticks())


@pytest.mark.parametrize("confusions", [(), tuple(range(9))])
def test_metrics_are_drawn_of_no_network_and_of_more_than_there_are_colours(confusions):
    """Where no network reached the loss there is nothing to put into a legend, which matplotlib warns of."""
    run = {"reached": True, "test_error": 0.5, "train_loss": 0.1, **dict.fromkeys(METRICS, 2.0)}
    with style("test"):
        figure([run | {"confusion": c} for c in confusions], "confusion", "confusion set").draw_without_rendering()


@pytest.mark.parametrize("entries", [1, 3, 9])
def test_a_legend_is_beside_the_axes(entries):
    _, axes = drawn([1, 2, 3], entries)
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def test_panels_with_one_legend_share_it():
    """Of two panels alike, one legend beside the figure; of two that differ, each its own."""
    for same in (True, False):
        with style("test"):
            whole, axes = panels(2)
            for panel, name in zip(axes, ("a", "a" if same else "b"), strict=True):
                lines(panel, [1, 2], [1.0, 2.0], label=name)
                label(panel, "x", "y")
            legends_beside(whole)
        assert len(whole.legends) == same and all((panel.get_legend() is None) == same for panel in axes)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.00013, 0.00081), (-380.0, 12.0), (3.1, 5.6), (8e5, 9e6)])
def test_ticks_are_round_numbers(low, high):
    """Of one or two digits (2.5 has two), on a linear axis and on a logarithmic one."""
    for log in (False, True):
        if log and low <= 0:
            continue
        with style("test"):
            whole, (axes,) = panels(1)
            axes.plot([0, 1], [low, high])
            if log:
                axes.set_yscale("log")
                logarithmic(axes.yaxis, low, high)
            else:
                linear(axes.yaxis)
            whole.draw_without_rendering()
            texts = [t.get_text() for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]
        assert len(texts) >= 2, texts
        digits = [t.replace(",", "").replace(".", "").replace("−", "").partition("e")[0].strip("0") for t in texts]
        assert all(len(d) <= 2 + (not log) for d in digits), texts
