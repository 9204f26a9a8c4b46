"""A study of one's own: does a wider network end in a flatter minimum?

flatminima study examples/my_study.py
flatminima study examples/my_study.py -j 2 --output runs/flatness
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from flatminima import Minimum, measures
from flatminima.models import build
from flatminima.studies import Study, Verdict, train, trend
from flatminima.studies.images import images
from flatminima.studies.plot import label, lines, panels
from flatminima.training import TrainConfig

SIZES = {"smoke": ((8, 32), 1, 100), "cpu": ((8, 16, 32, 64), 3, 500), "paper": ((8, 16, 32, 64, 128), 5, None)}


def configurations(scale: str) -> list[dict[str, Any]]:
    """One a run; all that the run depends on, as JSON can hold it."""
    widths, seeds, limit = SIZES[scale]
    return [
        {"data": "digits", "width": width, "seed": seed, "limit": limit}
        for seed, width in product(range(seeds), widths)
    ]


def run(config: dict[str, Any], sources: Any) -> dict[str, Any]:
    """Train one network and measure it; called in any process."""
    x, y = images(sources[config["data"]], "train", config["limit"])
    model = build("mlp", seed=config["seed"], widths=(64, config["width"], 10))
    train(model, x, y, config=TrainConfig(lr=0.1, epochs=20, seed=config["seed"]))
    trace = measures.hessian_trace(Minimum(model.eval(), (x, y)))
    return {"width": config["width"], "seed": config["seed"], "trace": trace.value}


def claims(results: Sequence[dict[str, Any]]) -> list[Verdict]:
    """What the runs decide."""
    widths, traces, seeds = ([r[key] for r in results] for key in ("width", "trace", "seed"))
    doublings = [math.log2(width) for width in widths]
    return [trend("the Hessian's trace falls with each doubling of the width", doublings, traces, seeds=seeds, sign=-1)]


def figure(results: Sequence[dict[str, Any]]) -> Figure:
    """The mean over seeds, and their range."""
    drawn, (axes,) = panels(1)
    lines(axes, [r["width"] for r in results], [r["trace"] for r in results])
    label(axes, "hidden units", "Hessian trace (nats)", log_x=True)
    return drawn


STUDY = Study(
    "my-study",
    "nobody's yet",
    "Hessian trace against the width",
    (),
    configurations,
    run,
    claims,
    figure,
    {"smoke": "2 widths, 1 seed", "cpu": "4 widths, 3 seeds", "paper": "5 widths, 5 seeds, all digits"},
)
