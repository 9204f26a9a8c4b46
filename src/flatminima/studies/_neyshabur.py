"""Shared by the studies of Neyshabur et al. (2017): their training, and what they look at in a network.

The norms are those of the figures, divided by the margin that 5% of the samples fall below, as natural logarithms of
the capacity (twice the norm's, so that ratios of the paper's figures are differences here).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from flatminima import measures
from flatminima.core.minimum import Minimum
from flatminima.report.axes import number
from flatminima.report.theme import GREY
from flatminima.statistics import Margins
from flatminima.studies.claims.quantities import READ_AT, ln_kl_at
from flatminima.studies.images import fresh, images
from flatminima.studies.plot import colour_and_marker, label, lines, plain_numbers
from flatminima.studies.resumable import train
from flatminima.studies.study import Config, Result, Sources
from flatminima.studies.verdict import Verdict, compare, trend
from flatminima.training import TrainConfig, evaluate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NORMS = {
    "l2": "l2 norm",
    "l1_path": "l1-path norm",
    "l2_path": "l2-path norm",
    "spectral": "spectral norm",
}
SHARPNESS = {"sharpness": "sharpness", "expected_sharpness": "expected sharpness"}
EQUAL_KL = "sharpness_at_equal_kl"
ALPHAS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # of the noise alpha (10 |w| + 1)
SHARPNESS_ALPHA = 5e-4  # of the box alpha (|w| + 1), App. A
PRINTED_BATCH = 64  # samples of a draw of noise, App. A
_TESTED = 2_000  # images of the test set below the paper's scale
_POINTS = 12  # of a bi-criteria curve
_POWERS = 3  # of ten, beyond which every second one has a number
SHARES = (0.001, 0.01, 0.05, 0.1)  # of the samples below a margin; the figures have 0.05


def fit(model: nn.Module, x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], config: dict[str, Any]) -> Result:
    """N17's training: SGD, batch 64, lr 0.01, momentum 0.9, until the cross-entropy is below `target_loss`.

    With "first_loss" to that one first; what follows begins with momentum 0, and may take as many epochs again.
    """
    epochs = 0
    for loss in (config["first_loss"], config["target_loss"]) if "first_loss" in config else (config["target_loss"],):
        recipe = TrainConfig(
            epochs=config["epochs"],
            target_loss=loss,
            channels_last=config.get("channels_last", False),
            seed=config["seed"],
        )
        history, _ = train(model, x, y, config=recipe)
        epochs += len(history.epochs)
    model.eval()
    own, held_out = evaluate(model, x, y), evaluate(model, *test)
    return {
        "seed": config["seed"],
        "epochs": epochs,
        "train_loss": own.loss,
        "train_error": own.error,
        "test_error": held_out.error,
        "fitted": own.error == 0,
    }


def half(draws: int, batches: int, alphas: tuple[float, float]) -> dict[str, Any]:
    """Settings of scale "half" beside those of "cpu": fresh data, noise on batches of 64.

    Args:
        draws: of noise. batches: among which they are shared out. alphas: the least and the largest noise, around an
            expected sharpness of 0.05, at which the paper reads its curves.
    """
    low, high = (math.log(alpha) for alpha in alphas)
    steps = [math.exp(low + (high - low) * k / (_POINTS - 1)) for k in range(_POINTS)]
    found = {"samples": PRINTED_BATCH, "draws": draws, "batches": batches}
    return {"fresh_data": True, **found, "alphas": [float(f"{alpha:.4g}") for alpha in steps]}


# beside the CNN of scale "half": the paper's network and number of images, both smaller
NARROW_VGG: Config = {
    "name": "VGG",
    "network": {"name": "vgg", "width": 16},
    "side": 16,
    "tested": None,
    "channels_last": True,
    "first_loss": 1e-2,  # where 0.2 % of 10,000 images may be wrong still
}

# in what `models.vgg` is not App. A's network, for `reduction`
VGG_DIFFERS = (
    "the VGG has no dropout, whose rate the paper does not print (after each stack), and averages, in the place of "
    "4 x 4, over what its four max-pools leave"
)


def training_set(config: Config, sources: Sources, limit: int | None) -> tuple[Tensor, Tensor]:
    """So many training samples: the same in every run, or, with "fresh_data", others for each seed."""
    if config.get("fresh_data") and limit is not None:
        return fresh(sources[config["data"]], limit, config["seed"], config.get("side"))
    return images(sources[config["data"]], "train", limit)


def test_set(config: Config, sources: Sources) -> tuple[Tensor, Tensor]:
    """The test images, as large as the training's: all of them where "tested" is None, else so many, or 2,000."""
    return images(sources[config["data"]], "test", config.get("tested", _TESTED), config.get("side"))


def by_network(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs by network: the CNN of two convolutions, which has no name in them, and the VGG; "" of one alone."""
    found: dict[str, list[Result]] = {}
    for r in results:
        found.setdefault(r.get("name", "CNN"), []).append(r)
    return found if len(found) > 1 else {"": list(results)}


def look(model: nn.Module, x: Tensor, y: Tensor, config: Config) -> Result:
    """The four norms over the margin, sharpness, and the bi-criteria curve, None where undefined.

    Sharpness is by the search over corners; with "ascent_steps" also by the paper's projected ascent of so many. With
    "batches" the draws of noise of the curve are shared out among so many batches of "samples".
    """
    seed, draws, samples = config["seed"], config["draws"], config["samples"]
    ascent_steps, seen = config.get("ascent_steps"), config.get("looked", samples)
    minimum = Minimum(model.eval(), (x, y), seed=seed)
    ascent: Result = {}
    if ascent_steps is not None:
        of: dict[str, Any] = {"method": "ascent", "steps": ascent_steps, "samples": seen}
        ascent = {"sharpness_by_ascent": measures.sharpness(minimum, alpha=SHARPNESS_ALPHA, **of).value}
    alphas = config.get("alphas", ALPHAS)
    curve = curve_over_batches(minimum, alphas, draws=draws, samples=samples, batches=config.get("batches", 1))
    return {
        "l2": measures.frobenius_norm(minimum, normalise="figure").value,
        "l1_path": measures.path_norm(minimum, p=1, normalise="figure").value,
        "l2_path": measures.path_norm(minimum, p=2, normalise="figure").value,
        "spectral": measures.spectral_norm(minimum, normalise="figure").value,
        "sharpness": measures.sharpness(minimum, alpha=SHARPNESS_ALPHA, samples=seen).value,
        "expected_sharpness": measures.expected_sharpness(minimum, alpha=1e-3, draws=draws, samples=samples).value,
        "curve": curve,
        **_ln_margins(minimum),
        **ascent,
    }


def curve_over_batches(
    minimum: Minimum, alphas: Sequence[float], *, draws: int, samples: int, batches: int
) -> list[dict[str, float]]:
    """The bi-criteria curve with its draws shared out among batches of samples, each batch and its noise its own.

    Args:
        draws: of all batches together, a multiple of `batches`. samples: of a batch.

    Returns:
        Points {"alpha", "sharpness", "stderr", "kl"}, least alpha first; only those that every batch has. The standard
        error is over batches, so that it has the samples' part too; of one batch it is that of the draws.
    """
    each: dict[float, list[dict[str, float]]] = {}
    for batch in range(batches):
        seed = minimum.seed if batches == 1 else minimum.seed * batches + batch
        own = measures.bicriteria(minimum, alphas=alphas, draws=draws // batches, samples=samples, seed=seed)
        for point in own.details.get("curve", []):
            each.setdefault(point["alpha"], []).append(point)
    found = []
    for _, points in sorted(each.items()):
        if len(points) < batches:
            continue
        rises = [p["sharpness"] for p in points]
        error = stdev(rises) / math.sqrt(batches) if batches > 1 else points[0]["stderr"]
        found.append({**points[0], "sharpness": fmean(rises), "stderr": error})
    return found


def _ln_margins(minimum: Minimum) -> Result:
    """ln of the margins that shares of the samples fall below, and of the mean margin; None of what is not positive."""
    values = {f"{share:g}": measures.margin(minimum, fraction=share).value for share in SHARES}
    values["mean"] = float(minimum[Margins()].values.mean())
    return {f"ln_margin_{name}": math.log(v) if v is not None and v > 0 else None for name, v in values.items()}


def at_equal_kl(results: Sequence[Result]) -> list[Result]:
    """The results with the height of each bi-criteria curve at one KL: expected sharpness of equally probable noise.

    The KL is the least that all curves reach, where the noise is largest and the rise best resolved; between the points
    of a curve logarithms are interpolated. None where a curve does not have that KL between two points.
    """
    curves = [sorted((p["kl"], p["sharpness"]) for p in r["curve"] if p["sharpness"] > 0) for r in results]
    place = max((curve[0][0] for curve in curves if curve), default=0.0)
    return [{**r, EQUAL_KL: _height(curve, place)} for r, curve in zip(results, curves, strict=True)]


def _height(curve: Sequence[tuple[float, float]], kl: float) -> float | None:
    for (low, first), (high, second) in pairwise(curve):
        if low <= kl <= high:
            part = math.log(kl / low) / math.log(high / low)
            return float(first ** (1 - part) * second**part)
    return None


def rising(results: Sequence[Result], x: str, name: str, claim: str, *, sign: int = 1) -> Verdict:
    """`trend` of a quantity along x over the runs where it is defined: a comparison beside the paper's."""
    own = [r for r in results if r[name] is not None]
    seeds = [r["seed"] for r in own]
    return trend(claim, [r[x] for r in own], [r[name] for r in own], seeds=seeds, sign=sign, control=True)


def larger(above: Sequence[Result], below: Sequence[Result], name: str, keys: Sequence[str], claim: str) -> Verdict:
    """`compare` of a quantity between runs that agree in `keys`: a comparison beside the paper's."""
    partner = {tuple(r[k] for k in keys): r[name] for r in below if r[name] is not None}
    pairs = [
        (r[name], partner[at]) for r in above if r[name] is not None and (at := tuple(r[k] for k in keys)) in partner
    ]
    return compare(claim, [a for a, _ in pairs], [b for _, b in pairs], sign=1, control=True)


def draw(
    axes: Axes,
    groups: Mapping[str, Sequence[Result]],
    x: str,
    name: str,
    title: str,
    x_label: str,
    *,
    log_x: bool = True,
) -> None:
    """One panel: a quantity along x, a line a group."""
    for index, (said, results) in enumerate(groups.items()):
        own = [r for r in results if r[name] is not None]
        lines(axes, [r[x] for r in own], [r[name] for r in own], label=said, index=index)
    label(axes, x_label, f"{title if name in SHARPNESS else 'log capacity'} (nats)", title, log_x=log_x)


def draw_errors(
    axes: Axes, groups: Mapping[str, Sequence[Result]], x: str, x_label: str, *, log_x: bool = True
) -> None:
    """The left panel of Fig. 3 and 4: training and test error, two lines a group."""
    kinds = [(group, *error) for group in groups for error in (("test_error", "test"), ("train_error", "training"))]
    for index, (group, name, said) in enumerate(kinds):
        own = groups[group]
        of = f"{said}, {group}" if group else said
        lines(axes, [r[x] for r in own], [r[name] for r in own], label=of, index=index)
    label(axes, x_label, "error (share of samples)", "error", log_x=log_x, legend="error")


def draw_at_sharpness(
    axes: Axes, groups: Mapping[str, Sequence[Result]], x: str, x_label: str, *, log_x: bool = True
) -> None:
    """Reading of the bi-criteria plots as in the paper: KL at an expected sharpness of 0.05, a line a group.

    Networks whose noise never costs so much have no point, and the title tells how many have one.
    """
    every = met = 0
    for index, (said, results) in enumerate(groups.items()):
        read = [(r[x], ln_kl_at(r["curve"], READ_AT)) for r in results]
        own = [(place, kl) for place, kl in read if kl is not None]
        lines(axes, [place for place, _ in own], [kl for _, kl in own], label=said, index=index)
        every, met = every + len(read), met + len(own)
    title = f"KL at expected sharpness {READ_AT:g}"
    if not met:
        axes.set_axis_off()
        short = all(p["sharpness"] < READ_AT for results in groups.values() for r in results for p in r["curve"])
        said = f"{title}:\nnot reached{': the noise is too small' if short else ''}"
        axes.set_title(said, fontsize=10, x=1.0, ha="right")  # no layout makes room for a title
        return
    label(
        axes, x_label, "log KL (nats)", title + (f"\n({met} of {every} reach it)" if met < every else ""), log_x=log_x
    )


def draw_curves(
    axes: Axes, groups: Mapping[str, Sequence[Result]], title: str = "bi-criteria", legend: str = ""
) -> None:
    """The bi-criteria plot: expected sharpness against KL, a line a group: geometric means over its networks.

    Each level of noise is a point; the band is a standard deviation of ln sharpness. A level at which the noise lowers
    the loss of a network has no logarithm there, and is left out of that network.
    """
    for index, (said, results) in enumerate(groups.items()):
        levels: dict[float, list[tuple[float, float]]] = {}
        for point in (p for r in results for p in r["curve"] if p["sharpness"] > 0 and p["kl"] > 0):
            levels.setdefault(point["alpha"], []).append((math.log(point["kl"]), math.log(point["sharpness"])))
        own = [levels[alpha] for alpha in sorted(levels)]
        if own:
            _mean_curve(axes, own, said, index)
    label(axes, "KL (nats)", "expected sharpness (nats)", title, legend=legend)
    if axes.lines:
        axes.axhline(READ_AT, color=GREY, lw=0.8, ls="--")  # where the paper compares the curves
        axes.set(xscale="log", yscale="log")
        plain_numbers(axes, "y")
        low, high = axes.get_xlim()
        powers = [10.0**k for k in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
        shown = powers[:: 1 if len(powers) <= _POWERS else 2]
        axes.set_xticks(shown, [number(power) for power in shown])


def _mean_curve(axes: Axes, levels: Sequence[Sequence[tuple[float, float]]], said: str, index: int) -> None:
    """A line through the means of (ln KL, ln sharpness), level by level."""
    kl = [math.exp(fmean(a for a, _ in level)) for level in levels]
    middle = [fmean(b for _, b in level) for level in levels]
    wide = [stdev(b for _, b in level) if len(level) > 1 else 0.0 for level in levels]
    colour, marker = colour_and_marker(index)
    axes.plot(kl, [math.exp(m) for m in middle], marker=marker, color=colour, label=said, ms=4, lw=1.4)
    low, high = ([math.exp(m + side * w) for m, w in zip(middle, wide, strict=True)] for side in (-1, 1))
    axes.fill_between(kl, low, high, color=colour, alpha=0.18, lw=0)
