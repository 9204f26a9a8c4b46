"""N17 Fig. 5 to 8: do the conditions hold, under which Theorem 1 bounds the sharpness, for learned and random weights?

The network is a chain of linear layers with ReLU and no biases. C1 asks for layers that act in different directions
(1/mu small), C2 for few inputs of units near zero, C3 for active units that carry their share of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from flatminima import measures
from flatminima.core.minimum import Minimum
from flatminima.models import build
from flatminima.report.theme import PALETTE
from flatminima.statistics import Conditions
from flatminima.studies._neyshabur import fit
from flatminima.studies._neyshabur_histograms import GROUPS, draw, histograms
from flatminima.studies.images import images
from flatminima.studies.plot import label, panels, plain_numbers
from flatminima.studies.study import Config, Result, Sources, Study
from flatminima.studies.verdict import Verdict, compare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# width, seeds, epochs, target loss, training samples, samples looked at
_SCALES = {
    "smoke": (16, 1, 3, 0.05, 200, 3),
    "cpu": (1_000, 3, 40, 1e-3, 6_000, 12),
    "paper": (1_000, 3, 1_000, 1e-4, None, 100),
}
DEPTH = 10
_DELTAS = (0.01, 0.03, 0.1, 0.3)  # of Fig. 5 and 7, where perturbations are not smaller and pixels lie in [0, 1]
_BINS = 30


def _configurations(scale: str) -> list[Config]:
    width, seeds, epochs, loss, limit, samples = _SCALES[scale]
    return [
        {
            "data": "digits" if scale == "smoke" else "mnist",
            "width": width,
            "learned": learned,
            "seed": seed,
            "epochs": epochs,
            "target_loss": loss,
            "limit": limit,
            "samples": samples,
        }
        for seed, learned in product(range(seeds), (True, False))
    ]


def run(config: Config, sources: Sources) -> Result:
    """He et al.'s weights, learned or not; the constants of the three conditions at each sample."""
    source = sources[config["data"]]
    x, y = images(source, "train", config["limit"])
    widths = (x[0].numel(), *[config["width"]] * (DEPTH - 1), 10)
    model = build("mlp", seed=config["seed"], widths=widths, bias=False)
    generator = torch.Generator().manual_seed(config["seed"])
    for module in model.modules():
        if isinstance(module, nn.Linear):  # torch's own start shrinks the signal by sqrt(6) a layer
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
    model.to(x.device)
    trained = fit(model, x, y, images(source, "test"), config) if config["learned"] else {"seed": config["seed"]}
    minimum = Minimum(model.eval(), (x, y), seed=config["seed"])
    found = measures.conditions(minimum, samples=config["samples"])
    looked = x[minimum.samples.order(config["seed"])[: config["samples"]]]
    return {
        "learned": config["learned"],
        **trained,
        "mean_log_inverse_mu": found.value,
        "undefined": found.undefined,
        **{key: found.details.get(key) for key in ("inverse_mu", "c2", "c3", "c2_mean", "c3_mean")},
        "by_sample": None if found.value is None else _by_sample(minimum, config["samples"]),
        "c2_figure": c2_of_the_figure(model, looked),
        "histograms": histograms([w.detach() for w in model.parameters()], looked.flatten(1)),
    }


def c2_of_the_figure(model: nn.Module, x: Tensor) -> float:
    """Largest share of a layer's ReLU inputs within delta of zero, over delta, at a sample: C2 as Fig. 5 and 7 have it.

    Args:
        model: a chain whose ReLU are modules. x: samples (n, ...) with entries in [0, 1].

    Returns:
        The maximum over samples, layers and `_DELTAS`. The condition itself, `measures.conditions`, asks for every
        delta, where one input of a thousand near zero decides.
    """
    found: list[float] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        near = [(inputs[0].abs() <= delta).double().mean(1).max().item() / delta for delta in _DELTAS]
        found.append(max(near))

    handles = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, nn.ReLU)]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return max(found)


def _by_sample(minimum: Minimum, samples: int) -> dict[str, list[float]]:
    """The constants of each sample looked at, to four digits: what the paper's histograms count."""
    found = minimum[Conditions(samples, minimum.seed)]
    return {name: [float(f"{v:.4g}") for v in getattr(found, name).tolist()] for name in ("inverse_mu", "c2", "c3")}


def _claims(results: Sequence[Result]) -> list[Verdict]:
    own = [r for r in results if r["mean_log_inverse_mu"] is not None]
    learned, random = ([r for r in own if r["learned"] is is_learned] for is_learned in (True, False))
    verdicts = []
    pairs = {r["seed"]: r for r in random}
    both = [(r, pairs[r["seed"]]) for r in learned if r["seed"] in pairs]
    for key, said in (
        ("mean_log_inverse_mu", "C1: ln(1/mu)"),
        ("c2_mean", "C2: the constant"),
        ("c3_mean", "C3: the constant"),
    ):
        claim = f"{said} is smaller for learned than for random weights"
        verdicts.append(compare(claim, [a[key] for a, _ in both], [b[key] for _, b in both], control=True))
    return verdicts


def _figure(results: Sequence[Result]) -> Figure:
    """Fig. 5 to 8; where no run has histograms of all ratios, one over samples and seeds of each constant."""
    whole = [r for r in results if "histograms" in r]
    if whole:
        return draw(whole)
    figure, axes = panels(3)
    figure.suptitle("runs of an older version: Fig. 6 and 7 are missing, and C2 is not as in Fig. 5", fontsize=10)
    own = [r for r in results if r["by_sample"] is not None]
    names = (
        ("inverse_mu", "1 / mu", "C1: 1 / mu"),
        ("c2", "constant of C2", "C2 for every delta (stricter than Fig. 5)"),
        ("c3", "constant of C3", "C3"),
    )
    for panel, (name, said, title) in zip(axes, names, strict=True):
        values = [
            [v for r in own if r["learned"] is (group == "learned") for v in r["by_sample"][name]] for group in GROUPS
        ]
        everything = np.concatenate(values)
        if name == "c2":  # over decades
            panel.set_xscale("log")
            edges = np.geomspace(everything.min(), everything.max(), _BINS)
        else:
            edges = np.linspace(everything.min(), everything.max(), _BINS)
        for index, (group, of_group) in enumerate(zip(GROUPS, values, strict=True)):
            panel.hist(of_group, bins=list(edges), label=group, color=PALETTE[index], alpha=0.6)
        label(panel, said, "samples", title, legend="weights")
        if name == "c2":
            plain_numbers(panel, "x")
    return figure


STUDY = Study(
    "neyshabur-conditions",
    "Neyshabur et al. 2017, Fig. 5 to 8",
    "The conditions of Theorem 1 for learned and random weights",
    ("mnist",),
    _configurations,
    run,
    _claims,
    _figure,
    {
        "smoke": "10 layers of 16 units, 200 digits, 3 samples looked at",
        "cpu": "6,000 images, to cross-entropy 0.001 (paper: 1e-4), 3 seeds, 12 samples looked at",
        "paper": "3 seeds, 100 samples looked at; the runs in `results/studies` are of an older version, without C2 as "
        "Fig. 5 has it and without the histograms of Fig. 6 and 7",
    },
)
