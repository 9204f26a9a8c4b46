"""What J20 Table 1 and 2 share: networks trained with and without the Fisher-trace regularizer.

Both tables are of the same minima, so each run yields the numbers of both; the second study reads its own.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from flatminima import measures
from flatminima.core.minimum import Minimum
from flatminima.data import augmentation
from flatminima.models import build
from flatminima.studies.images import images
from flatminima.studies.resumable import train
from flatminima.studies.study import Config, Result, Sources
from flatminima.training import TrainConfig, base_optimizer, evaluate, method

_CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
TRIALS, WEIGHT_DECAY = 10, 1e-4  # trials below the paper's scale
_CNN_RATE = 0.01  # App. E
_LOGIT_NORM = 25.0  # of the authors' code
_TINY = {"name": "small_cnn", "channels": 1, "image_size": 8, "width": 4}
_SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"data": ("digits",), "networks": {"CNN": _TINY}, "betas": (0.0, 10.0), "seeds": 1, "epochs": 4}
    | {"limit": 100, "held": 60, "size": None, "subset": 20, "augment": "none", "lr": 0.05, "milestones": []},
    "cpu": {
        "data": ("cifar10", "cifar100"),
        "networks": {
            "CNN": {"name": "plain_cnn", "image_size": 16, "width": 16},
            "ResNet": {"name": "resnet20", "depth": 8},
        },
    }
    | {"betas": (0.0, 10.0, 50.0), "seeds": 5, "epochs": 40, "limit": 500, "held": 500, "size": 16, "subset": 100}
    | {"augment": "flip", "lr": 0.05, "milestones": [20, 30]},
    "paper": {
        "data": ("cifar10", "cifar100"),
        "networks": {
            "CNN": {"name": "six_layer_cnn"},
            "ResNet": {"name": "resnet20"},
            "WRN": {"name": "wide_resnet", "depth": 28, "width": 2},
            "DenseNet": {"name": "densenet"},
        },
    }
    | {
        "betas": (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 125.0),
        "trials": 100,
        "seeds": 5,
        "epochs": 200,
        "limit": 45_000,
        "held": 5_000,
        "size": None,
    }
    | {"subset": 100, "augment": "4-crop-f", "lr": 0.1, "milestones": [100, 150]},
}


def configurations(scale: str) -> list[Config]:
    """By data set, network, seed and strength of the regularizer."""
    s = _SCALES[scale]
    same = ("epochs", "limit", "held", "size", "subset", "augment", "lr", "milestones")
    shared = {key: s[key] for key in same}
    if "trials" in s:
        shared["trials"] = s["trials"]
    rates = {"CNN": {"lr": _CNN_RATE}} if scale == "paper" else {}
    return [
        {"data": data, "name": name, "network": network, **shared, **rates.get(name, {}), "seed": seed, "beta": beta}
        for data, (name, network), seed, beta in product(
            s["data"], s["networks"].items(), range(s["seeds"]), s["betas"]
        )
    ]


def run(config: Config, sources: Sources) -> Result:
    """Train with beta R_alpha, alpha 1e-4, M = 8, clipping at 5; test error, trace and the metric of Table 2."""
    source, data = sources[config["data"]], config["data"]
    x, y = images(source, "train", config["limit"] + config["held"], config["size"], "standard")
    test = images(source, "test", 2_000 if config["limit"] < 5_000 else None, config["size"], "standard")
    kept = min(config["limit"], len(x) - config["held"])
    held, (x, y) = (x[kept:], y[kept:]), (x[:kept], y[:kept])
    options = dict(config["network"])
    model = build(options.pop("name"), seed=config["seed"], classes=_CLASSES[data], **options).to(x.device)
    of_sgd = {"momentum": 0.9, "nesterov": True, "weight_decay": WEIGHT_DECAY}
    base = base_optimizer("sgd", model.parameters(), config["lr"], of_sgd)
    batch = min(128, len(x))
    chosen = method(
        "fisher_trace" if config["beta"] else "plain",
        model,
        base,
        {"beta": config["beta"], "sub_batches": 8, "max_norm": 5.0} if config["beta"] else {},
        steps_per_epoch=-(-len(x) // batch),
        seed=config["seed"],
    )
    recipe = TrainConfig(
        batch_size=batch,
        epochs=config["epochs"],
        seed=config["seed"],
        schedule="step",
        milestones=tuple(config["milestones"]),
    )
    augment = augmentation(config["augment"])
    by: dict[str, Any] = {"optimizer": chosen.optimizer, "backward": chosen.backward, "modules": chosen.modules}
    train(model, x, y, config=recipe, augment=augment, **by)
    model.eval()
    own, validation, final = (evaluate(model, *part) for part in ((x, y), held, test))
    minimum = Minimum(model, (x, y), seed=config["seed"])
    of: dict[str, Any] = {"subset": config["subset"], "trials": config.get("trials", TRIALS)}
    return {
        "data": data,
        "name": config["name"],
        "seed": config["seed"],
        "beta": config["beta"],
        "train_error": own.error,
        "train_loss": own.loss,
        "validation_error": validation.error,
        "test_error": final.error,
        "fisher_trace": measures.fisher_trace(minimum, **of).value,
        "logdet": measures.fisher_logdet(minimum, **of).value,
        "logdet_rescaled": measures.fisher_logdet(minimum, logit_norm=_LOGIT_NORM, **of).value,
    }


def regularized(results: list[Result]) -> tuple[list[Result], list[Result]]:
    """Runs of the strength that was best on held-out images, and their plain partners, by seed."""
    betas = sorted({r["beta"] for r in results if r["beta"]})
    if not betas:
        return [], []

    def error(beta: float) -> float:
        return float(sum(r["validation_error"] for r in results if r["beta"] == beta))

    best = min(betas, key=error)
    ours, plain = ({r["seed"]: r for r in results if r["beta"] == beta} for beta in (best, 0.0))
    seeds = [seed for seed in ours if seed in plain]
    return [ours[s] for s in seeds], [plain[s] for s in seeds]


REDUCTION = {
    "smoke": "100 digits, a small CNN, one strength, 4 epochs",
    "cpu": "500 images of 16 x 16, the plain CNN at a quarter of its width and a ResNet-8, betas 10 and 50, "
    "40 epochs (200), 5 seeds; no WRN, no DenseNet; the CNN is the library's, with four convolutions, BatchNorm and a "
    "hidden linear layer (six convolutions and global pooling); the step of the penalty is a tenth of the loss over "
    "the gradient (alpha 1e-4); ResNet on CIFAR-100 is not in the paper",
    "paper": "one schedule (rate / 10 at 100 and 150) for all networks; M = 8 and a threshold of 5 (by validation); "
    "no second training on all 50,000 images; the step of the penalty as at cpu scale",
}
