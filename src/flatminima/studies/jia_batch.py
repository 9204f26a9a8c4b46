"""J20 Fig. 3: ResNets trained with larger and larger batches: test error and four metrics.

At equal epochs a large batch takes fewer steps and may be under-trained, so every network is also trained to one loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from flatminima.studies import _jia
from flatminima.studies.study import Config, Result, Sources, Study
from flatminima.studies.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# batch sizes, loss that the controls reach, within how many times the epochs; of half scale see `_jia`
_BATCHES: dict[str, tuple[tuple[int, ...], float | None, int]] = {
    "smoke": ((16, 32, 64), 2.0, 1),
    "cpu": ((32, 64, 128, 256), 0.1, 2),
    "half": ((32, 64, 128, 256), None, 1),
    "paper": ((128, 256, 512, 1_024), 0.01, 2),
}


_SEEDS = {"half": 5}  # as printed, where they are fewer than in the other figures: a seed is four trainings
_MORE = {"cpu": 7}  # seeds beside the five that had one sample of images: each of these draws its own


def _configurations(scale: str) -> list[Config]:
    batches, loss, factor = _BATCHES[scale]
    seeds = _jia.SCALES[scale]["seeds"]
    first = _SEEDS.get(scale, seeds)
    epochs = _jia.SCALES[scale]["epochs"]
    every = [
        _jia.configuration(
            scale,
            seed,
            batch_size=batch,
            **_jia.DEFAULT_SCHEME.get(scale, {}),
            target_loss=loss if equal_loss else None,
            epochs=epochs * factor if equal_loss else epochs,
            **({"fresh_data": True} if seed >= first else {}),
        )
        for seed, equal_loss, batch in product(range(seeds + _MORE.get(scale, 0)), (False, True), batches)
        if loss or not equal_loss
    ]
    printed = [config for config in every if config["seed"] < first + _MORE.get(scale, 0)]
    return printed + _jia.to_one_loss(scale, every)


def run(config: Config, sources: Sources) -> Result:
    """Train with a batch size and measure."""
    x, y = _jia.load(config, sources, config["limit"])
    model, result = _jia.fit(config, sources, x, y)
    return {"batch_size": config["batch_size"], **result, **_jia.metrics(model, x, y, config)}


def _claims(results: Sequence[Result]) -> list[Verdict]:
    return _jia.beside(results)


def _figure(results: Sequence[Result]) -> Figure:
    return _jia.figure(results, "batch_size", "batch size")


STUDY = Study(
    "jia-batch",
    "Jia & Su 2020, Fig. 3",
    "Four metrics against the test error, by batch size",
    ("cifar10",),
    _configurations,
    run,
    _claims,
    _figure,
    {
        "smoke": "80 digits, a small CNN, batches 16 to 64, 8 epochs",
        "cpu": "ResNet-8 (20) on 16 x 16 images, 1,000 of them (50,000), batches 32 to 256 (128 to 1,024), no "
        "augmentation (4-crop-f), 80 epochs (200), l2 5e-4 (1e-4), 10 disjoint subsets of 100 (100), 12 seeds, the "
        "last seven with images of their own, Frobenius norm of the mean of gg' (mean of the norms), robustness on 200 "
        "samples, 2,000 test images (all); each network also to one loss",
        "half": "ResNet-8 (20) on 16 x 16 images, 1,000 of them (50,000), others for each seed, batches 32 to 256 (128 "
        "to 1,024), padding scaled with the image, 250 epochs (200), 10 disjoint subsets of 100 (100), 5 seeds, "
        "Frobenius norm of the mean of gg' (mean of the norms), robustness on 200 samples; networks of the first eight "
        "seeds also to one loss",
        "paper": "Frobenius norm of the mean of gg' (mean of the norms), robustness on 200 samples; each network also "
        "to one loss",
    },
)
