"""N17 Fig. 1 and 2: networks trained on true and on random labels, for growing training sets.

Random labels generalize to nothing, so a measure of complexity must be larger for them, and grow with their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from flatminima.data import random_labels
from flatminima.models import build
from flatminima.report.axes import number
from flatminima.studies._neyshabur import (
    EQUAL_KL,
    NARROW_VGG,
    NORMS,
    PRINTED_BATCH,
    SHARPNESS,
    VGG_DIFFERS,
    at_equal_kl,
    by_network,
    draw,
    draw_at_sharpness,
    draw_curves,
    fit,
    half,
    larger,
    look,
    test_set,
    training_set,
)
from flatminima.studies.plot import panels
from flatminima.studies.study import Config, Result, Sources, Study
from flatminima.studies.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# sizes, seeds, epochs, target loss, network, samples and draws of the sharpness
_SCALES = {
    "smoke": ((60, 120), 1, 20, 0.05, {"name": "small_cnn", "channels": 1, "image_size": 8, "width": 4}, 60, 2),
    "cpu": (
        (250, 500, 1_000, 2_000),
        3,
        150,
        1e-2,
        {"name": "small_cnn", "channels": 3, "image_size": 32, "width": 16, "norm": "batch"},
        250,
        10,
    ),
    "half": (
        (250, 500, 1_000, 2_000),
        8,
        150,
        1e-2,
        {"name": "small_cnn", "channels": 3, "image_size": 32, "width": 16, "norm": "batch"},
        250,
        200,
    ),
    "paper": ((1_000, 5_000, 10_000, 20_000, 30_000, 40_000, 50_000), 5, 1_000, 1e-4, {"name": "vgg"}, 50_000, 1_000),
}
_BESIDE: dict[str, Config] = {
    "half": {"looked": 250, **half(200, 20, (2e-3, 1.5e-2))},
    "paper": {"ascent_steps": 2_000, "looked": 50_000, "samples": PRINTED_BATCH, "batches": 1_000}
    | {"fresh_data": True, "tested": None},
}


_NARROW = ((1_000, 5_000, 10_000), 3, 150, 3e-4, NARROW_VGG["network"], 250, 200)


def _configurations(scale: str) -> list[Config]:
    found = _cell(_SCALES[scale], _BESIDE.get(scale, {}), scale)
    if scale == "half":
        found += _cell(_NARROW, _BESIDE[scale] | NARROW_VGG, scale)
    return found


def _cell(of: tuple[Any, ...], beside: Config, scale: str) -> list[Config]:
    sizes, seeds, epochs, loss, network, samples, draws = of
    return [
        {
            "data": "digits" if scale == "smoke" else "cifar10",
            "size": size,
            "random": random,
            "seed": seed,
            "epochs": epochs,
            "target_loss": loss,
            "network": network,
            "samples": samples,
            "draws": draws,
            **beside,
        }
        for seed, size, random in product(range(seeds), sizes, (False, True))
    ]


def run(config: Config, sources: Sources) -> Result:
    """Train on so many samples with their own or random labels, and measure."""
    options = dict(config["network"])
    x, y = training_set(config, sources, config["size"])
    if config["random"]:
        y = random_labels(y, 10, config["seed"])
    model = build(options.pop("name"), seed=config["seed"], **options).to(x.device)
    trained = fit(model, x, y, test_set(config, sources), config)
    named = {"name": config["name"]} if "name" in config else {}
    return {**named, "size": config["size"], "random": config["random"], **trained, **look(model, x, y, config)}


def _claims(results: Sequence[Result]) -> list[Verdict]:
    verdicts = []
    for name, own in by_network([r for r in results if r["fitted"]]).items():
        both = at_equal_kl(own)
        random, true = ([r for r in both if r["random"] is is_random] for is_random in (True, False))
        for key, where in ((EQUAL_KL, "KL"), ("expected_sharpness", "noise")):
            claim = f"expected sharpness at equal {where} is larger with random labels"
            verdicts.append(larger(random, true, key, ("seed", "size"), f"{claim}, {name}" if name else claim))
    return verdicts


def _figure(results: Sequence[Result]) -> Figure:
    groups = {}
    for name, own in by_network([r for r in results if r["fitted"]]).items():
        for is_random, said in ((False, "true labels"), (True, "random labels")):
            groups[f"{said}, {name}" if name else said] = [r for r in own if r["random"] is is_random]
    figure, axes = panels(3, 4)
    for panel, (name, title) in zip(axes, ({"test_error": "test error"} | NORMS | SHARPNESS).items(), strict=False):
        draw(panel, groups, "size", name, title, "training samples")
    axes[0].set_ylabel("test error (share of samples)")
    draw_at_sharpness(axes[7], groups, "size", "training samples")
    for panel, (said, own) in zip(axes[8:], groups.items(), strict=False):
        sizes = sorted({r["size"] for r in own})
        of_size = {number(n): [r for r in own if r["size"] == n] for n in sizes}
        draw_curves(panel, of_size, f"bi-criteria, {said}", "training samples")
    for panel in axes[8 + len(groups) :]:
        panel.set_axis_off()
    return figure


STUDY = Study(
    "neyshabur-random-labels",
    "Neyshabur et al. 2017, Fig. 1 and 2",
    "True against random labels: norms over the margin, sharpness",
    ("cifar10",),
    _configurations,
    run,
    _claims,
    _figure,
    {
        "smoke": "60 and 120 digits, a small CNN, 1 seed",
        "cpu": "250 to 2,000 images, a CNN of two convolutions with BatchNorm in place of the VGG, 3 seeds, to "
        "cross-entropy 0.01, sharpness of 250 samples, 2,000 test images (all)",
        "half": "250 to 2,000 images, others for each seed, a CNN of two convolutions with BatchNorm in place of the "
        "VGG, 8 seeds, to cross-entropy 0.01; 12 levels of noise around a sharpness of 0.05, 200 draws (1,000), "
        "sharpness of 250 samples, 2,000 test images (all); beside it a VGG at a quarter of its width on 1,000 to "
        "10,000 images of 16 x 16, 3 seeds, to 0.01 and from there, its momentum begun anew, to 3e-4, at most 150 "
        f"epochs each, all test images; {VGG_DIFFERS}, one pixel here",
        "paper": "at most 1,000 epochs; the sizes are read off the figure, sharpness is of all the images, whose "
        f"number the paper does not print; {VGG_DIFFERS}, 2 x 2 pixels",
    },
)
