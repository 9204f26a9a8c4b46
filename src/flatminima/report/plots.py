"""The report's figures, each an inline SVG with labelled axes, narrow enough for a phone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flatminima.catalog import MEASURES
from flatminima.display import ceiled_percent
from flatminima.escaping import shown
from flatminima.report.axes import legend_below, linear, logarithmic, plain_ticks, spans_decades
from flatminima.report.theme import GREY, MARKERS, PALETTE, WIDTH, style, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCATTERS = 6
BARS = 30  # layers of one figure; the table beside it has all
_LABEL = 34  # characters of a layer's name beside its bar


def labelled_unit(name: str) -> str:
    """A measure's name with its unit, where it has one."""
    row = MEASURES.get(name)
    return name if row is None else row.label


def defined(correlations: dict[str, Any]) -> list[str]:
    """Measures with a correlation, best first."""
    return [name for name, c in correlations.items() if c["tau"] is not None]


def ranking(correlations: dict[str, Any]) -> str:
    """Kendall's tau of each measure with its interval, best on top."""
    from matplotlib.figure import Figure

    names = defined(correlations)
    with style("ranking"):
        figure = Figure(figsize=(WIDTH, 0.3 * len(names) + 0.9), layout="constrained")
        axes = figure.add_subplot()
        titles = {}
        for i, name in enumerate(names):
            c = correlations[name]
            sure = c["low"] > 0 or c["high"] < 0
            colour = PALETTE[0] if c["low"] > 0 else PALETTE[1] if c["high"] < 0 else GREY
            axes.plot([c["low"], c["high"]], [i, i], color=colour, lw=2)
            axes.plot(c["tau"], i, "o" if sure else "D", color=colour, ms=6, gid=f"tau{i}")
            titles[f"tau{i}"] = f"{name}: {c['tau']:+.2f} ({c['low']:+.2f} to {c['high']:+.2f})"
        axes.axvline(0, color=GREY, lw=0.8)
        axes.set_yticks(range(len(names)), [shown(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(-1.05, 1.05)
        linear(axes.xaxis)
        axes.set_xlabel("Kendall's tau with the gap, 95% interval")
        axes.grid(axis="x")
        return svg(figure, "Kendall's tau of each measure with the generalization gap, with intervals", titles)


def scatter(networks: list[dict[str, Any]], name: str, groups: Iterable[float]) -> str:
    """One measure against the gap, a point a network with one standard error, a colour and marker a noise level."""
    from matplotlib.figure import Figure

    noises = list(groups)
    with style(f"scatter-{name}"):
        figure = Figure(figsize=(3.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        titles, values = {}, []
        for i, network in enumerate(networks):
            e, gap = network["measures"]["measures"][name], 100 * network["gap"]
            if e["value"] is None:
                continue
            k = noises.index(network["recipe"]["label_noise"]) % len(PALETTE)
            error = e["stderr"] or 0.0
            points = axes.errorbar(e["value"], gap, xerr=error, fmt=MARKERS[k], color=PALETTE[k], ms=6, lw=1)
            points.lines[0].set_gid(f"point{i}")
            titles[f"point{i}"] = f"{network['name']}: {name} {e['value']:.4g} +- {error:.2g}, gap {gap:.1f}%"
            values.append(e["value"])
        higher = name in MEASURES and MEASURES[name].direction == "higher"
        axes.set_xlabel(labelled_unit(name) + (", higher is better" if higher else ""))
        axes.set_ylabel("generalization gap (%)")
        axes.grid()
        linear(axes.yaxis)
        _scale(axes, values)
        return svg(figure, f"{name} against the generalization gap, one point a network", titles)


def _scale(axes: Axes, values: list[float]) -> None:
    if spans_decades(values):
        axes.set_xscale("log")
        logarithmic(axes.xaxis, min(values), max(values))
    else:
        linear(axes.xaxis, 4)


def certificate(c: dict[str, Any]) -> str:
    """The certificate beside the observed errors; each number is rounded up."""
    from matplotlib.figure import Figure

    rows = [
        ("bound, stochastic network", c["risk_bound"], PALETTE[0]),
        ("hold-out bound, prior network", c["holdout_bound"], PALETTE[4]),
        ("Monte-Carlo upper bound", c["monte_carlo_upper"], GREY),
        ("error, bound's samples", c["empirical_risk"], GREY),
        ("error, test set", c["gibbs_test_error"], PALETTE[2]),
    ]
    with style("certificate"):
        figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
        axes = figure.add_subplot()
        shown = [row for row in rows if row[1] is not None]
        axes.barh([r[0] for r in shown], [100 * r[1] for r in shown], color=[r[2] for r in shown], height=0.6)
        for i, row in enumerate(shown):
            place: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(ceiled_percent(row[1]), (100 * row[1], i), **place)
        axes.invert_yaxis()
        axes.set_xlabel("0-1 error (%)")
        axes.set_xlim(0, 122 * max(r[1] for r in shown) or 1.0)
        linear(axes.xaxis)
        axes.grid(axis="x")
        return svg(figure, "The certificate, the hold-out bound and the observed errors")


def certificate_terms(
    bound: float, terms: dict[str, float], beside: dict[str, float], *, standing: str = "certificate", title: str = ""
) -> str:
    """A certificate as the sum of its terms, above other bounds and the observed errors; each is rounded up.

    Args:
        bound: what the certificate says, in [0, 1]. standing: what it is. title: its whole statement, for the figure.
        terms: name -> what it adds to the bound; they sum to it.
        beside: name -> another bound or an observed error.
    """
    from matplotlib.figure import Figure

    names = [f"{name} {ceiled_percent(value, 2)}" for name, value in [(standing, bound), *beside.items()]]
    with style("certificate-terms"):
        figure = Figure(figsize=(WIDTH, 0.36 * len(names) + 1.3), layout="constrained")
        axes = figure.add_subplot()
        start = 0.0
        for i, (name, value) in enumerate(terms.items()):
            share = 100 * value / bound if bound else 0.0
            colour = PALETTE[i % len(PALETTE)]
            axes.barh(0, 100 * value, left=start, color=colour, height=0.6, label=f"{name}, {share:.0f}% of it")
            start += 100 * value
        axes.barh(range(1, len(names)), [100 * value for value in beside.values()], color=GREY, height=0.6)
        axes.set_yticks(range(len(names)), [shown(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlabel("0-1 error (%)")
        linear(axes.xaxis)
        axes.grid(axis="x")
        legend_below(figure)
        return svg(figure, title or "The certificate as the sum of its terms, and the observed errors")


def shortened(name: str) -> str:
    """A name that leaves room for what is drawn; a table has it whole.

    Examples:
        >>> shortened("module." * 20 + "layer7.weight")
        'module.module.mo…ule.layer7.weight'
    """
    return name if len(name) <= _LABEL else f"{name[: _LABEL // 2 - 1]}…{name[-(_LABEL // 2) :]}"


def layers(values: dict[str, float], label: str, name: str, errors: dict[str, float | None] | None = None) -> str:
    """One bar a layer of a measure that adds over layers, with its standard error where known; of many, the largest."""
    from matplotlib.figure import Figure

    kept = sorted(sorted(values, key=lambda layer: -abs(values[layer] or 0.0))[:BARS], key=list(values).index)
    with style(f"layers-{name}"):
        figure = Figure(figsize=(WIDTH, 0.28 * len(kept) + 0.8), layout="constrained")
        axes = figure.add_subplot()
        spread = [(errors or {}).get(layer) or 0.0 for layer in kept]
        bars = [values[layer] or 0.0 for layer in kept]
        axes.barh(
            range(len(kept)), bars, xerr=spread if any(spread) else None, color=PALETTE[0], ecolor=GREY, height=0.6
        )
        axes.set_yticks(range(len(kept)), [shortened(shown(layer)) for layer in kept])
        axes.invert_yaxis()
        axes.set_xlabel(shown(label))
        linear(axes.xaxis)
        axes.grid(axis="x")
        return svg(figure, f"{label}, one bar a layer")


def density(density: dict[str, Any]) -> str:
    """Density of the Hessian's eigenvalues on a logarithmic axis, with one standard error."""
    import numpy as np
    from matplotlib.figure import Figure

    grid, values = np.asarray(density["grid"]), np.asarray(density["values"])
    floor = max(float(values.max()) * 1e-7, 1e-300)
    with style("spectrum"):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        axes = figure.add_subplot()
        if density.get("stderr"):
            error = np.asarray(density["stderr"])
            axes.fill_between(grid, (values - error).clip(floor), (values + error).clip(floor), color=PALETTE[4], lw=0)
        axes.plot(grid, values.clip(floor), color=PALETTE[0], lw=1.5)
        axes.set_yscale("log")
        axes.set_ylim(floor, float(values.max()) * 3)
        logarithmic(axes.yaxis, floor, float(values.max()) * 3)
        linear(axes.xaxis)
        axes.axvline(0, color=GREY, lw=0.8)
        axes.set_xlabel("eigenvalue of the Hessian")
        axes.set_ylabel("density (1 / eigenvalue)")
        axes.grid(axis="y")
        return svg(figure, "Density of the Hessian's eigenvalues on a logarithmic axis, with one standard error")


def bicriteria_curve(curve: list[dict[str, Any]], best: float) -> str:
    """Expected sharpness against divergence, a point a noise scale; a diamond is the best trade-off."""
    from matplotlib.figure import Figure

    with style("bicriteria"):
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        axes = figure.add_subplot()
        titles = {}
        axes.plot([p["kl"] for p in curve], [p["sharpness"] for p in curve], color=PALETTE[0], lw=1)
        for i, p in enumerate(curve):
            colour = PALETTE[1] if p["alpha"] == best else PALETTE[0]
            axes.errorbar(p["kl"], p["sharpness"], yerr=p["stderr"], color=colour, lw=1)
            axes.plot(p["kl"], p["sharpness"], "D" if p["alpha"] == best else "o", color=colour, ms=6, gid=f"alpha{i}")
            titles[f"alpha{i}"] = f"alpha {p['alpha']:.2g}: sharpness {p['sharpness']:.3g}, divergence {p['kl']:.3g}"
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.set_ylim(bottom=min(0.0, *(p["sharpness"] - (p["stderr"] or 0) for p in curve)))
        logarithmic(axes.xaxis, min(p["kl"] for p in curve), max(p["kl"] for p in curve))
        plain_ticks(axes.yaxis)
        axes.axhline(0, color=GREY, lw=0.8)
        axes.set_xlabel("divergence KL (nats)")
        axes.set_ylabel("expected sharpness (nats)")
        axes.grid()
        return svg(figure, "Expected sharpness against divergence over noise scales; a diamond is the best", titles)
