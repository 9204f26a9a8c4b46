"""W1 Fig. 1, W2 Fig. 1 to 3: a network of two free weights, its loss surface coloured by pacGen, the bound below it.

Five layers share one 2 x 2 matrix: four with sigmoids, the last gives the logits; no biases. Two entries are fixed,
two free, so that Hessian, pacGen and bound are exact at every point of a grid. The papers give neither the mixture nor
the fixed entries: a data set is a seed, and the fixed entries are those of `FIXED` whose surface has a sharp and a flat
local minimum that differ most in curvature. The grid only says where to look: each minimum is followed down to where
the gradient vanishes, as curvature half a step beside it can be another by a factor of ten.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flatminima.io import json_text, write_whole
from flatminima.report.theme import style
from flatminima.studies._toy import boundary, mean_under_noise, samples, smoothed
from flatminima.studies._toy_figure import LIKE, PLACES, alike, draw, draw_one, like
from flatminima.studies._toy_minima import (
    ETAS,
    FIXED,
    SAMPLES,
    Array,
    Measured,
    Surface,
    apart,
    logits,
    lows_under_noise,
    measured,
    minima,
    objective,
    search,
    surface,
)
from flatminima.studies.study import Config, Result, Sources, Study, is_first
from flatminima.studies.verdict import Verdict, compare

_TEST = 10_000
_DIGITS = 5
_DRAWN, _PIXELS = 61, 90  # points a side of the instance's surface; pixels an inch of its picture
_COARSE = 25  # points a side of the grid in the search
_ROUNDING = 1e-12  # of a loss, which is computed twice
_WIDE = 12.0  # half-width of noise as wide as the plane of the free weights: eq. 12 at eta 1e-5 without kappa is wider
_OURS = (
    " (the paper: one); ours are the mixture, the labels (x1 + x2 above its median: a straight true boundary), the "
    "fixed weights (of 16 pairs the one whose minima differ most in curvature), gamma = epsilon = 0.1 and delta = 0.05"
)

# points a side of the grid, seeds, fixed entries to choose from
_SCALES = {
    "smoke": (25, 1, FIXED[-4:-2]),
    "cpu": (61, 10, FIXED),
    "half": (61, 1_500, FIXED),
    "paper": (121, 30, FIXED),
}


def _configurations(scale: str) -> list[Config]:
    side, seeds, choices = _SCALES[scale]
    shared = {"side": side, "fixed": [list(c) for c in choices], "wide": _WIDE}
    return [{"seed": seed, **shared} for seed in range(seeds)]


def run(config: Config, sources: Sources) -> Result:
    """Search one data set for a sharp and a flat minimum, and compare them.

    "local_minima": the most that any choice of the fixed entries has. "sharp_is_global": no minimum of the network has
    a lower loss than the sharp one, as in the papers' picture. "..._above": of the flat minimum beyond the sharp one.
    "lows_under_noise": of the loss's mean over +-"wide" in both weights.
    """
    x, y = samples(config["seed"], SAMPLES)
    counts: list[int] = []
    choices = [(b, c) for b, c in config["fixed"]]
    fixed = search(x, y, choices, min(config["side"], _COARSE), lambda places: counts.append(len(places)))
    found = None if fixed is None else minima(x, y, fixed, config["side"])
    pair = None if fixed is None or found is None else apart(found, x, y, fixed)
    if fixed is None or found is None or pair is None:
        none = {"place": "none", "local_minima": max(counts), "trace_ratio": 1.0}
        return {"seed": config["seed"], "found": False, **none}
    test = samples(config["seed"], _TEST, threshold=float(x.sum(1).median()))
    sharp, flat = (_minimum(*pair, index, fixed, (x, y), test) for index in (0, 1))
    widest, loss = torch.from_numpy(pair[1].sigmas[ETAS[-1]].mean(0)), objective(x, y, fixed)
    result: Result = {
        "seed": config["seed"],
        "found": True,
        "fixed": list(fixed),
        "local_minima": max(*counts, len(found)),
        "trace_ratio": sharp["trace"] / flat["trace"],
        "sharp_is_global": bool(sharp["loss"] <= float(measured(found, x, y, fixed).loss.min()) + _ROUNDING),
        "loss_above": flat["loss"] - sharp["loss"],
        "bound_above": flat["bound"] - sharp["bound"],
        "sharp": sharp,
        "flat": flat,
        "smoothed": smoothed(loss, pair[0], widest),
        "lows_under_noise": lows_under_noise(x, y, fixed, config["side"], config["wide"]),
    }
    if is_first(config["seed"]):
        result["surfaces"] = _surfaces(surface(x, y, fixed, config["side"]))
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
    place, loss = places[index : index + 1], objective(*train, fixed)

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
    flat, sharp = ([r[place] | {"gap": r[place]["test_loss"] - r[place]["loss"]} for r in own] for place in PLACES)
    claim = "the flat minimum has the smaller generalization gap of the loss"
    return [compare(claim, [m["gap"] for m in flat], [m["gap"] for m in sharp], control=True)]


def pages(results: Sequence[Result], folder: Path) -> None:
    """surface.html, surfaces to turn and zoom, and instance.html, a data set like the papers' picture; both whole."""
    _instance(results, folder)
    shown = [r for r in results if "surfaces" in r]
    if shown:
        r = shown[0]
        data = r["surfaces"] | {name: r[name] for name in ("sharp", "flat")}
        template = (Path(__file__).parent / "surface.html").read_text(encoding="utf-8")
        write_whole(folder / "surface.html", template.replace("/*DATA*/null", json_text(data, None)))


def _instance(results: Sequence[Result], folder: Path) -> None:
    """The first data set that `alike` finds, drawn; beside it how many of all are like it, condition by condition."""
    if not any(r["found"] for r in results):
        return
    holds, shown = list(zip(*(like(r) for r in results), strict=True)), alike(results)
    counts = "".join(f"<li>{said}: {sum(of)} of {len(results)}</li>" for said, of in zip(LIKE, holds, strict=True))
    picture = "There is none among them."
    if shown:
        r = shown[0]
        x, y = samples(r["seed"], SAMPLES)
        fixed = (float(r["fixed"][0]), float(r["fixed"][1]))
        with style("wang-toy-instance"):
            drawn = draw_one({**r, "surfaces": _surfaces(surface(x, y, fixed, _DRAWN))})
            buffer = io.BytesIO()
            drawn.savefig(buffer, format="png", dpi=_PIXELS, facecolor="white")
        source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        picture = f'Data set {r["seed"]}:</p><p><img src="{source}" alt="its loss surface, samples and labels">'
    text = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>A toy like the papers'</title><style>body{max-width:60rem;margin:2rem auto;padding:0 1rem;"
        "font:16px/1.5 system-ui,sans-serif;color-scheme:light dark}img{max-width:100%;background:#fff}</style>"
        "<h1>An instance of the toy that shows what the papers' picture shows</h1><p>The papers give neither "
        "mixture nor fixed weights. The rule: the first data set, by its seed, of which all of this holds, with the "
        "margins that the sentences are tried with. The minima are counted over all choices of the fixed weights in "
        f"this list, and on its own surface in what is drawn. Of {len(results)} data sets {len(shown)} "
        f"{'is' if len(shown) == 1 else 'are'} like that.</p><ul>{counts}</ul><p>{picture}</p></html>\n"
    )
    write_whole(folder / "instance.html", text)


STUDY = Study(
    "wang-toy",
    "Wang et al. 2018, Fig. 1; 2020 (AISTATS), Fig. 1 to 3",
    "Loss surface of two weights, coloured by pacGen, with the bound",
    (),
    _configurations,
    run,
    _claims,
    draw,
    {
        "smoke": "a grid of 25 x 25, one data set, two pairs of fixed weights",
        "cpu": "a grid of 61 x 61, ten data sets" + _OURS,
        "half": "a grid of 61 x 61, 1,500 data sets" + _OURS,
        "paper": "a grid of 121 x 121, 30 data sets" + _OURS,
    },
    pages,
)
