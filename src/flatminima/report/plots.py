"""The report's figures, each an inline SVG with labelled axes."""

from __future__ import annotations

import math
from typing import Any

from flatminima.report.theme import MARKERS, PALETTE, style, svg

_SCATTERS = 6


def ranking(correlations: dict[str, Any]) -> str:
    """Kendall's tau of each measure with its interval, best on top."""
    from matplotlib.figure import Figure

    rows = [(name, c) for name, c in correlations.items() if c["tau"] is not None]
    with style("ranking"):
        figure = Figure(figsize=(6.4, 0.34 * len(rows) + 0.9))
        axes = figure.add_subplot()
        for i, (_, c) in enumerate(rows):
            sure = c["low"] > 0 or c["high"] < 0
            colour = PALETTE[0] if c["low"] > 0 else PALETTE[1] if c["high"] < 0 else "#8a8a8a"
            axes.plot([c["low"], c["high"]], [i, i], color=colour, lw=2)
            axes.plot(c["tau"], i, "o" if sure else "D", color=colour, ms=6)
        axes.axvline(0, color="#8a8a8a", lw=0.8)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.invert_yaxis()
        axes.set_xlim(-1.05, 1.05)
        axes.set_xlabel("Kendall's tau with the generalization gap, 95% bootstrap interval")
        axes.grid(axis="x")
        return svg(figure, "Kendall's tau of each measure with the generalization gap, with intervals")


def scatter(networks: list[dict[str, Any]], correlations: dict[str, Any]) -> str:
    """The best measures against the gap, a point a network, with error bars."""
    from matplotlib.figure import Figure

    names = [name for name, c in correlations.items() if c["tau"] is not None][:_SCATTERS]
    noises = sorted({n["recipe"]["label_noise"] for n in networks})
    with style("scatter"):
        rows = math.ceil(len(names) / 3)
        figure = Figure(figsize=(9.0, 2.6 * rows), layout="constrained")
        grid = figure.subplots(rows, 3, squeeze=False)
        for axes, name in zip(grid.flat, names, strict=False):
            for noise, colour, marker in zip(noises, PALETTE, MARKERS, strict=False):
                points = [_point(n, name) for n in networks if n["recipe"]["label_noise"] == noise]
                found = [p for p in points if p is not None]
                if found:
                    x, error, y = zip(*found, strict=True)
                    axes.errorbar(
                        x, y, xerr=error, fmt=marker, color=colour, ms=5, lw=1, label=f"{noise:.0%} label noise"
                    )
            axes.set_xlabel(name)
            axes.grid()
            values = [p[0] for n in networks if (p := _point(n, name)) is not None]
            if min(values) > 0 and max(values) > 50 * min(values):
                axes.set_xscale("log")
        for axes in grid[:, 0]:
            axes.set_ylabel("generalization gap (%)")
        for axes in list(grid.flat)[len(names) :]:
            axes.set_visible(False)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        return svg(figure, "Measures against the generalization gap, one point a network, with standard errors")


def _point(network: dict[str, Any], name: str) -> tuple[float, float, float] | None:
    e = network["measures"]["measures"][name]
    return None if e["value"] is None else (e["value"], e["stderr"] or 0.0, 100 * network["gap"])


def certificate(c: dict[str, Any]) -> str:
    """What the certificate says beside what was observed."""
    from matplotlib.figure import Figure

    rows = [
        ("certificate, stochastic network", c["risk_bound"], PALETTE[0]),
        ("hold-out bound, prior network", c["holdout_bound"], PALETTE[4]),
        ("Monte-Carlo upper, bound's samples", c["monte_carlo_upper"], "#8a8a8a"),
        ("error on the bound's samples", c["empirical_risk"], "#8a8a8a"),
        ("test error, stochastic network", c["gibbs_test_error"], PALETTE[2]),
    ]
    with style("certificate"):
        figure = Figure(figsize=(6.4, 2.4))
        axes = figure.add_subplot()
        shown = [row for row in rows if row[1] is not None]
        axes.barh([r[0] for r in shown], [100 * r[1] for r in shown], color=[r[2] for r in shown], height=0.6)
        for i, row in enumerate(shown):
            axes.text(100 * row[1], i, f" {100 * row[1]:.1f}%", va="center")
        axes.invert_yaxis()
        axes.set_xlabel("0-1 error (%)")
        axes.set_xlim(0, 115 * max(r[1] for r in shown))
        axes.grid(axis="x")
        return svg(figure, "The certificate, the hold-out bound and the observed errors")


def layers(values: dict[str, float], label: str, name: str) -> str:
    """One bar a layer of a measure that adds over layers."""
    from matplotlib.figure import Figure

    with style(f"layers-{name}"):
        figure = Figure(figsize=(6.4, 0.28 * len(values) + 0.8))
        axes = figure.add_subplot()
        axes.barh(list(values), list(values.values()), color=PALETTE[0], height=0.6)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.grid(axis="x")
        return svg(figure, f"{label}, one bar a layer")
