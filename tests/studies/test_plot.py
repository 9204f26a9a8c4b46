"""Figures of studies: numbers on axes do not touch, legends do not hide what is drawn."""

import math
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flatminima.report.axes import legends_beside, linear, logarithmic, number
from flatminima.report.theme import DARK_PALETTE, PALETTE, style, svg, themed
from flatminima.studies import STUDIES
from flatminima.studies._jia import METRICS, figure
from flatminima.studies._neyshabur import draw_at_sharpness, draw_curves
from flatminima.studies.plot import label, lines, panels
from flatminima.studies.result_files import documents

RESULTS = Path(__file__).parents[2] / "results" / "studies"


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


def test_a_bi_criteria_curve_is_the_geometric_mean_over_networks():
    """Level by level; a level at which the noise lowers a network's loss is left out of that network alone."""
    curves = [
        [{"alpha": 0.1, "kl": 10.0, "sharpness": s}, {"alpha": 0.2, "kl": 1.0, "sharpness": t}]
        for s, t in ((0.01, 1.0), (0.04, 4.0), (-0.01, 16.0))
    ]
    with style("test"):
        whole, (axes,) = panels(1)
        draw_curves(axes, {"own": [{"curve": c} for c in curves], "none": [{"curve": []}]})
        whole.draw_without_rendering()
    line = axes.lines[0]
    assert list(line.get_xdata()) == pytest.approx([10.0, 1.0])
    assert list(line.get_ydata()) == pytest.approx([0.02, 4.0])
    assert axes.lines[-1].get_ydata()[0] == 0.05 and len(axes.lines) == 2


def test_kl_is_read_at_the_papers_sharpness():
    """Of sharpness 1 / KL it is 20 at 0.05; a curve that does not reach so far has no point."""
    runs = [
        {"size": n, "curve": [{"kl": k, "sharpness": 1 / k, "stderr": 0.0} for k in ks]}
        for n, ks in ((1, (10.0, 40.0)), (1, (1.0, 100.0)), (2, (1.0, 5.0)))
    ]
    with style("test"):
        whole, (axes,) = panels(1)
        draw_at_sharpness(axes, {"own": runs}, "size", "samples", log_x=False)
        whole.draw_without_rendering()
    assert list(axes.lines[0].get_xdata()) == [1] and list(axes.lines[0].get_ydata()) == pytest.approx([math.log(20)])


@pytest.mark.parametrize("name", ["jia-batch", "neyshabur-width", "wang-cifar-lr", "wang-pertopt", "wang-rescaling"])
def test_every_axis_of_a_committed_figure_has_numbers_that_do_not_touch(name):
    """Along x; along y numbers stand below one another."""
    (document, *_) = documents(RESULTS, name)
    with style(name):
        whole = STUDIES[name].figure([run["result"] for run in document["runs"] if "result" in run])
        whole.draw_without_rendering()
    shown = [axes for axes in whole.axes if axes.axison]
    for axes in shown:
        for which, axis in enumerate((axes.xaxis, axes.yaxis)):
            low, high = sorted(axis.get_view_interval())
            numbers = [t for t in axis.get_ticklabels() if t.get_text() and low <= t.get_position()[which] <= high]
            assert len(numbers) >= 2, (axes.get_title(), "xy"[which])
        boxes = [t.get_window_extent() for t in axes.get_xticklabels() if t.get_text()]
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes)), axes.get_title()
    assert len(shown) >= 2


def test_a_figure_as_a_file_follows_the_readers_theme():
    """Colours and text are those of the page in light and in dark; nothing stands on white."""
    with style("test"):
        whole, (axes,) = panels(1)
        lines(axes, [1, 2], [1.0, 2.0])
        text = themed(svg(whole, "a figure"))
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    assert re.findall(r"--c\d: (#\w+)", dark) == list(DARK_PALETTE)
    assert re.findall(r"--c\d: (#\w+)", light) == list(PALETTE)
    assert "stroke: var(--c0)" in dark and "currentColor" in dark and "white" not in text
    ElementTree.fromstring(text.partition("?>")[2])
