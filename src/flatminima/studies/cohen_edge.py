"""Cohen et al. 2021 and 2022: full-batch training drives the curvature up to what the optimizer bears, and stays there.

Gradient descent to 2 / lr, momentum to (2 + 2 beta) / lr, Adam's preconditioned Hessian to 38 / lr at its defaults. The
eigenvalue is followed by `track.Tracker`, whose numbers have converged or are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from flatminima.core.losses import Loss
from flatminima.models import build
from flatminima.report.axes import number
from flatminima.report.theme import GREY
from flatminima.studies.images import images
from flatminima.studies.plot import label, lines, panels
from flatminima.studies.study import Config, Result, Sources, Study
from flatminima.studies.verdict import Verdict, share
from flatminima.track import Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOKS = 60  # of a run
_DRAWN = 1.5  # of the threshold: Adam's first steps, whose moments have hardly begun, lie far above
_NEAR = 0.05  # of the threshold: what hovering means
_MOMENTUM = 0.9
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "gd": lambda parameters, lr: torch.optim.SGD(parameters, lr),
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=_MOMENTUM),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr),
}
_BEARS = {"gd": "2/lr", "momentum": "3.8/lr", "adam": "38/lr, preconditioned"}
_SAID = {"gd": "gradient descent", "momentum": f"momentum {_MOMENTUM:g}", "adam": "Adam"}
_RATES = {"gd": (1.5, 2.5, 3.5), "momentum": (2.85, 3.4), "adam": (3e-3, 1e-2)}
_SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"limit": 100, "width": 16, "steps": 120, "seeds": 1, "rates": {"gd": (2.0,), "momentum": (1.9,)}},
    "cpu": {"limit": 300, "width": 32, "steps": 1_500, "seeds": 3, "rates": _RATES},
    "paper": {"limit": 1_400, "width": 200, "steps": 10_000, "seeds": 3, "rates": _RATES},
}


def _configurations(scale: str) -> list[Config]:
    s = _SCALES[scale]
    shared = {"data": "digits", "decides": scale != "smoke", **{key: s[key] for key in ("limit", "width", "steps")}}
    return [
        shared | {"optimizer": name, "lr": rate, "seed": seed}
        for name, rates in s["rates"].items()
        for rate, seed in product(rates, range(s["seeds"]))
    ]


def run(config: Config, sources: Sources) -> Result:
    """Full-batch training with squared loss; eigenvalue over threshold, and loss, at each look."""
    x, y = images(sources[config["data"]], "train", config["limit"], None, "unit")
    x, target = (x - x.mean(0)).flatten(1), functional.one_hot(y, 10).float()
    width = config["width"]
    model = build("mlp", seed=config["seed"], widths=(x.shape[1], width, width, 10), activation="tanh").to(x.device)
    optimizer = _OPTIMIZERS[config["optimizer"]](model.parameters(), config["lr"])
    loss_of = Loss.of("mse").fitted(target[:1], target[:1])
    every = max(1, config["steps"] // _LOOKS)
    tracker = Tracker(model, (x, target), loss="mse", optimizer=optimizer, every=every, quantities=["preconditioned"])
    loss = torch.zeros(())
    for step in range(config["steps"]):
        optimizer.zero_grad()
        loss = loss_of(model(x), target).mean()
        loss.backward()
        optimizer.step()
        if not bool(torch.isfinite(loss)):
            break
        tracker.step(step, loss)
    rows = [row for row in tracker.table() if row["edge"] is not None]
    diverged = not bool(torch.isfinite(loss))
    third = [] if diverged else [row["edge"] for row in rows[-max(1, len(rows) // 3) :]]
    return {
        "decides": config["decides"],
        "optimizer": config["optimizer"],
        "lr": config["lr"],
        "seed": config["seed"],
        "curve": [[row["step"], row["edge"], row["loss"]] for row in rows],
        "threshold": rows[-1]["threshold"] if rows else None,
        "begin": rows[0]["edge"] if rows else None,
        "highest": max(row["edge"] for row in rows) if rows else None,
        "plateau": sum(third) / len(third) if third else None,
        "missing": len(tracker.table()) - len(rows),
        "products": sum(row["products"] for row in tracker.table()),
        "diverged": diverged,
    }


def _claims(results: Sequence[Result]) -> list[Verdict]:
    verdicts = []
    for name, bears in _BEARS.items():
        own = [r for r in results if r["optimizer"] == name and r["plateau"] is not None]
        if not own:
            continue
        said = _SAID[name]
        below = [r for r in own if r["begin"] < 1]
        verdicts += [
            share(
                f"{said}: an eigenvalue that begins below {bears} rises to it", [r["highest"] >= 0.97 for r in below]
            ),
            share(
                f"{said}: over the last third its mean is within {100 * _NEAR:.0f}% of {bears}",
                [abs(r["plateau"] - 1) <= _NEAR for r in own],
            ),
        ]
    if all(r["decides"] for r in results):
        return verdicts
    return [Verdict(v.claim, "", note="smoke scale shows that the study runs, and decides nothing") for v in verdicts]


def _figure(results: Sequence[Result]) -> Figure:
    names = [name for name in _BEARS if any(r["optimizer"] == name for r in results)]
    figure, axes = panels(2, max(1, len(names)))
    for row, name in enumerate(names):
        own = [r for r in results if r["optimizer"] == name]
        for index, rate in enumerate(sorted({r["lr"] for r in own})):
            points = [p for r in own if r["lr"] == rate for p in r["curve"]]
            steps = [p[0] for p in points]
            lines(axes[2 * row], steps, [p[1] for p in points], label=number(rate), index=index)
            losses = [p[2] for p in points]
            lines(axes[2 * row + 1], steps, losses, label=number(rate), index=index, geometric=True)
        axes[2 * row].axhline(1.0, color=GREY, ls="--", lw=0.8)
        axes[2 * row].set_ylim(0, _DRAWN)
        legend = f"{_SAID[name]}, lr"
        label(axes[2 * row], "step", f"eigenvalue / ({_BEARS[name]})", _SAID[name], legend=legend)
        label(axes[2 * row + 1], "step", "training loss (squared error)", _SAID[name], log_y=True, legend=legend)
    return figure


STUDY = Study(
    "cohen-edge",
    "Cohen et al. 2021, Fig. 1 and 5; 2022, Fig. 1",
    "Full-batch training rises to the edge of stability and hovers there",
    (),
    _configurations,
    run,
    _claims,
    _figure,
    {
        "smoke": "100 digits, width 16, 120 steps, one seed (CIFAR-10, networks of the paper, thousands of steps)",
        "cpu": "300 digits, a tanh MLP of width 32, squared loss, 1,500 steps, three seeds (CIFAR-10)",
        "paper": "1,400 digits, width 200, 10,000 steps, three seeds (5,000 images of CIFAR-10)",
    },
)
