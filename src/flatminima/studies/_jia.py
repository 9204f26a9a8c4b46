"""Shared by J20 Fig. 1 to 3: pre-activation ResNets of different test error, and four metrics of each.

The metrics are those of the paper's four panels: Fisher log-determinant (eq. 5), spectral radius and Frobenius norm of
the Fisher matrix, and the robustness of the softmax output. Without label smoothing the log-determinant follows the
training loss (erratum J-e), so the loss is beside it, and as a control the log-determinant with logits rescaled to
norm 25, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from flatminima import measures
from flatminima.core.minimum import Minimum
from flatminima.data import augmentation
from flatminima.models import build
from flatminima.report.axes import number
from flatminima.studies.images import fresh, images
from flatminima.studies.plot import label, lines, panels, ticks_at
from flatminima.studies.resumable import train
from flatminima.studies.study import Config, Result, Sources
from flatminima.studies.verdict import Verdict, trend
from flatminima.training import TrainConfig, evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {
    "logdet": "Fisher log-determinant",
    "spectral": "spectral radius of the Fisher",
    "frobenius": "Frobenius norm of the Fisher",
    "robustness": "robustness",
}
_PRINTED, _CONTROLS = "equal epochs", "to equal loss"
_BESIDE = {"": "", _PRINTED: ", at equal epochs", _CONTROLS: ", at equal loss"}  # what a comparison says of them
_SMALL_SUBSETS = (10, 30)  # N' beside the printed 100: the paper says that few samples do
_LABELS = {
    "test_error": "test error (share of samples)",
    "logdet": "log-determinant (nats)",
    "spectral": "spectral radius (nats²)",
    "frobenius": "Frobenius norm (nats²)",
    "robustness": "robustness (1 / input²)",
    "train_loss": "training loss (nats)",
}
_LINEAR = ("test_error", "logdet")  # which may be zero or below
RESCALED = "logdet_rescaled"
TRIALS, WEIGHT_DECAY = 20, 5e-4  # below the paper's scale, which has the printed 100 and the ResNet paper's 1e-4
TEST = 2_000  # images that the test error is measured on below paper scale

_NETWORK: dict[str, Any] = {"name": "resnet20"}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"network": {"name": "small_cnn", "channels": 1, "image_size": 8, "width": 4}, "size": None, "subset": 20}
    | {"limit": 80, "epochs": 8, "seeds": 1, "test": 200, "lr": 0.1, "patience": 10},
    "cpu": {"network": _NETWORK | {"depth": 8}, "size": 16, "subset": 100}
    | {"limit": 1_000, "epochs": 80, "seeds": 5, "test": TEST, "lr": 0.1, "patience": 8},
    "half": {"network": _NETWORK | {"depth": 8}, "size": 16, "subset": 100}
    | {"limit": 1_000, "epochs": 250, "seeds": 14, "test": None, "lr": 0.1, "patience": 10}
    | {"trials": 100, "weight_decay": 1e-4, "fresh_data": True},
    "paper": {"network": _NETWORK, "size": None, "subset": 100}
    | {"limit": 50_000, "epochs": 200, "seeds": 5, "test": None, "lr": 0.1, "patience": 10}
    | {"trials": 100, "weight_decay": 1e-4},
}
# of the confusion sets and batch sizes; below, no augmentation
DEFAULT_SCHEME = {"half": {"scheme": "4-crop-f"}, "paper": {"scheme": "4-crop-f"}}
# sec. 7.1 is of networks of similar training loss, which 250 epochs of 1,000 images do not make: the same networks
# trained to one loss, on a plateau of 20 epochs, as with 10 the rate is gone before the loss is there
_TO_ONE_LOSS: dict[str, Config] = {"half": {"target_loss": 0.02, "patience": 20, "epochs": 500, "look_every": 8}}
_ONE_LOSS_SEEDS = 8


def configuration(scale: str, seed: int, **own: Any) -> Config:
    """One run's, with what the three studies share."""
    data = "digits" if scale == "smoke" else "cifar10"
    common = {k: v for k, v in SCALES[scale].items() if k != "seeds"}
    return {"data": data, **common, "batch_size": 128, "target_loss": None, "seed": seed} | own


def to_one_loss(scale: str, printed: Sequence[Config]) -> list[Config]:
    """The configurations as printed, of the first seeds, each trained until the loss is that of all others."""
    own = _TO_ONE_LOSS.get(scale)
    return [config | own for config in printed if config["seed"] < _ONE_LOSS_SEEDS] if own else []


def load(config: Config, sources: Sources, limit: int) -> tuple[Tensor, Tensor]:
    """So many training samples: the same in every run, or, with "fresh_data", others for each seed."""
    if not config.get("fresh_data"):
        return images(sources[config["data"]], "train", limit, config["size"])
    return fresh(sources[config["data"]], limit, config["seed"], config["size"])


def fit(config: Config, sources: Sources, x: Tensor, y: Tensor) -> tuple[nn.Module, Result]:
    """SGD, momentum 0.9, l2 5e-4 (1e-4 as printed), the rate divided by ten on a plateau of the training loss.

    With "scheme" images are augmented; below the paper's scale, with fresh data, by a padding scaled with the image.
    """
    side = config["size"] if config.get("fresh_data") else None
    augment = augmentation(config.get("scheme", "none"), side=side)
    options = dict(config["network"])
    model = build(options.pop("name"), seed=config["seed"], **options).to(x.device)
    recipe = TrainConfig(
        lr=config["lr"],
        weight_decay=config.get("weight_decay", WEIGHT_DECAY),
        batch_size=config["batch_size"],
        epochs=config["epochs"],
        target_loss=config["target_loss"],
        schedule="plateau",
        patience=config["patience"],
        look_every=config.get("look_every"),
        channels_last=True,  # 1.3 to 1.7 times as fast; it changes rounding alone
        seed=config["seed"],
    )
    train(model, x, y, config=recipe, augment=augment)
    model.eval()
    test = images(sources[config["data"]], "test", config["test"], config["size"])
    own, held_out = evaluate(model, x, y), evaluate(model, *test)
    return model, {
        "seed": config["seed"],
        "equal_loss": config["target_loss"] is not None,
        "train_loss": own.loss,
        "train_error": own.error,
        "test_error": held_out.error,
        "reached": config["target_loss"] is None or own.loss < config["target_loss"],
    }


def metrics(model: nn.Module, x: Tensor, y: Tensor, config: Config) -> Result:
    """The four metrics on the true training samples, and the log-determinant with rescaled logits; None: undefined."""
    minimum = Minimum(model, (x, y), seed=config["seed"])
    of = {"subset": config["subset"], "trials": config.get("trials", TRIALS)}
    return {
        "logdet": measures.fisher_logdet(minimum, **of).value,
        **{f"logdet_{n}": measures.fisher_logdet(minimum, **of | {"subset": n}).value for n in _SMALL_SUBSETS},
        "spectral": measures.fisher_spectral_radius(minimum, **of).value,
        "frobenius": measures.fisher_frobenius(minimum, **of).value,
        "robustness": measures.robustness(minimum, samples=200).value,
        RESCALED: measures.fisher_logdet(minimum, logit_norm=25.0, **of).value,
    }


def beside(results: Sequence[Result]) -> list[Verdict]:
    """Our own comparisons: what else the log-determinant goes with, at equal epochs and at equal loss."""
    return [
        _trend(own, x, y, f"log-determinant {claim}{_BESIDE[said]}")
        for said, own in _by_training(results).items()
        for x, y, claim in (
            ("test_error", RESCALED, "with rescaled logits grows with the test error"),
            ("train_loss", "logdet", "grows with the training loss itself (J-e)"),
        )
    ]


def figure(results: Sequence[Result], x: str, title: str) -> Figure:
    """Draw the paper's figure: test error, metrics and loss against what is varied, mean and standard deviation.

    Networks trained to one loss are a dashed line.

    Args:
        x: the column that varies. title: of it.
    """
    drawn, axes = panels(3, 2)
    by_training = _by_training(results)
    groups = sorted({r[x] for own in by_training.values() for r in own}, key=_order)
    titles = {"test_error": "test error"} | METRICS | {"train_loss": "training loss"}
    for panel, (name, unit) in zip(axes, _LABELS.items(), strict=True):
        log_y = name not in _LINEAR
        for index, (said, own) in enumerate(by_training.items()):
            points = [r for r in own if r[name] is not None]
            places, values = [_place(r[x], groups) for r in points], [r[name] for r in points]
            lines(panel, places, values, label=said, index=index, dashed=said == _CONTROLS, geometric=log_y)
        key = "trained" if _CONTROLS in by_training else ""
        label(panel, title, unit, titles[name], log_y=log_y and bool(panel.lines), legend=key)
        names = [value if isinstance(value, str) else number(value) for value in groups]
        ticks_at(panel, [_place(value, groups) for value in groups], names)
    return drawn


def _by_training(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by how the networks were trained; of those to one loss, the ones that reached it."""
    printed = [r for r in results if not r.get("equal_loss")]
    controls = [r for r in results if r.get("equal_loss") and r["reached"]]
    return {_PRINTED: printed, _CONTROLS: controls} if controls else {"": printed}


def _place(value: Any, groups: Sequence[Any]) -> float:
    """Place of a value along x: schemes and batch sizes at equal distances, sizes of a set to scale."""
    return float(value if 0 in groups else groups.index(value))


SCHEMES = ("none", "flip", "1-crop-f", "4-crop-f")


def _order(value: Any) -> float:
    return float(SCHEMES.index(value) if value in SCHEMES else value)


def _trend(results: Sequence[Result], x: str, y: str, claim: str) -> Verdict:
    own = [r for r in results if r[y] is not None]
    values = [_order(r[x]) for r in own]
    return trend(claim, values, [r[y] for r in own], seeds=[r["seed"] for r in own], control=True)
