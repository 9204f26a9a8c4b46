"""Shared by J20 Table 1 and 2: networks trained with and without the Fisher-trace regularizer.

Both tables are of the same minima, so each run yields the numbers of both; the second study reads its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from flatminima import measures
from flatminima.core.minimum import Minimum
from flatminima.data import augmentation
from flatminima.models import build
from flatminima.report.axes import number
from flatminima.studies.images import fresh, images
from flatminima.studies.resumable import result_of, train
from flatminima.studies.study import Config, Result, Sources
from flatminima.training import TrainConfig, base_optimizer, evaluate, method

_CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
TRIALS, WEIGHT_DECAY = 10, 1e-4  # trials below the paper's scale
BATCH, MOMENTUM = 128, 0.9  # App. E, of the CNN; below half scale of all networks
SUB_BATCHES, MAX_NORM = 8, 5.0  # M and the threshold of clipping where no other is tried
# the CNN's training is in App. E; the others' is "identical to those in their original paper" (sec. 7.2): He et al.,
# arXiv 1512.03385 (64,000 steps on 45,000 images, rate / 10 at 32,000 and 48,000), Zagoruyko and Komodakis,
# arXiv 1605.07146, Huang et al., arXiv 1608.06993
_ORIGINAL: dict[str, Config] = {
    "CNN": {"lr": 0.01, "epochs": 200, "milestones": [100, 150]},
    "ResNet": {"epochs": 182, "milestones": [91, 137], "nesterov": False},
    "WRN": {"epochs": 200, "milestones": [60, 120, 160], "gamma": 0.2, "weight_decay": 5e-4},
    "DenseNet": {"epochs": 300, "milestones": [150, 225], "batch_size": 64},
}
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
    "half": {
        "data": ("cifar10",),
        "networks": {
            "ResNet": {"name": "resnet20", "depth": 8},
            "WRN": {"name": "wide_resnet", "depth": 10, "width": 1},
            "DenseNet": {"name": "densenet", "depth": 16, "growth": 8},
        },
    }
    | {"betas": (0.0, 10.0, 50.0), "sweep": True, "trials": 100, "fresh_data": True, "seeds": 5, "epochs": 200}
    | {"limit": 2_000, "held": 2_000, "tested": None, "size": 16, "subset": 100, "augment": "4-crop-f", "lr": 0.1}
    | {"milestones": [100, 150], "channels_last": True, "limits": {"DenseNet": 1_000}},
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
        "sweep": True,
        "trials": 100,
        "seeds": 5,
        "epochs": 200,
        "limit": 45_000,
        "held": 5_000,
        "size": None,
    }
    | {"subset": 100, "augment": "4-crop-f", "lr": 0.1, "milestones": [100, 150]},
}


# of one cell, beside the five seeds that have one sample of images: each of these draws its own. At the paired
# deviation of the five, 0.0065, 45 see a third of a point of test error with 88 %
_MORE: dict[str, tuple[Config, int]] = {"cpu": ({"data": "cifar10", "name": "CNN"}, 40)}

# M and the threshold of clipping, by validation as the betas: one at a time around 8 and 5, not every combination
_SWEEP: tuple[Config, ...] = (
    *({"sub_batches": m} for m in (4, 16)),
    *({"max_norm": threshold} for threshold in (1.0, 10.0, 15.0)),
)


def configurations(scale: str) -> list[Config]:
    """List runs by data set, network, seed and method.

    With a sweep it is the paper's way (sec. 7.2): one split of the images, the first seed's, chooses strength, M and
    threshold; the other seeds train a plain network and one with the choice. All train one with the choice but without
    clipping, as the paper says that the boost is not consistent then.
    """
    s = _SCALES[scale]
    same = ("epochs", "limit", "held", "size", "subset", "augment", "lr", "milestones")
    shared = {key: s[key] for key in same}
    shared |= {key: s[key] for key in ("trials", "fresh_data", "channels_last", "tested") if key in s}
    own = _ORIGINAL if scale in ("half", "paper") else {}
    own = own | {name: own[name] | {"limit": limit} for name, limit in s.get("limits", {}).items()}
    found = [
        {"data": data, "name": name, "network": network, **shared, **own.get(name, {}), "seed": seed, **method}
        for data, (name, network), seed in product(s["data"], s["networks"].items(), range(s["seeds"]))
        for method in _methods(s["betas"], seed, sweep=s.get("sweep", False))
    ]
    cell, more = _MORE.get(scale, ({}, 0))
    of_the_cell = [c for c in found if c["seed"] == 0 and cell.items() <= c.items()]
    seeds = range(s["seeds"], s["seeds"] + more)
    return found + [c | {"seed": seed, "fresh_data": True} for seed in seeds for c in of_the_cell]


def _methods(betas: tuple[float, ...], seed: int, *, sweep: bool) -> list[Config]:
    tried: list[Config] = [{"beta": beta} for beta in betas]
    if not sweep:
        return tried
    tried += [{"beta": betas[1], **other} for other in _SWEEP]
    choice = {"seeds_before": seed, "among": [one for one in tried if one["beta"]]}
    unclipped: Config = {"choice": choice, "clip": False}
    return [*tried, unclipped] if seed == 0 else [{"beta": 0.0}, {"choice": choice}, unclipped]


def _chosen(config: Config, sources: Sources) -> Config:
    """The configuration with what the first seed's held-out images choose in the place of its "choice"."""
    own = {key: value for key, value in config.items() if key != "choice"}
    choice: Config = config["choice"]
    of_the_split = {key: value for key, value in own.items() if key != "clip"}
    of_the_split["seed"] = config["seed"] - choice["seeds_before"]
    errors = []
    for tried in choice["among"]:
        other = of_the_split | tried
        errors.append((result_of(other) or run(other, sources))["validation_error"])
    best: Config = choice["among"][errors.index(min(errors))]
    return own | best


def run(config: Config, sources: Sources) -> Result:
    """Train with beta R_alpha; test error, trace and the metric of Table 2.

    R_alpha is scaled to alpha 1e-4, but its displacement is a tenth of the loss over the gradient (step "auto").

    M, "sub_batches", is 8 and the threshold of the gradient's norm, "max_norm", 5 where a configuration has no other.
    """
    if "choice" in config:
        return run(_chosen(config, sources), sources)
    source, data, wanted = sources[config["data"]], config["data"], config["limit"] + config["held"]
    if config.get("fresh_data"):
        x, y = fresh(source, wanted, config["seed"], config["size"], "standard")
    else:
        x, y = images(source, "train", wanted, config["size"], "standard")
    tested = config.get("tested", 2_000 if config["limit"] < 5_000 else None)
    test = images(source, "test", tested, config["size"], "standard")
    of = {
        "sub_batches": config.get("sub_batches", SUB_BATCHES),
        "max_norm": config.get("max_norm", MAX_NORM) if config.get("clip", True) else None,
    }
    kept = min(config["limit"], len(x) - config["held"])
    held, (x, y) = (x[kept:], y[kept:]), (x[:kept], y[:kept])
    options = dict(config["network"])
    model = build(options.pop("name"), seed=config["seed"], classes=_CLASSES[data], **options).to(x.device)
    decay = config.get("weight_decay", WEIGHT_DECAY)
    of_sgd = {"momentum": MOMENTUM, "nesterov": config.get("nesterov", True), "weight_decay": decay}
    base = base_optimizer("sgd", model.parameters(), config["lr"], of_sgd)
    batch = min(config.get("batch_size", BATCH), len(x))
    chosen = method(
        "fisher_trace" if config["beta"] else "plain",
        model,
        base,
        {"beta": config["beta"], **of} if config["beta"] else {},
        steps_per_epoch=-(-len(x) // batch),
        seed=config["seed"],
    )
    recipe = TrainConfig(
        batch_size=batch,
        epochs=config["epochs"],
        seed=config["seed"],
        schedule="step",
        milestones=tuple(config["milestones"]),
        gamma=config.get("gamma", 0.1),
        channels_last=config.get("channels_last", False),
    )
    augment = augmentation(config["augment"], side=config["size"] if config.get("fresh_data") else None)
    by: dict[str, Any] = {"optimizer": chosen.optimizer, "backward": chosen.backward, "modules": chosen.modules}
    train(model, x, y, config=recipe, augment=augment, **by)
    model.eval()
    own, validation, final = (evaluate(model, *part) for part in ((x, y), held, test))
    minimum = Minimum(model, (x, y), seed=config["seed"])
    fisher: dict[str, Any] = {"subset": config["subset"], "trials": config.get("trials", TRIALS)}
    return {
        "data": data,
        "name": config["name"],
        "seed": config["seed"],
        "beta": config["beta"],
        **of,
        "train_error": own.error,
        "train_loss": own.loss,
        "validation_error": validation.error,
        "test_error": final.error,
        "fisher_trace": measures.fisher_trace(minimum, **fisher).value,
        "logdet": measures.fisher_logdet(minimum, **fisher).value,
        "logdet_rescaled": measures.fisher_logdet(minimum, logit_norm=_LOGIT_NORM, **fisher).value,
    }


def swept(results: Sequence[Result]) -> bool:
    """Whether M and the threshold were tried, too: then the first seed's images chose, as in the paper."""
    return len({settings(r) for r in results if r["beta"] and settings(r)[1] is not None}) > 1


def axis(results: Sequence[Result]) -> tuple[str, dict[float, str]]:
    """Title and places of what a figure has along x, each place with its name.

    It is the strength where all seeds tried each, and else the ways to train: without the regularizer, with the choice,
    and with it but for clipping.
    """
    if swept(results):
        return "regularizer", dict(enumerate(("without", "with", "unclipped")))
    return "strength beta", {r["beta"]: number(r["beta"]) for r in results}


def placed(own: list[Result], *, by_way: bool) -> list[tuple[float, Result]]:
    """Runs of one network, each at its place of an `axis`: its way to train, or else its strength."""
    if not by_way:
        return [(r["beta"], r) for r in own]
    ours, plain = regularized(own)
    unclipped = [r for r in own if r["beta"] and settings(r)[1] is None]
    return [(place, r) for place, group in enumerate((plain, ours, unclipped)) for r in group]


def settings(row: Mapping[str, Any]) -> tuple[int, float | None]:
    """M and the threshold of a run; runs of older versions had one of each, and do not say them."""
    return row.get("sub_batches", SUB_BATCHES), row.get("max_norm", MAX_NORM)


def regularized(results: list[Result]) -> tuple[list[Result], list[Result]]:
    """Runs of the regularizer that was best on held-out images, and their plain partners, by seed."""
    kinds: dict[tuple[Any, ...], list[Result]] = {}
    for r in results:
        if r["beta"] and r.get("max_norm", 0.0) is not None:  # without clipping: beside the choice
            kinds.setdefault((r["beta"], *settings(r)), []).append(r)
    plain = {r["seed"]: r for r in results if not r["beta"]}
    ours = [r for r in best_held_out(list(kinds.values())) if r["seed"] in plain]
    return ours, [plain[r["seed"]] for r in ours]


def best_held_out(kinds: Sequence[Sequence[Result]]) -> Sequence[Result]:
    """The runs of the setting that errs least on held-out images.

    Settings are compared over the seeds that all of them have: where the first seed's split chose, it alone.
    """
    if not kinds:
        return []
    shared = set.intersection(*({r["seed"] for r in own} for own in kinds)) or {r["seed"] for own in kinds for r in own}

    def error(own: Sequence[Result]) -> float:
        errors: list[float] = [r["validation_error"] for r in own if r["seed"] in shared]
        return sum(errors) / len(errors)

    return min(kinds, key=error)


REDUCTION = {
    "smoke": "100 digits, a small CNN, one strength, 4 epochs",
    "cpu": "500 images of 16 x 16, the plain CNN at a quarter of its width and a ResNet-8, betas 10 and 50, "
    "40 epochs (200), 5 seeds, of the CNN on CIFAR-10 45, the last 40 with images of their own; no WRN, no DenseNet; "
    "the CNN is the library's, with four convolutions, BatchNorm and a "
    "hidden linear layer (six convolutions and global pooling); the step of the penalty is a tenth of the loss over "
    "the gradient (alpha 1e-4); images flipped only (4-crop-f); 2,000 test images "
    "(all); one rate (0.05) and one schedule (rate / 10 at 20 and "
    "30), one l2, batch and Nesterov's momentum for all networks, as for the CNN of the paper; M 8, threshold 5; 5 "
    "disjoint subsets of 100 (100); in Table 2 logits rescaled to norm 25 by the code of the authors, which the paper "
    "does not say; ResNet on CIFAR-100 is not in the paper",
    "half": "2,000 images of 16 x 16 for a ResNet-8 and a WRN-10-1 and 1,000 for a DenseNet of growth 8 and depth 16, "
    "which do not fit 5,000, on CIFAR-10, others for each seed, padding scaled with the image; no CNN, as one of a "
    "quarter of its width does not fit in 200 epochs; betas 10 and 50, 5 seeds; M and the threshold by validation one "
    "at a time, on the first seed's split; 10 or 20 disjoint subsets of 100 (100); no second training on the held-out "
    "images; the step of the penalty and the rescaled logits as at cpu scale",
    "paper": "M and the threshold by validation, one at a time, on the first seed's split; no second training on all "
    "50,000 images; the step of the penalty and the rescaled logits as at cpu scale",
}
