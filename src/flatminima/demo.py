"""The demonstration: train a population on digits, measure it, rank the measures, certify the best network.

`run_demo` returns, and writes to ``results.json``, one document (schema 1)::

    schema, kind="demo", seed, quick, seconds
    data: {name, train, test, fingerprint}
    networks: [{name, recipe: {batch_size, lr, label_noise}, train_loss, train_error, test_loss, test_error,
                clean_test_error, gap, epochs, seconds, measures: MeasureTable.to_dict()}]
    ranking: {measure: {tau, low, high, networks, confidence, undefined}}, best first
    best: name of the network with the lowest training error on its own labels among those with clean labels
    certificate: Certificate.to_dict() | {recipe, test_error, gibbs_test_error}
    versions: {flatminima, torch, python}

Label noise is part of what a network is trained on, so its gap is taken where the noise is too: error on test labels
with the same share of noise minus training error. `clean_test_error` is on the true labels. Each network is a file of
its own, named by the hash of its configuration and written whole, so an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima import bounds, budgets, catalog, progress
from flatminima.certification import Certificate, Union, certify_around
from flatminima.certification.division.split import fair_draw
from flatminima.certification.gibbs.posteriors import DiagonalGaussian
from flatminima.certification.gibbs.risk import GibbsRisk, risk_of
from flatminima.core.minimum import Minimum
from flatminima.core.parameters import Parameters
from flatminima.core.samples import TensorSamples
from flatminima.data import corrupt_labels, load_tensors
from flatminima.errors import FlatMinimaError
from flatminima.io import claimed, json_text, make_folder, run_key, versions, write_whole
from flatminima.measuring import measure
from flatminima.models import build
from flatminima.ranking import rank
from flatminima.table import MeasureTable
from flatminima.training import TrainConfig, evaluate, train
from flatminima.untrusted import read_json

_SCHEMA = 1
WIDTHS = (64, 96, 10)
_CLASSES = 10
BATCH_SIZES = (16, 64, 256)
LEARNING_RATES = (0.02, 0.08)
LABEL_NOISE = (0.0, 0.1, 0.2)
SIGMAS = (0.01, 0.02, 0.04, 0.08)  # of prior and posterior: a grid fixed here, paid for by a union bound
PRIOR_SHARE = 0.5  # of the training samples
_BOUND_MULTIPLE = 64  # the bound's samples come in whole batches, each a draw of the weights
_FINE_TUNE_EPOCHS = 3
_STEPS, _TRAIN = 2_000, 1_257  # at most: equal steps, not epochs, since large batches would stay under-trained
_PILOT, _DRAWS = 300, 20_000  # draws of the weights, to choose the posterior and to certify it
_IMAGES_A_DRAW = 32


@dataclass(frozen=True)
class _Recipe:
    """Recipe by which one network of the population is trained."""

    batch_size: int
    lr: float
    label_noise: float
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        return f"b{self.batch_size}-lr{self.lr:g}-noise{self.label_noise:g}"

    def config(self) -> TrainConfig:
        return TrainConfig(lr=self.lr, batch_size=self.batch_size, epochs=self.epochs, target_loss=0.01, seed=self.seed)

    def network(self) -> nn.Module:
        return build("mlp", seed=self.seed, widths=WIDTHS)


def recipes(seed: int, quick: bool) -> list[_Recipe]:
    """The population: eighteen networks, or four quick ones."""
    if quick:
        grid: Iterator[tuple[int, float, float]] = product((16, 256), (0.08,), LABEL_NOISE[:2])
    else:
        grid = product(BATCH_SIZES, LEARNING_RATES, LABEL_NOISE)
    return [_Recipe(b, lr, noise, 6 if quick else _STEPS * b // _TRAIN, seed) for b, lr, noise in grid]


def run_demo(output: str | Path, *, seed: int = 0, quick: bool = False, fresh: bool = False) -> dict[str, Any]:
    """Run the demonstration, or what of it is not done yet, and write ``results.json``.

    Args:
        output: folder for everything that is written; made if absent.
        seed: of initial weights, batches, label noise, subsets and draws.
        quick: four networks and fewer samples, for tests.
        fresh: do not reuse what an earlier run left in `output`.

    Returns:
        The document described above.

    Raises:
        UsageError: the folder cannot be written.
    """
    threads = torch.get_num_threads()
    with claimed(Path(output)) as folder:
        make_folder(folder / "networks")
        torch.set_num_threads(1)  # faster for networks this small, and the same numbers on every machine's core count
        try:
            return _run(folder, seed, quick, fresh)
        finally:
            torch.set_num_threads(threads)


def _run(folder: Path, seed: int, quick: bool, fresh: bool) -> dict[str, Any]:
    started = time.perf_counter()
    limit = 400 if quick else None
    x, y = load_tensors("digits", "train", limit=limit)
    test = load_tensors("digits", "test")
    population = recipes(seed, quick)
    networks = []
    progress.report(f"train and measure {len(population)} networks", 0, len(population))
    for i, recipe in enumerate(population):
        networks.append(_network(recipe, x, y, test, folder, quick, fresh))
        progress.report(f"train and measure {len(population)} networks", i + 1, len(population))
    tables = [MeasureTable.from_dict(network["measures"]) for network in networks]
    ranking = rank(tables, [network["gap"] for network in networks], seed=seed)
    clean = [i for i, recipe in enumerate(population) if recipe.label_noise == 0]
    best = min(clean, key=lambda i: (networks[i]["train_error"], networks[i]["train_loss"]))
    certificate, errors = _certify(population[best], len(population), x, y, test, quick)
    results = {
        "schema": _SCHEMA,
        "kind": "demo",
        "seed": seed,
        "quick": quick,
        "data": {"name": "digits", "train": len(y), "test": len(test[1]), "fingerprint": tables[0].data},
        "networks": networks,
        "ranking": ranking.to_dict(),
        "best": networks[best]["name"],
        "certificate": certificate.to_dict() | errors | {"recipe": networks[best]["name"]},
        "versions": versions(),
        "seconds": time.perf_counter() - started,
    }
    write_whole(folder / "results.json", json_text(results) + "\n")
    return results


def _network(
    recipe: _Recipe, x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], folder: Path, quick: bool, fresh: bool
) -> dict[str, Any]:
    """Train and measure one network, or read what an earlier run found."""
    identity = {"recipe": asdict(recipe), "quick": quick, "widths": WIDTHS, "measures": DEMO_MEASURES}
    path = folder / "networks" / f"{run_key(identity | versions())}.json"
    found = None if fresh else _read(path, asdict(recipe))
    if found is not None:
        return found
    started = time.perf_counter()
    labels = corrupt_labels(y, recipe.label_noise, _CLASSES, recipe.seed)
    model = recipe.network()
    history = train(model, x, labels, config=recipe.config())
    model.eval()
    own, clean = evaluate(model, x, labels), evaluate(model, *test)
    held_out = evaluate(model, test[0], corrupt_labels(test[1], recipe.label_noise, _CLASSES, recipe.seed + 1))
    minimum = Minimum(model, (x, labels), seed=recipe.seed)
    options: dict[str, dict[str, Any]] = {
        name: {"subset": 50 if quick else 100} for name in DEMO_MEASURES if name.startswith(_SUBSET_FAMILY)
    }
    options["distance_from_init"] = {"initial": recipe.network()}
    table = measure(minimum, [_with(name, options.get(name)) for name in DEMO_MEASURES])
    result = {
        "name": recipe.name,
        "recipe": asdict(recipe),
        "train_loss": own.loss,
        "train_error": own.error,
        "test_loss": held_out.loss,
        "test_error": held_out.error,
        "clean_test_error": clean.error,
        "gap": held_out.error - own.error,
        "epochs": len(history.epochs),
        "measures": table.to_dict(),
        "seconds": time.perf_counter() - started,
    }
    write_whole(path, json_text(result) + "\n")
    return result


DEMO_MEASURES = [*budgets.names("fast"), "distance_from_init", "hessian_top_eigenvalue", "hessian_trace", "sharpness"]
_NUMBERS = ("train_loss", "train_error", "test_loss", "test_error", "clean_test_error", "gap", "epochs", "seconds")
_SUBSET_FAMILY = "fisher_"  # measures of the Gram matrix take the size of its subsets


def _with(name: str, options: dict[str, Any] | None) -> Any:
    """A measure by name, or as a function of that name with options."""
    if options is None:
        return name
    function = catalog.MEASURES[name].load()

    def call(minimum: Any) -> Any:
        return function(minimum, **options)

    call.__name__ = name
    return call


def _read(path: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run wrote; None where it is absent or damaged."""
    try:
        found: dict[str, Any] = read_json(path)
        MeasureTable.from_dict(found["measures"])
        if found["recipe"] != recipe or not all(isinstance(found[name], int | float) for name in _NUMBERS):
            return None
    except (ValueError, LookupError, TypeError, AttributeError, FlatMinimaError):
        return None
    return found


def _certify(
    recipe: _Recipe, population: int, x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], quick: bool
) -> tuple[Certificate, dict[str, float]]:
    """Prior: the recipe on one part of the data. Posterior: the same, fine-tuned on all of it, or left as it is.

    The recipe was chosen by looking at all training samples, so every recipe's prior counts as a candidate; the sigma
    of the grid is paid for in nats.
    """
    samples = TensorSamples(x, y)
    share = 1 - int(len(y) * (1 - PRIOR_SHARE)) // _BOUND_MULTIPLE * _BOUND_MULTIPLE / len(y)
    division = fair_draw(samples, share, recipe.seed + 3)  # as `certify_around` divides them, by content
    first, bound = samples.take(division.prior), samples.take(division.bound)
    model = recipe.network()
    train(model, *first, config=recipe.config())
    prior = Parameters.of(model).flat(torch.float64)
    model = model.eval()
    pilots: list[tuple[float, Tensor]] = []  # which posterior to certify may depend on everything
    task, parts = "choose a posterior, certify it", 2 * len(SIGMAS) + 1
    for fine_tuned in (False, True):
        if fine_tuned:
            tuning = TrainConfig(lr=recipe.lr / 10, batch_size=64, epochs=_FINE_TUNE_EPOCHS, seed=recipe.seed + 1)
            train(model, x, y, config=tuning)
            model.eval()
        minimum = Minimum(model, bound)
        distance = minimum.parameters.flat(torch.float64) - prior
        for sigma in SIGMAS:
            risk, kl = _gibbs(minimum, distance, sigma, _PILOT, recipe.seed)
            value = float(bounds.pac_bayes_kl(risk.error, kl, len(division.bound), 0.05))
            pilots.append((value, Parameters.of(model).flat()))
            progress.report(task, len(pilots), parts)
    _, weights = min(pilots, key=lambda pilot: pilot[0])
    Parameters.of(model).assign(weights)
    certificate = certify_around(  # fresh draws, after the posterior was frozen; its prior is trained there
        Minimum(model, samples),
        "gaussian",
        prior=partial(build, "mlp", widths=WIDTHS),
        prior_fraction=share,
        prior_training=recipe.config(),
        prior_seed=recipe.seed,
        scales=SIGMAS,
        etas=(1.0,),
        draws=_PILOT if quick else _DRAWS,
        batch_size=_IMAGES_A_DRAW,
        union=Union(candidates=population),
        seed=recipe.seed + 3,
    )
    progress.report(task, parts, parts)
    on_test = Minimum(model, test)
    gibbs, _ = _gibbs(on_test, torch.zeros_like(prior), certificate.sigma, 200, recipe.seed + 2)
    return certificate, {"test_error": evaluate(model, *test).error, "gibbs_test_error": gibbs.error}


def _gibbs(minimum: Minimum, distance: Tensor, sigma: float, draws: int, seed: int) -> tuple[GibbsRisk, float]:
    """Risk of the network that draws its weights from N(w, sigma^2 I), and KL from the same around w - distance."""
    posterior = DiagonalGaussian(distance, sigma, torch.full((len(minimum.parameters),), sigma))
    risk = risk_of(minimum, posterior, draws=draws, batch_size=_BOUND_MULTIPLE, p_min=1e-5, seed=seed)
    return risk, posterior.kl
