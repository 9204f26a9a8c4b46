"""Minima as they become flat or sharp: pacGen, Fisher log-determinant, trace, top eigenvalue and gap, epoch by epoch.

The same network from the same weights with the base optimizer, PertOPT, SAM and FisherTrace. Whether a method ends
flatter than the base, by each measure, is decided in pairs of equal seeds; so is whether its gap is smaller.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from flatminima.core.minimum import Minimum
from flatminima.data import corrupt_labels
from flatminima.measuring import measure
from flatminima.models import build
from flatminima.optim.diagnostics import PerturbationWarning
from flatminima.studies.images import images
from flatminima.studies.plot import label, lines, panels
from flatminima.studies.resumable import train
from flatminima.studies.study import Config, Result, Sources, Study
from flatminima.studies.verdict import Verdict, compare
from flatminima.studies.words import in_words, unit_of
from flatminima.training import TrainConfig, base_optimizer, evaluate, method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ID = "minima-over-time"
_CLASSES, _NOISE = 10, 0.2  # of the training labels: with none there is hardly a gap
_METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pertopt": {"gamma": 0.1},
    "sam": {"rho": 0.05},
    "fisher_trace": {"beta": 10.0, "sub_batches": 4},
}
_NAMES = {"plain": "base", "pertopt": "PertOPT", "sam": "SAM", "fisher_trace": "FisherTrace"}
_MEASURED = ("pacgen", "fisher_logdet", "hessian_trace", "hessian_top_eigenvalue")
_SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"limit": 120, "width": 8, "epochs": 2, "seeds": 1, "looks": 2},
    "cpu": {"limit": 600, "width": 64, "epochs": 24, "seeds": 6, "looks": 8},
    "paper": {"limit": 1_200, "width": 256, "epochs": 100, "seeds": 10, "looks": 25},
}
_BATCH, _RATE = 32, 0.1


def _configurations(scale: str) -> list[Config]:
    s = _SCALES[scale]
    shared = {
        "data": "digits",
        "decides": scale != "smoke",
        **{key: s[key] for key in ("limit", "width", "epochs", "looks")},
    }
    return [shared | {"method": name, "seed": seed} for seed, name in product(range(s["seeds"]), _METHODS)]


def run(config: Config, sources: Sources) -> Result:
    """Train with one method; measures and gap at equal distances of epochs."""
    source, seed = sources[config["data"]], config["seed"]
    x, y = images(source, "train", config["limit"], None, "standard")
    test = images(source, "test", None, None, "standard")
    y = corrupt_labels(y, _NOISE, _CLASSES, seed)
    width = config["width"]
    model = build("mlp", seed=seed, widths=(x[0].numel(), width, width, _CLASSES)).to(x.device)
    recipe = TrainConfig(batch_size=_BATCH, epochs=config["epochs"], seed=seed, lr=_RATE)
    steps = -(-len(x) // _BATCH)
    base = base_optimizer("sgd", model.parameters(), _RATE)
    chosen = method(config["method"], model, base, _METHODS[config["method"]], steps_per_epoch=steps, seed=seed)
    every = max(1, config["epochs"] // config["looks"])

    def follow(epoch: int, at: torch.nn.Module) -> list[float | None] | None:
        if (epoch + 1) % every:
            return None
        return [epoch + 1, *_look(at, x, y, test, seed)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerturbationWarning)
        _, curve = train(
            model, x, y, config=recipe, optimizer=chosen.optimizer, backward=chosen.backward, modules=chosen.modules,
            follow=follow,
        )  # fmt: skip
    last = dict(zip((*_MEASURED, "gap", "train_loss"), curve[-1][1:], strict=True))
    return {"decides": config["decides"], "method": config["method"], "seed": seed, "curve": curve, **last}


def _look(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, test: Any, seed: int) -> list[float | None]:
    """The measures (None where undefined), the gap of the error, the training loss."""
    at = copy.deepcopy(model).eval()
    table = measure(Minimum(at, (x, y), seed=seed), _MEASURED)
    own, other = evaluate(at, x, y), evaluate(at, *test)
    return [*(table[name].value for name in _MEASURED), other.error - own.error, own.loss]


def _claims(results: Sequence[Result]) -> list[Verdict]:
    verdicts = []
    for name in list(_METHODS)[1:]:
        for key in (*_MEASURED, "gap"):
            base = {r["seed"]: r[key] for r in results if r["method"] == "plain" and r[key] is not None}
            pairs = [
                (r[key], base[r["seed"]])
                for r in results
                if r["method"] == name and r[key] is not None and r["seed"] in base
            ]
            ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
            verdicts.append(
                compare(f"{_NAMES[name]} ends with a lower {in_words(key, _ID)} than the base optimizer", ours, theirs)
            )
    if all(r["decides"] for r in results):
        return verdicts
    return [Verdict(v.claim, "", note="smoke scale shows that the study runs, and decides nothing") for v in verdicts]


def _figure(results: Sequence[Result]) -> Figure:
    names = (*_MEASURED, "gap", "train_loss")
    figure, axes = panels(2, 3)
    for column, name in enumerate(names):
        for index, kind in enumerate(_METHODS):
            rows = [p for r in results if r["method"] == kind for p in r["curve"] if p[column + 1] is not None]
            x, y = [p[0] for p in rows], [p[column + 1] for p in rows]
            lines(axes[column], x, y, label=_NAMES[kind], index=index)
        label(axes[column], "epoch", unit_of(name, _ID), in_words(name, _ID), legend="optimizer")
    return figure


STUDY = Study(
    _ID,
    "none; the papers' measures and methods",
    "Flatness and gap epoch by epoch, with the base optimizer, PertOPT, SAM and FisherTrace",
    (),
    _configurations,
    run,
    _claims,
    _figure,
    {
        "smoke": "120 digits, width 8, 2 epochs, one seed",
        "cpu": "600 digits with 20% of the labels wrong, an MLP of width 64, 24 epochs, six seeds",
        "paper": "1,200 digits with 20% of the labels wrong, an MLP of width 256, 100 epochs, ten seeds",
    },
)
