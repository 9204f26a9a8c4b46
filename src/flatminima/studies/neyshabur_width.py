"""N17 Fig. 4: test error of a two-layer ReLU network keeps falling as it widens beyond what fits the data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from flatminima.models import build
from flatminima.studies.images import images
from flatminima.studies.plot import label, lines, panels
from flatminima.studies.study import Config, Result, Sources, Study
from flatminima.studies.verdict import Verdict, trend
from flatminima.training import TrainConfig, evaluate, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# widths, seeds, epochs, training samples
_SCALES = {
    "smoke": ((4, 16, 64), 2, 10, 400),
    "cpu": ((8, 16, 32, 64, 128, 256, 512), 3, 60, 5_000),
    "paper": (tuple(2**k for k in range(3, 13)), 5, 1_000, None),
}


def _configurations(scale: str) -> list[Config]:
    widths, seeds, epochs, limit = _SCALES[scale]
    data = "digits" if scale == "smoke" else "mnist"
    return [
        {"width": width, "seed": seed, "epochs": epochs, "limit": limit, "data": data}
        for seed, width in product(range(seeds), widths)
    ]


def run(config: Config, sources: Sources) -> Result:
    """Train one width with N17's optimizer: SGD, batch 64, lr 0.01, momentum 0.9, to cross-entropy 1e-4."""
    source = sources[config["data"]]
    x, y = images(source, "train", config["limit"])
    test = images(source, "test")
    model = build("mlp", seed=config["seed"], widths=(x[0].numel(), config["width"], 10))
    train(model, x, y, config=TrainConfig(epochs=config["epochs"], target_loss=1e-4, seed=config["seed"]))
    own, held_out = evaluate(model, x, y), evaluate(model, *test)
    return {
        "width": config["width"],
        "seed": config["seed"],
        "train_loss": own.loss,
        "train_error": own.error,
        "test_error": held_out.error,
    }


def _claims(results: Sequence[Result]) -> list[Verdict]:
    widths, errors = [r["width"] for r in results], [r["test_error"] for r in results]
    fitted = [r for r in results if r["train_error"] == 0]
    return [
        trend("test error falls with the width", widths, errors, seeds=[r["seed"] for r in results], sign=-1),
        trend(
            "test error falls with the width among networks without a training error",
            [r["width"] for r in fitted],
            [r["test_error"] for r in fitted],
            seeds=[r["seed"] for r in fitted],
            sign=-1,
            control=True,
        ),
    ]


def _figure(results: Sequence[Result]) -> Figure:
    figure, (axes,) = panels(1)
    widths = [r["width"] for r in results]
    lines(axes, widths, [r["test_error"] for r in results], label="test")
    lines(axes, widths, [r["train_error"] for r in results], label="training", index=1)
    label(axes, "hidden units", "error (share of samples)", log_x=True)
    return figure


STUDY = Study(
    "neyshabur-width",
    "Neyshabur et al. 2017, Fig. 4",
    "Test error against the width of a two-layer network",
    ("mnist",),
    _configurations,
    run,
    _claims,
    _figure,
    {
        "smoke": "widths 4 to 64, 2 seeds, 400 samples, 10 epochs",
        "cpu": "widths 8 to 512, 3 seeds, 5,000 samples, at most 60 epochs",
        "paper": "none known; at most 1,000 epochs",
    },
)
