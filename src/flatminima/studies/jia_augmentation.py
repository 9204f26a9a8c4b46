"""J20 Fig. 2: ResNets trained with more and more augmentation: test error and four metrics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from flatminima.studies import _jia
from flatminima.studies.study import Config, Result, Sources, Study
from flatminima.studies.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FAST, _LOOK_OFTEN = ("none", "flip", "1-crop-f"), {"look_every": 1}  # whose loss halves within an epoch


def _configurations(scale: str) -> list[Config]:
    printed = [
        _jia.configuration(scale, seed, scheme=scheme)
        for seed, scheme in product(range(_jia.SCALES[scale]["seeds"]), _jia.SCHEMES)
    ]
    controls = _jia.to_one_loss(scale, printed)
    return printed + [config | _LOOK_OFTEN if config["scheme"] in _FAST else config for config in controls]


def run(config: Config, sources: Sources) -> Result:
    """Train with a scheme, measure on the images as they are."""
    x, y = _jia.load(config, sources, config["limit"])
    model, result = _jia.fit(config, sources, x, y)
    return {"scheme": config["scheme"], **result, **_jia.metrics(model, x, y, config)}


def _claims(results: Sequence[Result]) -> list[Verdict]:
    return _jia.beside(results)


def _figure(results: Sequence[Result]) -> Figure:
    return _jia.figure(results, "scheme", "augmentation")


STUDY = Study(
    "jia-augmentation",
    "Jia & Su 2020, Fig. 2",
    "Four metrics against the test error, by augmentation",
    ("cifar10",),
    _configurations,
    run,
    _claims,
    _figure,
    {
        "smoke": "80 digits, a small CNN, 8 epochs",
        "cpu": "ResNet-8 (20) on 16 x 16 images, 1,000 of them (50,000), padding not scaled with the image, 80 epochs "
        "(200), l2 5e-4 (1e-4), 10 disjoint subsets of 100 (100), 5 seeds, "
        "Frobenius norm of the mean of gg' (mean of the norms), robustness on 200 samples, 2,000 test images (all)",
        "half": "ResNet-8 (20) on 16 x 16 images, 1,000 of them (50,000), others for each seed, padding scaled with "
        "the image, 250 epochs (200), 10 disjoint subsets of 100 (100), 14 seeds, "
        "Frobenius norm of the mean of gg' (mean of the norms), robustness on 200 samples; networks "
        "of the first eight seeds also to one loss",
        "paper": "Frobenius norm of the mean of gg' (mean of the norms), robustness on 200 samples",
    },
)
