"""Figures of studies: numbers on axes do not touch, legends do not hide what is drawn."""

import math
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flatminima.report.axes import legends_beside, linear, logarithmic, number
from flatminima.report.theme import DARK_PALETTE, GROUND, PALETTE, style, svg, themed
from flatminima.studies import STUDIES
from flatminima.studies._jia import METRICS, figure
from flatminima.studies._neyshabur import draw_at_sharpness, draw_curves
from flatminima.studies._toy_figure import like
from flatminima.studies.plot import colour_and_marker, label, lines, panels
from flatminima.studies.result_files import documents

RESULTS = Path(__file__).parents[2] / "results" / "studies"
_SPACE = 4  # pixels: names that are nearer read as one word


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


@pytest.mark.parametrize(
    "name",
    [
        "jia-augmentation",
        "jia-batch",
        "jia-regularizer",
        "neyshabur-width",
        "wang-cifar-lr",
        "wang-pertopt",
        "wang-rescaling",
    ],
)
def test_every_axis_of_a_committed_figure_has_numbers_that_do_not_touch(name):
    """Along x; along y numbers stand below one another."""
    for document in documents(RESULTS, name):
        with style(name):
            whole = STUDIES[name].figure([run["result"] for run in document["runs"] if "result" in run])
            legends_beside(whole)
            whole.draw_without_rendering()
        shown = [axes for axes in whole.axes if axes.axison]
        for axes in shown:
            for which, axis in enumerate((axes.xaxis, axes.yaxis)):
                low, high = sorted(axis.get_view_interval())
                numbers = [t for t in axis.get_ticklabels() if t.get_text() and low <= t.get_position()[which] <= high]
                assert len(numbers) >= 2, (axes.get_title(), "xy"[which])
            boxes = [t.get_window_extent() for t in axes.get_xticklabels() if t.get_text()]
            assert all(a.x1 + _SPACE < b.x0 for a, b in pairwise(boxes)), axes.get_title()
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


def test_a_lone_legend_stays_beside_its_axes_with_its_title():
    """Of three panels one has a legend; the figure's would be taken for that of another panel."""
    with style("test"):
        whole, axes = panels(3)
        for panel, name in zip(axes, ("", "a", ""), strict=True):
            lines(panel, [1, 2], [1.0, 2.0], label=name or None)
            label(panel, "x", "y", legend="hidden units" if name else "")
        legends_beside(whole)
    assert not whole.legends and [panel.get_legend() is not None for panel in axes] == [False, True, False]
    assert axes[1].get_legend().get_title().get_text() == "hidden units"


def test_axes_of_one_legend_have_it_once_and_each_kind_has_its_own_title():
    with style("test"):
        whole, axes = panels(2, 2)
        for panel, name in zip(axes, ("a", "a", "a", "b"), strict=True):
            lines(panel, [1, 2], [1.0, 2.0], label=name)
            label(panel, "x", "y", legend=f"kind {name}")
        legends_beside(whole)
    titles = [panel.get_legend() and panel.get_legend().get_title().get_text() for panel in axes]
    assert titles == [None, "kind a", None, "kind b"] and not whole.legends


def test_no_two_lines_have_one_colour_and_one_marker():
    pairs = [colour_and_marker(index) for index in range(2 * len(PALETTE))]
    assert len(set(pairs)) == len(pairs)


def test_every_colour_has_contrast_on_white():
    """WCAG 1.4.11: 3 to 1 for a line."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear_light = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear_light, strict=True))

    assert all((luminance(GROUND) + 0.05) / (luminance(colour) + 0.05) >= 3 for colour in PALETTE)


def test_on_a_logarithmic_axis_mean_and_band_are_of_logarithms():
    with style("test"):
        _, axes = panels(2)
        lines(axes[0], [1, 1, 2], [1.0, 100.0, 3.0], geometric=True)
        lines(axes[1], [1, 1, 2], [0.0, 4.0, 3.0], geometric=True)  # of zero there is no logarithm
    wide = math.exp(math.log(100) / math.sqrt(2))  # the deviation of two logarithms
    assert list(axes[0].lines[0].get_ydata()) == pytest.approx([10.0, 3.0])
    places = axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert min(places) == pytest.approx(10 / wide) and max(places) == pytest.approx(10 * wide)
    assert list(axes[1].lines[0].get_ydata()) == pytest.approx([2.0, 3.0])


def test_where_no_curve_reaches_the_sharpness_there_are_no_axes():
    """What is too small is said only where all of it is; where some reach it the title has how many."""
    low, far, met = ([{"kl": k, "sharpness": s, "stderr": 0.0} for k, s in c] for c in CURVES)
    cases = [
        ((low, low), "not reached: the noise is too small", False),
        ((low, far), "not reached", False),
        ((low, met), "(1 of 2 reach it)", True),
        ((met, met), "KL at expected sharpness 0.05", True),
    ]
    for curves, said, axis in cases:
        with style("test"):
            _, (axes,) = panels(1)
            draw_at_sharpness(
                axes, {"": [{"size": 10 + i, "curve": c} for i, c in enumerate(curves)]}, "size", "samples"
            )
        assert axes.get_title().splitlines()[-1] == said and axes.axison is axis


CURVES = (((10.0, 0.001), (1.0, 0.01)), ((10.0, 0.1), (1.0, 0.5)), ((10.0, 0.01), (1.0, 0.5)))


def _figure_of(name, scale):
    (document,) = [d for d in documents(RESULTS, name) if d["scale"] == scale]
    with style(name):
        return STUDIES[name].figure([run["result"] for run in document["runs"] if "result" in run])


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_learned_weights_have_the_same_colour_at_each_scale(scale):
    figure_of_scale = _figure_of("neyshabur-conditions", scale)
    handles, names = figure_of_scale.axes[0].get_legend_handles_labels()
    colours = [getattr(h, "patches", [h])[0].get_facecolor()[:3] for h in handles]
    expected = [tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in PALETTE[:2]]
    assert names == ["learned", "random"] and colours == [pytest.approx(c) for c in expected]


def test_networks_trained_to_one_loss_are_a_dashed_line():
    axes = _figure_of("jia-batch", "cpu").axes[0]
    assert [(line.get_label(), line.get_linestyle()) for line in axes.lines] == [
        ("equal epochs", "-"),
        ("to equal loss", "--"),
    ]


def test_the_left_panel_of_fig_3_has_both_errors():
    axes = _figure_of("neyshabur-confusion", "cpu").axes[0]
    assert [line.get_label() for line in axes.lines] == ["test", "training"]


def test_the_toys_figure_says_whose_surfaces_it_has():
    """The first like the papers' picture where there is one, else the first of all."""
    (document,) = [d for d in documents(RESULTS, "wang-toy") if d["scale"] == "half"]
    results = [run["result"] for run in document["runs"] if run["result"]["seed"] in (*range(5), 379)]
    unlike = [r for r in results if not all(like(r))]
    with style("wang-toy"):
        with_one, without = (STUDIES["wang-toy"].figure(own).get_suptitle() for own in (results, unlike))
    said = r"data set [1-9]\d*, the first like the papers' picture \(\d of 6 data sets\)"
    assert len(unlike) < len(results) and re.fullmatch(said, with_one)
    assert without == f"data set 0 of {len(unlike)}, none of them like the papers' picture"
