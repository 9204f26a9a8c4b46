"""W1 sec. 5: layers of a ReLU network rescaled, the function unchanged: which measures of flatness change with it?

The first layer's weights and bias times a, the last layer's weights divided by a (Dinh et al. 2017). Trace, largest
eigenvalue and sharpness can be made as large as one likes; pacGen without its offset (epsilon 0, rho 0) cannot.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch

from flatminima import measures
from flatminima.core.minimum import Minimum
from flatminima.models import build
from flatminima.studies.images import images
from flatminima.studies.plot import label, lines, panels
from flatminima.studies.resumable import train
from flatminima.studies.study import Config, Result, Sources, Study
from flatminima.studies.verdict import Verdict, share
from flatminima.training import TrainConfig, evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEASURES = {
    "outputs": "largest change of an output",
    "pacgen_invariant": "pacGen, epsilon 0, rho 0",
    "pacgen": "pacGen, epsilon 0.1",
    "bound": "bound (8)",
    "hessian_trace": "Hessian trace",
    "hessian_top_eigenvalue": "largest eigenvalue",
    "sharpness": "sharpness",
}
# hidden units, seeds, epochs, samples
_SCALES = {"smoke": (8, 1, 5, 100), "cpu": (100, 3, 30, 1_000), "paper": (512, 3, 20, None)}
_BOUND = "eq. 8"  # of older runs "bound" was (7) with eta / (8 n), of which they have no key
_DELTA = 0.05
_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)


def _configurations(scale: str) -> list[Config]:
    hidden, seeds, epochs, limit = _SCALES[scale]
    data = "digits" if scale == "smoke" else "mnist"
    shared = {"data": data, "hidden": hidden, "epochs": epochs, "limit": limit, "bound_of": _BOUND}
    return [{**shared, "factor": factor, "seed": seed} for seed, factor in product(range(seeds), _FACTORS)]


def run(config: Config, sources: Sources) -> Result:
    """Train, rescale in float64, measure."""
    x, y = images(sources[config["data"]], "train", config["limit"])
    model = build("mlp", seed=config["seed"], widths=(x[0].numel(), config["hidden"], 10)).to(x.device)
    train(model, x, y, config=TrainConfig(epochs=config["epochs"], seed=config["seed"]))
    model.eval().double()
    before, moved, x = model, copy.deepcopy(model), x.double()
    linear = [m for m in moved.modules() if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        for parameter in linear[0].parameters():
            parameter.mul_(config["factor"])
        linear[1].weight.div_(config["factor"])
        change = float((moved(x) - before(x)).abs().max() / before(x).abs().max())
    minimum = Minimum(moved, (x, y), seed=config["seed"])
    return {
        "seed": config["seed"],
        "factor": config["factor"],
        "outputs": change,
        "pacgen_invariant": measures.pacgen(minimum, epsilon=0.0, rho="zero").value,
        "pacgen": measures.pacgen(minimum).value,
        "bound": _bound(minimum, x, y),
        "hessian_trace": measures.hessian_trace(minimum, estimator="exact").value
        if config["hidden"] < 16
        else measures.hessian_trace(minimum).value,
        "hessian_top_eigenvalue": measures.hessian_top_eigenvalue(minimum).value,
        "sharpness": measures.sharpness(minimum).value,
    }


def _bound(minimum: Minimum, x: torch.Tensor, y: torch.Tensor) -> float | None:
    """Lemma 3's (8) as printed, at the temperature of Theorem 2: of a network as rescaled, whose own kappa it has."""
    found = measures.sharpness_divergence(minimum, delta=_DELTA)
    if found.value is None:
        return None
    at, loss = found.details, evaluate(minimum.model, x, y).loss
    complexity = (at["parameters"] / 2 + at["kl"] - math.log(_DELTA)) / at["eta"]
    return float(loss + complexity + at["eta"] / (2 * len(x)))


def _claims(results: Sequence[Result]) -> list[Verdict]:
    plain = {r["seed"]: r for r in results if r["factor"] == 1.0}
    moved = [r for r in results if r["factor"] != 1.0 and r["seed"] in plain]

    def change(r: Result, name: str) -> float:
        before: float = plain[r["seed"]][name]
        return float(abs(r[name] - before) / abs(before))

    return [
        share(
            "pacGen with epsilon 0.1 changes by less than 1 %",
            [change(r, "pacgen") < 0.01 for r in moved],
            control=True,
        ),
        share(
            "the bound (8) changes by less than a tenth of what the Hessian's trace does, in logarithms",
            [
                abs(math.log(r["bound"] / plain[r["seed"]]["bound"]))
                < 0.1 * abs(math.log(r["hessian_trace"] / plain[r["seed"]]["hessian_trace"]))
                for r in moved
                if r.get("bound") and plain[r["seed"]].get("bound")
            ],
            control=True,
        ),
    ]


def _figure(results: Sequence[Result]) -> Figure:
    figure, axes = panels(3, 3)
    for panel in axes[len(_MEASURES) :]:
        panel.set_axis_off()
    for panel, (name, title) in zip(axes, _MEASURES.items(), strict=False):
        log_y = name in ("hessian_trace", "hessian_top_eigenvalue", "sharpness")
        own = [r for r in results if r.get(name) is not None]  # runs of before the bound was measured lack it
        if not own:
            panel.set_axis_off()
            panel.set_title(f"{title}: not measured", fontsize=10)
            continue
        lines(panel, [r["factor"] for r in own], [r[name] for r in own], geometric=log_y)
        unit = "" if name == "outputs" else " (nats)"
        label(panel, "factor of the first layer", f"{title}{unit}", title, log_x=True, log_y=log_y)
    return figure


STUDY = Study(
    "wang-rescaling",
    "Wang et al. 2018, sec. 5",
    "Measures of flatness under a re-parameterisation that changes no output",
    ("mnist",),
    _configurations,
    run,
    _claims,
    _figure,
    {
        "smoke": "8 hidden units, 100 digits",
        "cpu": "100 hidden units, 1,000 samples, 3 seeds; the paper proves it and has no experiment",
        "paper": "512 hidden units, 3 seeds, 20 epochs; the paper proves it and has no experiment",
    },
)
