"""W1 Fig. 1 and W2 Fig. 1 and 2 drawn: the toy's loss surface coloured by pacGen, samples, labels, the bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flatminima.report.axes import number
from flatminima.report.theme import GREY, PALETTE
from flatminima.studies._toy import along, samples
from flatminima.studies._toy_minima import ETAS, SAMPLES, Array, logits, measured, minima, objective, surface
from flatminima.studies.plot import label, lines
from flatminima.studies.study import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLACES = ("flat", "sharp")
LIKE = (  # all that W1's appendix A and the caption of its Fig. 1 say of their picture, in that order
    "there are three local minima or more",
    "a sharp one and a flat one: the Hessian's trace differs by a factor of 3 or more",
    "the sharp one is the global one",
    "its pacGen is larger: by a tenth of a nat or more",
    "it errs more on other samples of the mixture: by a point or more",
    "the flat one fits slightly worse: by at most 0.1 nats",
    "its bound at eta 39 is similar: within 0.05 nats",
    "the sharp one errs on fewer of the training labels",
    "and its predicted labels are more complex: their boundary is longer by a tenth of a side or more",
)
# the margins are those with which the registry tries the same sentences
MANY, RATIO, SLIGHTLY, SIMILAR = 3, 3.0, 0.1, 0.05  # local minima; traces; nats; nats
HIGHER, WORSE, LONGER = 0.1, 0.01, 0.1  # of pacGen, nats; of the test error; of the boundary, sides
_SIZE = (10.8, 9.6)  # inches of the figure
_DRAWN = 61  # points a side of a surface, at most
_SHOWN = (0.02, 0.98)  # quantiles of pacGen between which colours are spread


def like(r: Result) -> list[bool]:
    """Check which of `LIKE` hold of a data set; of one without two minima the first alone can.

    Its local minima are the most that any choice of the fixed weights has; `alike` counts those of its own surface.
    """
    many = r.get("local_minima", 0) >= MANY
    if not r["found"]:
        return [many] + [False] * (len(LIKE) - 1)
    sharp, flat = r["sharp"], r["flat"]
    return [
        many,
        sharp["trace"] >= RATIO * flat["trace"],
        bool(r.get("sharp_is_global")),
        sharp["pacgen"] - flat["pacgen"] >= HIGHER,
        sharp["test_error"] - flat["test_error"] >= WORSE,
        0 < flat["loss"] - sharp["loss"] <= SLIGHTLY,
        abs(flat["bound"] - sharp["bound"]) <= SIMILAR,
        sharp["train_error"] < flat["train_error"],
        sharp["boundary"] - flat["boundary"] >= LONGER,
    ]


def alike(results: Sequence[Result]) -> list[Result]:
    """The data sets, by seed, of which everything in `LIKE` holds: pictures like the papers'."""
    return [r for r in sorted(results, key=lambda r: int(r["seed"])) if all(like(r)) and _minima_drawn(r) >= MANY]


def _minima_drawn(r: Result) -> int:
    """The local minima of the surface that is drawn, with the fixed weights that the run chose."""
    return len(minima(*samples(r["seed"], SAMPLES), _fixed(r), _DRAWN))


def _fixed(r: Result) -> tuple[float, float]:
    return float(r["fixed"][0]), float(r["fixed"][1])


def draw(results: Sequence[Result]) -> Figure:
    """Fig. 1 a to d, the surface large; below, Fig. 2: the bound at four values of eta.

    The panels are of the first data set that is like the papers' picture, see `alike`; where there is none, of the
    first. The title tells which, and of how many.
    """
    from matplotlib.figure import Figure

    own = [r for r in results if r["found"]]
    shown, first = alike(own), next((r for r in own if "surfaces" in r), None)
    if shown:
        r = shown[0]
        said = f"data set {r['seed']}, the first like the papers' picture ({len(shown)} of {len(results):,} data sets)"
        return draw_one({**r, "surfaces": _surfaces(r)}, own, said)
    if first is not None:
        said = f"data set {first['seed']} of {len(results)}, none of them like the papers' picture"
        return draw_one(first, own, said)
    return Figure(figsize=_SIZE, layout="constrained")


def _surfaces(r: Result) -> Result:
    """The surfaces of a data set that keeps none."""
    at = surface(*samples(r["seed"], SAMPLES), _fixed(r), _DRAWN)
    bounds = {f"{eta:g}": bound for eta, bound in at.bounds.items()}
    return {"axis": at.axis, "loss": at.loss, "pacgen": at.pacgen, "bounds": bounds}


def draw_one(r: Result, others: Sequence[Result] = (), title: str = "") -> Figure:
    """The same of one data set, whose "surfaces" it has; its Fig. 3, and W2's Fig. 2 in numbers, of the others too."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = {name: np.array(r["surfaces"][name]) for name in ("axis", "loss", "pacgen")}
    cells = figure.add_gridspec(5, 4, height_ratios=(1, 1, 1, 0.1, 1))  # labels of 3-d axes are below their cells
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
        trained, tested, length = (r[place][name] for name in ("train_error", "test_error", "boundary"))
        said = f"({letter}) {place}: training error {trained:.2f},\ntest {tested:.2f}, boundary {length:.2f} sides"
        _draw_samples(panel, x, y, said)
    for column, eta in enumerate(ETAS[1:]):
        panel = figure.add_subplot(cells[2, column], projection="3d")
        _draw_surface(panel, grid, r, eta, f"bound, eta {number(eta)} (nats)")
    _draw_window(figure.add_subplot(cells[4, :2]), r)
    _draw_noise(figure.add_subplot(cells[4, 2:]), r, others)
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
    sheet = panel.plot_surface(
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
        rasterized=True,
    )
    sheet.set(cmap="viridis", norm=scale)
    floor = height.min() - 0.8 * np.ptp(height)
    panel.contourf(one, two, bound, zdir="z", offset=floor, levels=16, cmap="cividis", zorder=0).set_rasterized(True)
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
    centre = np.mean([r[place]["weights"] for place in PLACES], axis=0)
    panel.view_init(elev=28, azim=float(np.degrees(np.arctan2(centre[1], centre[0]))) + 35)
    panel.set(xlabel="w1", ylabel="w2", zlim=(floor, height.max()))
    panel.computed_zorder = False
    panel.set_title(title, fontsize=10)
    panel.tick_params(labelsize=8 if large else 7)
    panel.zaxis.set_major_formatter(lambda value, _: number(value) if value >= 0 else "")  # below zero is the floor
    panel.locator_params(nbins=5)


def _draw_window(panel: Any, r: Result) -> None:
    """W2's Fig. 3: the loss from the sharp minimum to the flat one, and its mean within the widest noise."""
    x, y = samples(r["seed"], SAMPLES)
    fixed = _fixed(r)
    ends = torch.tensor([r[place]["weights"] for place in ("sharp", "flat")], dtype=torch.float64)
    window = torch.from_numpy(measured(ends, x, y, fixed).sigmas[ETAS[-1]].mean(0))
    plain, noisy = along(objective(x, y, fixed), ends, window)
    way = [k / (len(plain) - 1) for k in range(len(plain))]
    lines(panel, way, plain.tolist(), label="loss")
    lines(panel, way, noisy.tolist(), label=f"mean over the window, eta {number(ETAS[-1])}", index=1)
    label(panel, "way from the sharp minimum to the flat one", "nats", "loss and its mean over a window")
    _key(panel)


def _draw_noise(panel: Any, r: Result, others: Sequence[Result]) -> None:
    """What the noise of each eta adds to the loss at the flat minimum beyond what it adds at the sharp one."""
    own = [other for other in others if other.get("found") and "noisy_losses" in other["flat"]]
    for index, (said, group) in enumerate(((f"{len(own):,} data sets, mean and deviation", own), ("this one", [r]))):
        points = [(k, value) for one in group for k, value in enumerate(_flat_minus_sharp(one))]
        lines(panel, [k for k, _ in points], [value for _, value in points], label=said, index=index)
    panel.axhline(0, color=GREY, lw=0.8, ls="--")
    label(panel, "eta", "nats", "mean loss under the noise of eq. 12, flat minus sharp")
    _key(panel)
    panel.set_xticks(range(len(ETAS) - 1), [number(eta) for eta in ETAS[1:]])


def _key(panel: Any) -> None:
    """The names of the lines in their colours, within the axes: a legend beside them would take the surfaces' place."""
    handles, names = panel.get_legend_handles_labels()
    panel.get_legend().remove()
    for place, (line, said) in enumerate(zip(handles, names, strict=True)):
        at = 0.03 + 0.09 * place
        panel.text(0.98, at, said, color=line.get_color(), fontsize=8, ha="right", transform=panel.transAxes)


def _flat_minus_sharp(r: Result) -> list[float]:
    pairs = zip(r["flat"].get("noisy_losses", ()), r["sharp"].get("noisy_losses", ()), strict=True)
    return [flat - sharp for flat, sharp in pairs]


def _draw_samples(panel: Any, x: Tensor, y: Tensor, title: str) -> None:
    for name, marker in ((0, "o"), (1, "s")):
        own = x[y == name]
        panel.scatter(own[:, 0], own[:, 1], color=PALETTE[name], marker=marker, s=12, edgecolors="k", linewidths=0.3)
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
