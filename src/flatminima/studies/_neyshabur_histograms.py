"""The drawing of N17's Fig. 5 to 8: each ratio of C1 and C3, activations that flip, and outputs; and the drawing.

Histograms have fixed edges, so that those of several samples and seeds add; a value beyond them is in the last bin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flatminima.report.theme import PALETTE
from flatminima.studies.plot import label, lines, panels
from flatminima.studies.study import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EDGES = [k / 10 for k in range(41)]  # of 1 / mu and of the norm of a unit's weights over the layer's average
DELTAS = tuple(float(f"{10 ** (k / 4 - 2):.3g}") for k in range(7))  # 0.01 to 0.316: what moves a pixel in [0, 1]
_OUTPUTS = 1_000  # values, at most
GROUPS = ("learned", "random")  # weights; the first colour is the first's in every figure


def histograms(weights: Sequence[Tensor], x: Tensor) -> Result:
    """The ratios at samples of a chain of linear layers with ReLU between them.

    Args:
        weights: (h_i, h_(i-1)) of each layer. x: samples (n, h_0), entries in [0, 1]; for C1 and C3 taken at length 1.

    Returns:
        "inner" and "ends": counts of 1 / mu over a < c < b - 1, and over c = a or c = b - 1 (Fig. 6); "units": counts
        of a unit's weights against its layer's active average (Fig. 8); "flips": by layer and sample the mean share of
        inputs within each of `DELTAS` of zero, and the largest (Fig. 7); "outputs" of the samples as they are.
    """
    inner, ends, units = ([0] * (len(EDGES) - 1) for _ in range(3))
    shares: list[list[float]] = []
    outputs: list[float] = []
    for sample in x.float():
        maps, signal = [(sample / sample.norm()).unsqueeze(1)], sample
        for i, w in enumerate(weights):
            z = w.float() @ signal
            last = i + 1 == len(weights)
            masked = w.float() if last else w.float() * (z > 0).unsqueeze(1)
            total = float(masked.norm())
            _count(units, (w.float().norm(dim=1) * math.sqrt(len(w)) / total).tolist() if total else [math.inf])
            if not last:
                shares.append([float((z.abs() <= delta).double().mean()) for delta in DELTAS])
            maps.append(masked)
            signal = z if last else z.clamp_min(0)
        outputs += signal.tolist()
        for where, ratio in _ratios(maps):
            _count(inner if where else ends, [ratio])
    flips = np.array(shares) if shares else np.zeros((1, len(DELTAS)))
    return {
        "inner": inner,
        "ends": ends,
        "units": units,
        "flips": {"mean": _short(flips.mean(0)), "most": _short(flips.max(0))},
        "outputs": _short(np.array(outputs[:_OUTPUTS])),
    }


def _ratios(maps: Sequence[Tensor]) -> list[tuple[bool, float]]:
    """Every 1 / mu of C1, with whether a < c < b - 1."""
    norms = {}
    for a, product in enumerate(maps):
        for b in range(a, len(maps)):
            product = maps[b] @ product if b > a else product
            norms[a, b] = float(product.norm())
    found = []
    for (a, b), whole in norms.items():
        for c in range(a, b):
            parts = norms[c + 1, b] * norms[a, c] / math.sqrt(len(maps[c]))
            found.append((a < c < b - 1, parts / whole if whole else math.inf))
    return found


def _count(counts: list[int], values: Sequence[float]) -> None:
    width, last = EDGES[1] - EDGES[0], len(counts) - 1
    for value in values:
        counts[min(int(value / width), last) if math.isfinite(value) else last] += 1


def _short(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{v:.4g}") for v in values]


def draw(results: Sequence[Result]) -> Figure:
    """Fig. 5 to 8, learned and random weights in one panel each: C1 and its two cases, C3, flips, outputs."""
    figure, axes = panels(3, 3)
    of = {name: [r["histograms"] for r in results if r["learned"] is (name == "learned")] for name in GROUPS}
    _bars(axes[0], {name: _sum(own, "inner", "ends") for name, own in of.items()}, "C1: 1 / mu, all a <= c < b")
    _bars(axes[1], {name: _sum(own, "inner") for name, own in of.items()}, "C1: 1 / mu, a < c < b - 1")
    _bars(axes[2], {name: _sum(own, "ends") for name, own in of.items()}, "C1: 1 / mu, c = a or c = b - 1")
    _bars(axes[3], {name: _sum(own, "units") for name, own in of.items()}, "C3: weights of a unit over the average")
    for panel, name, title in ((axes[4], "mean", "C2: share that flips, mean"), (axes[5], "most", "C2: largest share")):
        for index, (said, own) in enumerate(of.items()):
            x = list(DELTAS) * len(own)
            lines(panel, x, [share for h in own for share in h["flips"][name]], label=said, index=index)
        label(panel, "size of the perturbation", "share of a layer's units", title, log_x=True, legend="weights")
    for panel, (index, (said, own)) in zip(axes[6:], enumerate(of.items()), strict=False):
        values = [v for h in own for v in h["outputs"]]
        if values:
            panel.hist(values, bins=30, color=PALETTE[index], alpha=0.6)
        label(panel, "output (logit)", "outputs", f"outputs, {said} weights")
    axes[-1].set_axis_off()
    return figure


def _sum(own: Sequence[dict[str, Any]], *names: str) -> NDArray[np.float64]:
    """Counts over runs, as a share of all."""
    total = np.sum([np.array(h[name], float) for h in own for name in names] or [np.zeros(len(EDGES) - 1)], axis=0)
    return np.asarray(total / max(total.sum(), 1.0))


def _bars(axes: Axes, groups: dict[str, NDArray[np.float64]], title: str) -> None:
    for index, (said, shares) in enumerate(groups.items()):
        axes.stairs(shares, EDGES, fill=True, color=PALETTE[index], alpha=0.5, label=said)
    filled = [i for shares in groups.values() for i in np.flatnonzero(shares)]
    if filled:
        axes.set_xlim(EDGES[min(filled)], EDGES[max(filled) + 1])
    label(axes, "ratio", "share of ratios", title, legend="weights")
