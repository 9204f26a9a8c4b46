"""N17 Fig. 3: minima of the same true data that generalize worse and worse, by a growing confusion set.

Each network fits all true samples and, with them, a confusion set with random labels. What explains generalization must
rise with the confusion set, as the test error does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from flatminima.data import append_confusion
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
    draw_errors,
    fit,
    half,
    look,
    rising,
    test_set,
    training_set,
)
from flatminima.studies.plot import panels
from flatminima.studies.study import Config, Result, Sources, Study
from flatminima.studies.verdict import Verdict
from flatminima.training import evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# true samples, sizes of the confusion set, seeds, epochs, target loss, network, samples and draws of the sharpness
_SCALES = {
    "smoke": (80, (0, 20, 40), 1, 20, 0.05, {"name": "small_cnn", "channels": 1, "image_size": 8, "width": 4}, 60, 2),
    "cpu": (
        1_000,
        (0, 125, 250, 500, 1_000),
        3,
        150,
        1e-2,
        {"name": "small_cnn", "channels": 3, "image_size": 32, "width": 16, "norm": "batch"},
        250,
        10,
    ),
    "half": (
        1_000,
        (0, 250, 500, 1_000),
        8,
        150,
        1e-2,
        {"name": "small_cnn", "channels": 3, "image_size": 32, "width": 16, "norm": "batch"},
        250,
        200,
    ),
    "paper": (10_000, (0, 1_000, 2_000, 3_000, 4_000, 5_000), 5, 1_000, 1e-4, {"name": "vgg"}, 10_000, 1_000),
}
_BESIDE: dict[str, Config] = {
    "half": {"looked": 250, **half(200, 20, (2e-3, 1.5e-2))},
    "paper": {"ascent_steps": 2_000, "looked": 10_000, "samples": PRINTED_BATCH, "batches": 1_000}
    | {"fresh_data": True, "tested": None},
}


_NARROW = (10_000, (0, 1_000, 3_000, 5_000), 3, 150, 3e-4, NARROW_VGG["network"], 250, 200)


def _configurations(scale: str) -> list[Config]:
    found = _cell(_SCALES[scale], _BESIDE.get(scale, {}), scale)
    if scale == "half":
        found += _cell(_NARROW, _BESIDE[scale] | NARROW_VGG, scale)
    return found


def _cell(of: tuple[Any, ...], beside: Config, scale: str) -> list[Config]:
    true, sizes, seeds, epochs, loss, network, samples, draws = of
    return [
        {
            "data": "digits" if scale == "smoke" else "cifar10",
            "true": true,
            "confusion": size,
            "most": max(sizes),
            "seed": seed,
            "epochs": epochs,
            "target_loss": loss,
            "network": network,
            "samples": samples,
            "draws": draws,
            **beside,
        }
        for seed, size in product(range(seeds), sizes)
    ]


def run(config: Config, sources: Sources) -> Result:
    """Train on the true samples and a confusion set, and measure on the true samples, as the paper does."""
    options, true = dict(config["network"]), config["true"]
    x, y = training_set(config, sources, true + config["most"])
    both = append_confusion(x[:true], y[:true], x[true:], config["confusion"], 10, config["seed"])
    model = build(options.pop("name"), seed=config["seed"], **options).to(x.device)
    trained = fit(model, *both, test_set(config, sources), config)
    own = {"true_error": evaluate(model, x[:true], y[:true]).error}
    named = {"name": config["name"]} if "name" in config else {}
    return {**named, "confusion": config["confusion"], **trained, **own, **look(model, x[:true], y[:true], config)}


def _claims(results: Sequence[Result]) -> list[Verdict]:
    verdicts = []
    for name, own in by_network([r for r in results if r["fitted"]]).items():
        of = f", {name}" if name else ""
        same, equal = (f"expected sharpness at equal {of_what} grows with the set{of}" for of_what in ("noise", "KL"))
        verdicts.append(rising(own, "confusion", "expected_sharpness", same))
        verdicts.append(rising(at_equal_kl(own), "confusion", EQUAL_KL, equal))
    return verdicts


def _figure(results: Sequence[Result]) -> Figure:
    fitted, said = by_network([r for r in results if r["fitted"]]), "size of the confusion set"
    figure, axes = panels(4 if len(fitted) > 1 else 3, 3)
    draw_errors(axes[0], by_network(results), "confusion", said, log_x=False)
    for panel, (name, title) in zip(axes[1:], (NORMS | SHARPNESS).items(), strict=False):
        draw(panel, fitted, "confusion", name, title, said, log_x=False)
    draw_at_sharpness(axes[7], fitted, "confusion", said, log_x=False)
    for panel, (name, own) in zip(axes[8:], fitted.items(), strict=False):
        sizes = sorted({r["confusion"] for r in own})
        of_size = {number(size): [r for r in own if r["confusion"] == size] for size in sizes}
        draw_curves(panel, of_size, f"bi-criteria, {name}" if name else "bi-criteria", "size of the\nconfusion set")
    for panel in axes[8 + max(1, len(fitted)) :]:
        panel.set_axis_off()
    return figure


STUDY = Study(
    "neyshabur-confusion",
    "Neyshabur et al. 2017, Fig. 3",
    "Measures of minima that a confusion set made worse",
    ("cifar10",),
    _configurations,
    run,
    _claims,
    _figure,
    {
        "smoke": "80 digits and up to 40 confused, a small CNN, 1 seed",
        "cpu": "1,000 images, confusion 0 to 1,000, a CNN of two convolutions with BatchNorm for the VGG, 3 seeds, to "
        "loss 0.01, sharpness of 250 samples, 2,000 test images (all)",
        "half": "1,000 images, others for each seed, confusion 0 to 1,000, a CNN of two convolutions with BatchNorm "
        "for the VGG, 8 seeds, to loss 0.01; 12 levels of noise around a sharpness of 0.05, 200 draws (1,000), "
        "sharpness of 250 samples, 2,000 test images (all); beside it a VGG at a quarter of its width on 10,000 images "
        "of 16 x 16, confusion 0 to 5,000 in four sizes (six), 3 seeds, to 0.01 and from there, its momentum begun "
        f"anew, to 3e-4, at most 150 epochs each, all test images; {VGG_DIFFERS}, one pixel here",
        "paper": "at most 1,000 epochs; sharpness is of all the true images, as the paper does not print of how many; "
        f"{VGG_DIFFERS}, 2 x 2 pixels",
    },
)
