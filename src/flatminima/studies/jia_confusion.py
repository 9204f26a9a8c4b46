"""J20 Fig. 1: ResNets on true samples and a confusion set of growing size: test error and four metrics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from flatminima.data import append_confusion
from flatminima.studies import _jia
from flatminima.studies.study import Config, Result, Sources, Study
from flatminima.studies.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# true samples, sizes of the confusion set
_SETS = {
    "smoke": (60, (0, 15, 30)),
    "cpu": (1_000, (0, 125, 250, 500)),
    "half": (1_000, (0, 250, 500)),
    "paper": (10_000, (0, 1_000, 2_000, 3_000, 4_000, 5_000)),
}


_AS_PRINTED: dict[str, Config] = {
    "half": _jia.DEFAULT_SCHEME["half"],
    "paper": {"fresh_data": True, **_jia.DEFAULT_SCHEME["paper"]},
}


def _configurations(scale: str) -> list[Config]:
    true, sizes = _SETS[scale]
    printed = [
        _jia.configuration(
            scale, seed, true=true, confusion=size, limit=true + max(sizes), **_AS_PRINTED.get(scale, {})
        )
        for seed, size in product(range(_jia.SCALES[scale]["seeds"]), sizes)
    ]
    return printed + _jia.to_one_loss(scale, printed)


def run(config: Config, sources: Sources) -> Result:
    """Train on the true samples and the confusion set, measure on the true samples."""
    x, y = _jia.load(config, sources, config["limit"])
    true = config["true"]
    both = append_confusion(x[:true], y[:true], x[true:], config["confusion"], 10, config["seed"])
    model, result = _jia.fit(config, sources, *both)
    return {"confusion": config["confusion"], **result, **_jia.metrics(model, x[:true], y[:true], config)}


def _claims(results: Sequence[Result]) -> list[Verdict]:
    return _jia.beside(results)


def _figure(results: Sequence[Result]) -> Figure:
    return _jia.figure(results, "confusion", "size of the confusion set")


STUDY = Study(
    "jia-confusion",
    "Jia & Su 2020, Fig. 1",
    "Four metrics against the test error, by confusion set",
    ("cifar10",),
    _configurations,
    run,
    _claims,
    _figure,
    {
        "smoke": "60 digits, a small CNN, confusion 0 to 30, 8 epochs",
        "cpu": "ResNet-8 (20) on 16 x 16 images, 1,000 of them (10,000), always the same (new ones a seed), confusion "
        "0 to 500 in four sizes (six), no augmentation (4-crop-f), 80 epochs (200), l2 5e-4 (1e-4), 10 disjoint "
        "subsets of 100 (100), 5 seeds, Frobenius norm of the mean of gg' (mean of the norms), robustness on 200 "
        "samples, 2,000 test images (all)",
        "half": "ResNet-8 (20) on 16 x 16 images, 1,000 of them (10,000), confusion 0 to 500 in three sizes (six), "
        "padding scaled with the image, 250 epochs (200), 10 disjoint subsets of 100 (100), 14 seeds, "
        "Frobenius norm of the mean of gg' (mean of the norms), robustness on 200 samples; networks "
        "of the first eight seeds also to one loss",
        "paper": "Frobenius norm of the mean of gg' (mean of the norms), robustness on 200 samples",
    },
)
