"""W1 Fig. 1, W2 Fig. 1 to 3: a network of two free weights, its loss surface coloured by pacGen, the bound below it.

Five layers share one 2 x 2 matrix: four with sigmoids, the last gives the logits; no biases. Two entries are fixed,
two free, so that Hessian, pacGen and bound are exact at every point of a grid. The papers give neither the mixture nor
the fixed entries: a data set is a seed, and the fixed entries are those of `FIXED` whose surface has a sharp and a flat
local minimum that differ most in curvature. The grid only says where to look: each minimum is followed down to where
the gradient vanishes, as curvature half a step beside it can be another by a factor of ten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import cross_entropy

from flatminima.bounds import uniform_perturbation, uniform_sigma
from flatminima.io import json_text, write_whole
from flatminima.report.theme import PALETTE
from flatminima.studies._toy import boundary, mean_under_noise, samples, smoothed
from flatminima.studies.study import Config, Result, Sources, Study, is_first
from flatminima.studies.verdict import Verdict, compare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

SAMPLES, LAYERS = 100, 5
ETAS = (39.0, 1000.0, 0.1, 0.01, 1e-5)  # Fig. 1, then Fig. 2
FIXED = [(b, c) for b in (-4.0, -2.0, 2.0, 4.0) for c in (-4.0, -2.0, 2.0, 4.0)]
GAMMA, EPSILON, DELTA = 0.1, 0.1, 0.05
_RANGE = 12.0  # of the free weights, both ways
_TEST = 10_000
_DIGITS = 5
_PLACES = ("flat", "sharp")
_FITTED = 0.95 * math.log(2)  # a network that ignores its input has ln 2
_COARSE = 25  # points a side of the grid in the search
_STATIONARY = 1e-6  # length of the gradient at a minimum
_APART = 1e-2  # distance of two minima
_SIZE = (10.8, 7.2)  # inches of the figure
_DRAWN = 61  # points a side of a surface, at most
_SHOWN = (0.02, 0.98)  # quantiles of pacGen between which colours are spread

# points a side of the grid, seeds, fixed entries to choose from
_SCALES = {"smoke": (25, 1, FIXED[-4:-2]), "cpu": (61, 10, FIXED), "paper": (121, 30, FIXED)}


@dataclass(frozen=True)
class Measured:
    """At k points of the free weights, float64 (k,): loss, trace of the Hessian, pacGen, the bound for each eta.

    `sigmas` (k, 2) are the half-widths of the noise that the bound for each eta is of.
    """

    loss: Array
    trace: Array
    pacgen: Array
    bounds: dict[float, Array]
    sigmas: dict[float, Array]


@dataclass(frozen=True)
class Surface(Measured):
    """The same on a grid: each (side, side), the points of a side in `axis`."""

    axis: Array

    def lows(self) -> list[tuple[float, float]]:
        """Weights at points of the grid's inside that are below their eight neighbours: where to look for minima."""
        inner = self.loss[1:-1, 1:-1]
        n = len(self.axis)
        around = [
            self.loss[1 + i : n - 1 + i, 1 + j : n - 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)
        ]
        low = np.all([inner < other for other in around], axis=0)
        return [(float(self.axis[i + 1]), float(self.axis[j + 1])) for i, j in np.argwhere(low)]


def logits(free: Tensor, fixed: tuple[float, float], x: Tensor) -> Tensor:
    """The network: free weights (2,), samples (n, 2), to logits (n, 2)."""
    other = free.new_tensor(fixed)
    matrix = torch.stack([free[0], other[0], other[1], free[1]]).view(2, 2)
    for _ in range(LAYERS - 1):
        x = torch.sigmoid(x @ matrix.T)
    return x @ matrix.T


def surface(x: Tensor, y: Tensor, fixed: tuple[float, float], side: int) -> Surface:
    """`measured` on a grid of side x side points."""
    axis = torch.linspace(-_RANGE, _RANGE, side, dtype=torch.float64)
    at = measured(torch.cartesian_prod(axis, axis), x, y, fixed)
    shape = (side, side)
    bounds = {eta: bound.reshape(shape) for eta, bound in at.bounds.items()}
    loss, trace, psi = (values.reshape(shape) for values in (at.loss, at.trace, at.pacgen))
    return Surface(loss, trace, psi, bounds, at.sigmas, axis.numpy())


def measured(points: Tensor, x: Tensor, y: Tensor, fixed: tuple[float, float]) -> Measured:
    """Loss, exact Hessian diagonal, pacGen and bounds at points (k, 2); rho from the corners of each neighbourhood."""
    loss = _objective(x, y, fixed)
    curved: Callable[[Tensor], Tensor] = torch.vmap(torch.func.jacrev(torch.func.jacrev(loss)))
    losses, diagonal = torch.vmap(loss)(points), curved(points).diagonal(dim1=1, dim2=2)  # (k,), (k, 2)
    kappa = GAMMA * points.abs() + EPSILON
    rho = torch.zeros(len(points), dtype=torch.float64)
    for signs in ((1.0, 1.0), (1.0, -1.0)):
        step = kappa * torch.tensor(signs, dtype=torch.float64)
        moved = curved(points + step).diagonal(dim1=1, dim2=2)
        rho = torch.maximum(rho, (moved - diagonal).abs().amax(1) / step.norm(dim=1))
    inside = (diagonal + rho[:, None] * 2**0.5 * kappa).clamp_min(0).sqrt()
    psi = ((points.abs() + kappa) * torch.maximum(inside, 1 / kappa)).log().sum(1)
    tau = (points.abs() + kappa).numpy()
    bounds, sigmas = {}, {}
    for eta in ETAS:
        sigmas[eta] = np.asarray(uniform_sigma(diagonal.numpy(), rho.numpy(), kappa.numpy(), eta))
        rise = uniform_perturbation(
            0.0, diagonal.numpy(), rho.numpy(), kappa.numpy(), tau, SAMPLES, DELTA, eta, distance=points.numpy()
        )
        bounds[eta] = losses.numpy() + np.asarray(rise)
    return Measured(losses.numpy(), diagonal.sum(1).numpy(), psi.numpy(), bounds, sigmas)


def minima(at: Surface, x: Tensor, y: Tensor, fixed: tuple[float, float]) -> Tensor:
    """Local minima within the grid's range, (k, 2): its low points followed down to where the gradient vanishes.

    Kept are those with a positive definite Hessian that fit better than a network that ignores its input.
    """
    loss = _objective(x, y, fixed)
    gradient, hessian = torch.func.grad_and_value(loss), torch.func.jacrev(torch.func.jacrev(loss))

    def value(free: Array) -> tuple[float, Array]:
        slope, height = gradient(torch.from_numpy(free))
        return float(height), slope.numpy()

    found: list[Tensor] = []
    for low in at.lows():
        end = minimize(
            value,
            low,
            jac=True,
            hess=lambda free: hessian(torch.from_numpy(free)).numpy(),
            method="trust-exact",
            options={"gtol": _STATIONARY, "initial_trust_radius": 0.1, "max_trust_radius": 0.5},
        )
        place = torch.from_numpy(end.x)
        proper = float(np.linalg.norm(end.jac)) < _STATIONARY and float(torch.linalg.eigvalsh(hessian(place))[0]) > 0
        inside = float(place.abs().max()) <= _RANGE and end.fun < _FITTED
        if proper and inside and all(float((place - other).norm()) > _APART for other in found):
            found.append(place)
    return torch.stack(found) if found else torch.empty(0, 2, dtype=torch.float64)


def extremes(at: Surface, x: Tensor, y: Tensor, fixed: tuple[float, float]) -> tuple[Tensor, Measured] | None:
    """The sharpest and the flattest minimum, (2, 2), with what is measured there; None of fewer than two minima."""
    found = minima(at, x, y, fixed)
    if len(found) < 2:
        return None
    trace = measured(found, x, y, fixed).trace
    pair = found[[int(trace.argmax()), int(trace.argmin())]]
    return pair, measured(pair, x, y, fixed)


def _objective(x: Tensor, y: Tensor, fixed: tuple[float, float]) -> Callable[[Tensor], Tensor]:
    return lambda free: cross_entropy(logits(free, fixed, x), y)


def search(x: Tensor, y: Tensor, choices: Sequence[tuple[float, float]], side: int) -> tuple[float, float] | None:
    """Of the fixed entries those whose two minima differ most in the Hessian's trace; None where none has two."""
    best, found = 1.0, None
    for fixed in choices:
        pair = extremes(surface(x, y, fixed, side), x, y, fixed)
        if pair is not None and pair[1].trace[0] > best * pair[1].trace[1]:
            best, found = float(pair[1].trace[0] / pair[1].trace[1]), fixed
    return found


def _configurations(scale: str) -> list[Config]:
    side, seeds, choices = _SCALES[scale]
    return [{"seed": seed, "side": side, "fixed": [list(c) for c in choices]} for seed in range(seeds)]


def run(config: Config, sources: Sources) -> Result:
    """Search one data set for a sharp and a flat minimum, and compare them."""
    x, y = samples(config["seed"], SAMPLES)
    fixed = search(x, y, [(b, c) for b, c in config["fixed"]], min(config["side"], _COARSE))
    at = None if fixed is None else surface(x, y, fixed, config["side"])
    pair = None if fixed is None or at is None else extremes(at, x, y, fixed)
    if fixed is None or at is None or pair is None:
        return {"seed": config["seed"], "found": False}
    test = samples(config["seed"], _TEST, threshold=float(x.sum(1).median()))
    result: Result = {
        "seed": config["seed"],
        "found": True,
        "fixed": list(fixed),
        "minima": len(minima(at, x, y, fixed)),
    }
    result["sharp"], result["flat"] = (_minimum(*pair, index, fixed, (x, y), test) for index in (0, 1))
    widest = torch.from_numpy(pair[1].sigmas[ETAS[-1]].mean(0))
    result["smoothed"] = smoothed(_objective(x, y, fixed), pair[0], widest)
    if is_first(config["seed"]):
        result["surfaces"] = _surfaces(at)
    return result


def _surfaces(at: Surface) -> Result:
    return {
        "axis": at.axis.tolist(),
        "loss": _rounded(at.loss),
        "pacgen": _rounded(at.pacgen),
        "bounds": {f"{eta:g}": _rounded(bound) for eta, bound in at.bounds.items()},
    }


def _minimum(
    places: Tensor,
    at: Measured,
    index: int,
    fixed: tuple[float, float],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
) -> Result:
    """One of the two minima; "noisy_losses" are at Fig. 2's eta, from the least noise to the most."""
    place, loss = places[index : index + 1], _objective(*train, fixed)

    def predict(inputs: Tensor) -> Tensor:
        return logits(place[0], fixed, inputs).argmax(1)

    output = logits(place[0], fixed, test[0])
    noisy = [float(mean_under_noise(loss, place, torch.from_numpy(at.sigmas[eta][index]))) for eta in ETAS[1:]]
    return {
        "weights": places[index].tolist(),
        "loss": float(at.loss[index]),
        "trace": float(at.trace[index]),
        "pacgen": float(at.pacgen[index]),
        "bound": float(at.bounds[ETAS[0]][index]),
        "test_loss": float(cross_entropy(output, test[1])),
        "test_error": float((output.argmax(1) != test[1]).double().mean()),
        "train_error": float((predict(train[0]) != train[1]).double().mean()),
        "noisy_losses": noisy,
        "boundary": boundary(predict, train[0]),
    }


def _rounded(values: Array) -> list[list[float]]:
    return [[float(f"{v:.{_DIGITS}g}") for v in row] for row in values]


def _claims(results: Sequence[Result]) -> list[Verdict]:
    own = [r for r in results if r["found"]]
    flat, sharp = ([r[place] | {"gap": r[place]["test_loss"] - r[place]["loss"]} for r in own] for place in _PLACES)
    claim = "the flat minimum has the smaller generalization gap of the loss"
    return [compare(claim, [m["gap"] for m in flat], [m["gap"] for m in sharp], control=True)]


def _figure(results: Sequence[Result]) -> Figure:
    """Fig. 1 a to d, the surface large; below, Fig. 2: the bound at four values of eta."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    shown = [r for r in results if "surfaces" in r]
    if not shown:
        return figure
    r = shown[0]
    grid = {name: np.array(r["surfaces"][name]) for name in ("axis", "loss", "pacgen")}
    cells = figure.add_gridspec(3, 4)
    main = figure.add_subplot(cells[:2, :2], projection="3d")
    _draw_surface(main, grid, r, ETAS[0], "(a) loss (nats) coloured by pacGen; on the floor the bound, eta 39")
    colours = figure.colorbar(main.collections[0], ax=main, shrink=0.5, pad=0.02, extend="both")
    colours.set_label("pacGen (nats)")
    main.legend(loc="upper left", fontsize=8, frameon=False)
    x, y = samples(r["seed"], SAMPLES)
    panel = figure.add_subplot(cells[0, 2:])
    _draw_samples(panel, x, y, f"(b) {SAMPLES} samples and their labels")
    for column, (place, letter) in enumerate((("sharp", "c"), ("flat", "d")), 2):
        panel = figure.add_subplot(cells[1, column])
        _draw_labels(panel, r, place, x)
        _draw_samples(panel, x, y, f"({letter}) {place}, test error {r[place]['test_error']:.2f}")
    for column, eta in enumerate(ETAS[1:]):
        panel = figure.add_subplot(cells[2, column], projection="3d")
        _draw_surface(panel, grid, r, eta, f"bound, eta {eta:g} (nats)")
    return figure


def _draw_surface(panel: Any, grid: dict[str, Array], r: Result, eta: float, title: str) -> None:
    """Loss coloured by pacGen over the bound's contours, seen from the minima's side; for Fig. 2 the bound itself."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    large, stride = eta == ETAS[0], -(-len(grid["axis"]) // _DRAWN)
    one, two = np.meshgrid(grid["axis"], grid["axis"], indexing="ij")
    bound = np.array(r["surfaces"]["bounds"][f"{eta:g}"])
    height = grid["loss"] if large else bound
    scale = Normalize(*np.quantile(grid["pacgen"], _SHOWN))  # its tails would leave one colour for the rest
    surface = panel.plot_surface(
        one,
        two,
        height,
        facecolors=colormaps["viridis"](scale(grid["pacgen"])),
        rstride=stride,
        cstride=stride,
        linewidth=0,
        antialiased=False,
        shade=True,
        zorder=1,
    )
    surface.set(cmap="viridis", norm=scale)
    floor = height.min() - 0.8 * np.ptp(height)
    panel.contourf(one, two, bound, zdir="z", offset=floor, levels=16, cmap="cividis", zorder=0)
    for index, (place, marker) in enumerate((("sharp", "^"), ("flat", "o"))):
        w = r[place]["weights"]
        at = tuple(int(np.argmin(np.abs(grid["axis"] - v))) for v in w)
        said = f"{place} minimum: trace {r[place]['trace']:.2f}, pacGen {r[place]['pacgen']:.2f} nats"
        panel.plot(
            [w[0]] * 2,
            [w[1]] * 2,
            [floor, height[at]],
            color=PALETTE[(1, 3)[index]],
            marker=marker,
            ms=7 if large else 4,
            lw=1.2,
            label=said,
            zorder=5,
        )
    centre = np.mean([r[place]["weights"] for place in _PLACES], axis=0)
    panel.view_init(elev=28, azim=float(np.degrees(np.arctan2(centre[1], centre[0]))) + 35)
    panel.set(xlabel="w1", ylabel="w2", zlim=(floor, height.max()))
    panel.computed_zorder = False
    panel.set_title(title, fontsize=10)
    panel.tick_params(labelsize=8 if large else 7)
    panel.zaxis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 0 else "")  # below zero is the floor
    panel.locator_params(nbins=5)


def _draw_samples(panel: Any, x: Tensor, y: Tensor, title: str) -> None:
    for label, marker in ((0, "o"), (1, "s")):
        own = x[y == label]
        panel.scatter(own[:, 0], own[:, 1], color=PALETTE[label], marker=marker, s=12, edgecolors="k", linewidths=0.3)
    panel.set(xlabel="x1", ylabel="x2")
    panel.set_title(title, fontsize=10)


def _draw_labels(panel: Any, r: Result, place: str, x: Tensor) -> None:
    """The label that the network of a minimum predicts, over the plane."""
    low, high = x.min(0).values - 0.5, x.max(0).values + 0.5
    one, two = (torch.linspace(float(low[i]), float(high[i]), 80, dtype=torch.float64) for i in (0, 1))
    inputs = torch.cartesian_prod(one, two)
    free = torch.tensor(r[place]["weights"], dtype=torch.float64)
    output = logits(free, tuple(r["fixed"]), inputs).argmax(1).view(80, 80)
    panel.contourf(one, two, output.T, levels=[-0.5, 0.5, 1.5], colors=PALETTE[:2], alpha=0.3)


def page(results: Sequence[Result], folder: Path) -> None:
    """surface.html: the surfaces to turn and zoom, in one file that asks the network for nothing."""
    shown = [r for r in results if "surfaces" in r]
    if shown:
        r = shown[0]
        data = r["surfaces"] | {name: r[name] for name in ("sharp", "flat")}
        template = (Path(__file__).parent / "surface.html").read_text(encoding="utf-8")
        write_whole(folder / "surface.html", template.replace("/*DATA*/null", json_text(data, None)))


STUDY = Study(
    "wang-toy",
    "Wang et al. 2018, Fig. 1; 2020 (AISTATS), Fig. 1 to 3",
    "Loss surface of two weights, coloured by pacGen, with the bound",
    (),
    _configurations,
    run,
    _claims,
    _figure,
    {
        "smoke": "a grid of 25 x 25, one data set",
        "cpu": "a grid of 61 x 61, ten data sets (the paper: one); mixture and fixed weights are ours",
        "paper": "a grid of 121 x 121, 30 data sets (the paper: one); mixture and fixed weights are ours",
    },
    page,
)
