"""N17 Fig. 4: test error of a two-layer ReLU network keeps falling as it widens beyond what fits the data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from flatminima.data import load_tensors
from flatminima.models import build
from flatminima.studies.study import Config, Result, Study, Verdict, trend
from flatminima.training import TrainConfig, evaluate, train

# widths, seeds, epochs, training samples
_SCALES = {
    "smoke": ((4, 16, 64), 2, 10, 400),
    "cpu": ((8, 16, 32, 64, 128, 256, 512), 3, 60, 5_000),
    "paper": (tuple(2**k for k in range(3, 13)), 5, 1_000, None),
}


def _configurations(scale: str, data: str) -> list[Config]:
    widths, seeds, epochs, limit = _SCALES[scale]
    return [
        {"width": width, "seed": seed, "epochs": epochs, "limit": limit, "data": data}
        for seed, width in product(range(seeds), widths)
    ]


def run(config: Config) -> Result:
    """Train one width with N17's optimizer: SGD, batch 64, lr 0.01, momentum 0.9, to cross-entropy 1e-4."""
    x, y = load_tensors(config["data"], "train", limit=config["limit"])
    test = load_tensors(config["data"], "test")
    model = build("mlp", seed=config["seed"], widths=(x[0].numel(), config["width"], 10))
    train(model, x, y, config=TrainConfig(epochs=config["epochs"], target_loss=1e-4, seed=config["seed"]))
    own, held_out = evaluate(model, x, y), evaluate(model, *test)
    return {
        "width": config["width"],
        "train_loss": own.loss,
        "train_error": own.error,
        "test_error": held_out.error,
    }


def _claims(results: Sequence[Result]) -> list[Verdict]:
    widths, errors = [r["width"] for r in results], [r["test_error"] for r in results]
    fitted = [r for r in results if r["train_error"] == 0]
    return [
        trend("test error falls with the width", widths, errors, sign=-1),
        trend(
            "test error falls with the width among networks without a training error",
            [r["width"] for r in fitted],
            [r["test_error"] for r in fitted],
            sign=-1,
            control=True,
        ),
    ]


STUDY = Study(
    "neyshabur-width",
    "Neyshabur et al. 2017, Fig. 4",
    "Test error against the width of a two-layer network",
    _configurations,
    run,
    _claims,
    {
        "smoke": "widths 4 to 64, 2 seeds, 400 samples, 10 epochs",
        "cpu": "widths 8 to 512, 3 seeds, 5,000 samples, at most 60 epochs",
        "paper": "none known; at most 1,000 epochs",
    },
)
