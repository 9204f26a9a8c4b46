"""N17 Fig. 4: a two-layer ReLU network, wider and wider: test error, norms over the margin, sharpness.

The test error keeps falling beyond the width that fits the data, which no count of parameters explains; a measure that
does would fall with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from flatminima.models import build
from flatminima.report.axes import number
from flatminima.studies._neyshabur import (
    EQUAL_KL,
    NORMS,
    SHARPNESS,
    at_equal_kl,
    draw,
    draw_at_sharpness,
    draw_curves,
    draw_errors,
    fit,
    half,
    look,
    rising,
    training_set,
)
from flatminima.studies.images import images
from flatminima.studies.plot import panels
from flatminima.studies.study import Config, Result, Sources, Study
from flatminima.studies.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# widths, seeds, epochs, target loss, training samples, samples and draws of the sharpness
_SCALES = {
    "smoke": ((8, 32, 128), 1, 6, 1e-3, 300, 64, 2),
    "cpu": ((8, 16, 32, 64, 128, 256, 512), 5, 250, 1e-2, 3_000, 300, 10),
    "half": ((8, 16, 32, 64, 128, 256, 512, 1_024), 10, 250, 1e-2, 3_000, 300, 200),
    "paper": (tuple(2**k for k in range(3, 13)), 3, 200, 1e-4, None, 10_000, 50),
}


def _configurations(scale: str) -> list[Config]:
    widths, seeds, epochs, loss, limit, samples, draws = _SCALES[scale]
    return [
        {
            "data": "digits" if scale == "smoke" else "mnist",
            "width": width,
            "seed": seed,
            "epochs": epochs,
            "target_loss": loss,
            "limit": limit,
            "samples": samples,
            "draws": draws,
            **({"looked": samples, **half(draws, 20, (3e-3, 0.1))} if scale == "half" else {}),
        }
        for seed, width in product(range(seeds), widths)
    ]


def run(config: Config, sources: Sources) -> Result:
    """Train one width and measure it."""
    source = sources[config["data"]]
    x, y = training_set(config, sources, config["limit"])
    model = build("mlp", seed=config["seed"], widths=(x[0].numel(), config["width"], 10)).to(x.device)
    trained = fit(model, x, y, images(source, "test"), config)
    return {"width": config["width"], **trained, **look(model, x, y, config)}


def _claims(results: Sequence[Result]) -> list[Verdict]:
    fitted = [r | {"doublings": math.log2(r["width"])} for r in results if r["fitted"]]
    claim = "expected sharpness at equal KL falls with each doubling of the width"
    return [
        *(
            rising(fitted, "doublings", name, f"{title} falls with each doubling of the width", sign=-1)
            for name, title in SHARPNESS.items()
        ),
        rising(at_equal_kl(fitted), "doublings", EQUAL_KL, claim, sign=-1),
    ]


def _figure(results: Sequence[Result]) -> Figure:
    figure, axes = panels(3, 3)
    fitted = [r for r in results if r["fitted"]]
    widths, groups = sorted({r["width"] for r in fitted}), {"": fitted}
    draw_errors(axes[0], {"": results}, "width", "hidden units")
    for panel, (name, title) in zip(axes[1:], (NORMS | SHARPNESS).items(), strict=False):
        draw(panel, groups, "width", name, title, "hidden units")
    of_width = {number(w): [r for r in fitted if r["width"] == w] for w in widths[::2]}
    draw_curves(axes[7], of_width, legend="hidden units")
    draw_at_sharpness(axes[8], groups, "width", "hidden units")
    return figure


STUDY = Study(
    "neyshabur-width",
    "Neyshabur et al. 2017, Fig. 4",
    "Test error and measures against the width of a two-layer network",
    ("mnist",),
    _configurations,
    run,
    _claims,
    _figure,
    {
        "smoke": "widths 8, 32, 128, 1 seed, 300 digits, 6 epochs",
        "cpu": "widths 8 to 512, 5 seeds, 3,000 samples, to cross-entropy 0.01 within 250 epochs (paper: 1e-4), "
        "sharpness of 300 samples",
        "half": "widths 8 to 1,024, 10 seeds, 3,000 samples, others for each seed, to cross-entropy 0.01 within 250 "
        "epochs (paper: 1e-4); 12 levels of noise around a sharpness of 0.05, 200 draws (1,000), sharpness of "
        "300 samples",
        "paper": "3 seeds, at most 200 epochs, in which no network comes to 1e-4 (from 32 units on they end at 3.9e-4 "
        "to 1.4e-3); 50 draws of the noise on 10,000 samples, and no projected ascent, for the time they take; its "
        "noise (alpha up to 0.01) costs no network that fits a sharpness of 0.05, at which the paper reads the curves",
    },
)
