"""Shared by W1 Fig. 3, 5 and W2 Fig. 4, 5: one small network, batch size or learning rate varied, gap and pacGen.

The papers train for equal epochs, where a large batch or a small rate takes fewer or shorter steps and stays
under-trained, which alone changes the gap; beside it every network is trained to equal loss. The papers' diagonal of
squared mini-batch gradients is about Fisher / batch (erratum W-n), so pacGen is computed with it and with the
Gauss-Newton diagonal, which is unbiased. Note: with either, and the library's rho (the largest change of a diagonal
over the step's length), kappa decides every term and no curvature enters; Lemma 3's own form, which has eta = n in it,
sees the Hessian (`curvature` is the share of terms that do), and so may the rho that the papers print, which is divided
by one coordinate of the step (erratum W-m).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from flatminima.core.minimum import Minimum
from flatminima.estimate import Estimate
from flatminima.measures import pacgen
from flatminima.models import build
from flatminima.report.axes import number
from flatminima.studies.images import fresh, images
from flatminima.studies.plot import label, lines, panels
from flatminima.studies.resumable import train
from flatminima.studies.study import Config, Result, Sources, Study, is_first
from flatminima.studies.verdict import Verdict, trend
from flatminima.training import TrainConfig, evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDES = {"mnist": 28, "cifar10": 32}
_MARKS = 4  # epochs at which the curves are measured
_PAPERS = "pacgen_batch_gradient"
_PRINTED_RHO = "pacgen_printed_rho"  # the papers' diagonal and their rho; where "printed_rho" asks for it
OF_PSI = (  # what every scale's reduction says
    "; pacGen with the printed rho (erratum W-m; at paper scale at equal epochs alone) beside the library's rho, and "
    "squared batch gradients "
    "averaged at the final weights (the papers: along training, with beta 0.999)"
)
_FORMS = {
    _PRINTED_RHO: "printed rho",
    _PAPERS: "squared batch gradients",
    "pacgen": "Gauss-Newton",
    "pacgen_lemma3": "Lemma 3, eta = n",
}
_NAMES = {"batch_size": "batch size", "lr": "learning rate"}


@dataclass(frozen=True)
class Scale:
    """Settings of one scale: values of what varies, seeds, epochs, most epochs to equal loss, that loss, samples.

    `look_every`: steps from one look at that loss to the next, beside the end of each epoch. `channels_last`: images
    and weights in that memory format, 1.3 times as fast. `fresh_data`: other samples for each seed. `curves`: the
    curves by epoch of every seed, with the printed rho; else of the first, with the library's.
    """

    values: tuple[float, ...]
    seeds: int
    epochs: int
    most: int
    loss: float
    limit: int | None
    look_every: int | None = None
    channels_last: bool = False
    fresh_data: bool = False
    curves: bool = False


@dataclass(frozen=True)
class Variation:
    """A figure: the data set, what varies, what is held, and the papers' direction of the gap along it."""

    dataset: str
    vary: str
    held: dict[str, Any]
    sign: int
    scales: dict[str, Scale]

    def configurations(self, scale: str) -> list[Config]:
        """List runs by seed, by equal epochs and equal loss, by value."""
        s = self.scales[scale]
        return [
            {
                "data": "digits" if scale == "smoke" else self.dataset,
                "vary": self.vary,
                **self.held,
                self.vary: value,
                "seed": seed,
                "epochs": s.most if equal_loss else s.epochs,
                "target_loss": s.loss if equal_loss else None,
                **({"look_every": s.look_every} if equal_loss and s.look_every else {}),
                **({"channels_last": True} if s.channels_last else {}),
                **({"fresh_data": True} if s.fresh_data else {}),
                **({"printed_rho": True} if scale != "paper" or not equal_loss else {}),
                **({"curves": True} if s.curves and not equal_loss else {}),
                "limit": s.limit,
                "samples": 50 if scale == "smoke" else 300,
            }
            for seed, equal_loss, value in product(range(s.seeds), (False, True), s.values)
        ]

    def claims(self, results: Sequence[Result]) -> list[Verdict]:
        """Comparisons beside the papers' sentences: the same at equal loss, and with other forms of the metric."""
        way = "grows with" if self.sign > 0 else "grows as it shrinks, with"
        verdicts = []
        for equal_loss, said in ((False, "equal epochs"), (True, "equal loss")):
            own = [r for r in results if r["equal_loss"] is equal_loss and r["reached"]]
            if equal_loss:
                for of, key in (("loss", "gap"), ("error", "error_gap")):
                    claim = f"the gap of the {of} {way} the {_NAMES[self.vary]}, at {said}"
                    verdicts.append(self._along(claim, own, key))
            for key, form in _FORMS.items():
                having = [r for r in own if key in r]
                if having and (equal_loss or key != _PRINTED_RHO):  # that one at equal epochs is the papers' claim
                    claim = f"pacGen ({form}) {way} the {_NAMES[self.vary]}, at {said}"
                    follows = f"pacGen ({form}) goes with the gap, at {said}"
                    psi, gaps, seeds = ([r[column] for r in having] for column in (key, "gap", "seed"))
                    verdicts.append(self._along(claim, having, key))
                    verdicts.append(trend(follows, psi, gaps, seeds=seeds, control=True))
        return verdicts

    def _along(self, claim: str, own: Sequence[Result], key: str) -> Verdict:
        x, y, seeds = [math.log2(r[self.vary]) for r in own], [r[key] for r in own], [r["seed"] for r in own]
        return trend(claim, x, y, seeds=seeds, sign=self.sign, control=True)

    def figure(self, results: Sequence[Result]) -> Figure:
        """Draw by epoch as in the papers; then the end of training by what varies."""
        figure, axes = panels(3, 2)
        followed = [r for r in results if r["curve"]]
        for index, value in enumerate(sorted({float(r[self.vary]) for r in followed})):
            points = [point for r in followed if r[self.vary] == value for point in r["curve"]]
            for panel, column in ((axes[0], 1), (axes[1], 2)):
                epochs, values = [p[0] for p in points], [p[column] for p in points]
                lines(panel, epochs, values, label=number(value), index=index)
        shown = _PRINTED_RHO if any(_PRINTED_RHO in r for r in results) else _PAPERS
        for equal_loss, said in ((False, "equal epochs"), (True, "to equal loss")):
            own = [r for r in results if r["equal_loss"] is equal_loss and r["reached"]]
            for panel, key in zip(axes[2:], ("train_loss", "gap", shown, "pacgen_lemma3"), strict=True):
                points = [(r[self.vary], r[key]) for r in own if key in r]
                if points:
                    x, y = zip(*points, strict=True)
                    lines(panel, x, y, label=said, index=int(equal_loss), dashed=equal_loss)
        name = _NAMES[self.vary]
        of = "" if len({r["seed"] for r in followed}) > 1 else ", one seed"
        rho = _FORMS[_PRINTED_RHO] if any(r.get("curve_of") == _PRINTED_RHO for r in followed) else "library's rho"
        label(axes[0], "epoch", "test minus training loss (nats)", f"gap{of}", legend=name)
        label(axes[1], "epoch", "pacGen (nats)", f"pacGen, {rho}{of}", legend=name)
        at_the_end = (
            ("training loss (nats)", "training loss at the end"),
            ("test minus training loss (nats)", "gap at the end"),
            ("pacGen (nats)", f"pacGen, {_FORMS[shown]}"),
            ("pacGen (nats)", "pacGen, Lemma 3 with eta = n"),
        )
        for panel, (unit, title) in zip(axes[2:], at_the_end, strict=True):
            label(panel, name, unit, title, log_x=True, legend="trained")
        return figure


def study(name: str, paper: str, title: str, variation: Variation, reduction: dict[str, str]) -> Study:
    """The Study of a variation; what pacGen is here is added to what each scale reduces."""
    return Study(
        name,
        paper,
        title,
        (variation.dataset,),
        variation.configurations,
        run,
        variation.claims,
        variation.figure,
        {scale: said + OF_PSI for scale, said in reduction.items()},
    )


def run(config: Config, sources: Sources) -> Result:
    """Train PyTorch's 2018 MNIST example network without dropout and measure pacGen on the training set."""
    size = _SIDES.get(config["data"])
    source = sources[config["data"]]
    if config.get("fresh_data"):
        x, y = fresh(source, config["limit"], config["seed"], size)
    else:
        x, y = images(source, "train", config["limit"], size)
    test = images(source, "test", None, size)
    model = _network(x, config["seed"])
    recipe = TrainConfig(
        lr=config["lr"],
        momentum=0.0,
        batch_size=min(config["batch_size"], len(x)),
        epochs=config["epochs"],
        target_loss=config["target_loss"],
        look_every=config.get("look_every"),
        channels_last=config.get("channels_last", False),
        seed=config["seed"],
    )
    marks = {max(1, config["epochs"] * k // _MARKS) - 1 for k in range(_MARKS + 1)}
    psi, drawn = _psi(config, x, y), _PRINTED_RHO if config.get("curves") else _PAPERS
    followed = config["target_loss"] is None and (config.get("curves") or is_first(config["seed"]))

    def follow(epoch: int, model: nn.Module) -> list[float] | None:
        if not followed or epoch not in marks:
            return None
        gap = evaluate(model, *test).loss - evaluate(model, x, y).loss
        return [epoch + 1, gap, float(psi(model, drawn)[drawn])]

    _, curve = train(model, x, y, config=recipe, follow=follow)
    own, held_out, found = evaluate(model, x, y), evaluate(model, *test), psi(model)
    return {
        "batch_size": config["batch_size"],
        "lr": config["lr"],
        "seed": config["seed"],
        "equal_loss": config["target_loss"] is not None,
        "reached": config["target_loss"] is None or own.loss < config["target_loss"],
        "train_loss": own.loss,
        "gap": held_out.loss - own.loss,
        "error_gap": held_out.error - own.error,
        **{name: float(estimate) for name, estimate in found.items()},
        "curvature": {name: estimate.details["curvature_bound"] for name, estimate in found.items()},
        "curve": curve,
        **({"curve_of": drawn} if curve else {}),
    }


def _network(x: Tensor, seed: int) -> nn.Module:
    if x.shape[-1] < 16:  # the embedded digits are 8 x 8
        return build("mlp", seed=seed, widths=(x[0].numel(), 32, 10)).to(x.device)
    return build("mnist_cnn", seed=seed, channels=x.shape[1], image_size=x.shape[-1]).to(x.device)


def _psi(config: Config, x: Tensor, y: Tensor) -> Callable[..., dict[str, Estimate]]:
    """pacGen in its forms, or in those named; the papers' take the training's own batch. Draws are the same for all."""
    seen, seed = config["samples"], config["seed"]
    batch = min(config["batch_size"], len(x))

    def psi(model: nn.Module, *names: str) -> dict[str, Estimate]:
        minimum = Minimum(model.eval(), (x, y), seed=seed)
        papers = partial(pacgen, minimum, diagonal="batch_gradient", samples=None, batch=batch)
        forms = {
            _PAPERS: papers,
            **({_PRINTED_RHO: partial(papers, rho="paper")} if config.get("printed_rho") else {}),
            "pacgen": partial(pacgen, minimum, samples=seen),
            "pacgen_lemma3": partial(pacgen, minimum, samples=seen, variant="lemma3", eta=float(len(x))),
        }
        return {name: form() for name, form in forms.items() if not names or name in names}

    return psi
