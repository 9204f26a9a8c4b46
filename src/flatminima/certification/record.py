"""A certificate as a file, the weights it is about beside it, and the recomputation of the one from the other.

A record is compared and never obeyed: the network and the data come from whoever recomputes it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.certification.around import certify_around
from flatminima.certification.certificate import Certificate
from flatminima.certification.conditions import (
    Findings,
    conditions_of,
    enforce,
    fixed_condition,
    independence,
    prior_condition,
)
from flatminima.certification.division.split import Division, Groups, Repetition, split
from flatminima.certification.from_recipe import Certified, checksum, risk_of_recipe, sigma_penalty, tally
from flatminima.certification.gibbs.outputs import Logits, Packing
from flatminima.certification.gibbs.stochastic import Prior
from flatminima.certification.pipeline import Confidence, Union, assemble
from flatminima.certification.prior import Centre, Scales
from flatminima.certification.provenance import Factory, Start
from flatminima.certification.recipe import Recipe
from flatminima.certification.train import Problem, make_problem, offsets, round_weights, tensors_at
from flatminima.core.ambient import neutral
from flatminima.core.guard import same_randomness
from flatminima.core.minimum import Minimum
from flatminima.core.parameters import copied
from flatminima.core.perturbation import Relative
from flatminima.core.samples import Samples, as_samples
from flatminima.errors import CheckpointError, UsageError
from flatminima.io import json_text, make_folder, versions, write_whole
from flatminima.training import read_weights, write_weights
from flatminima.untrusted import Unreadable, read_json

_SCHEMA = 2
CERTIFICATE, WEIGHTS = "certificate.json", "weights.safetensors"
_MOST = 1 << 22  # bytes of a record
_TOLERANCE = 1e-6  # relative: another version or processor may round a logit to the other side, once
_COMPARED = ("risk_bound", "empirical_risk", "monte_carlo_upper", "kl", "penalty", "n", "draws", "holdout_bound",
             "constant_error", "cross_entropy", "cross_entropy_bound")  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One number of a certificate, as recorded and as recomputed."""

    name: str
    recorded: float
    recomputed: float

    @property
    def agrees(self) -> bool:
        """Equal to 1e-6, relative."""
        return math.isclose(self.recorded, self.recomputed, rel_tol=_TOLERANCE, abs_tol=1e-12)


def save(certified: Certified, folder: Path, source: Mapping[str, Any] | None = None) -> Path:
    """Write certificate.json and weights.safetensors to a folder.

    What a seed makes is left out: initial weights, the prior's means in a head's basis, a posterior that is the prior.

    Args:
        source: where model and data come from, for whoever recomputes it.

    Returns:
        Path of the JSON file.
    """
    problem, prior = certified.problem, certified.prior
    recipe = Recipe.from_dict(certified.certificate.details["recipe"])
    trained = bool(certified.certificate.details["prior_samples"])
    half = recipe.keep == "float16"
    tensors: dict[str, Tensor] = {}
    if trained or not certified.start.seeded:
        tensors |= {f"base.{name}": _kept(t, half) for name, t in problem.base.state_dict().items()}
    if recipe.epochs:
        names = [*(f"mean.{n}" for n in problem.network.names), *(f"log_sigma.{n}" for n in problem.network.names)]
        own, _, moved = offsets(problem.network, prior)
        tensors |= {name: m.half() if half else t for name, t, m in zip(names, own, moved, strict=True)}
    if problem.basis is not None:
        tensors["basis"] = problem.basis
    return _write(certified.certificate, tensors, folder, source)


def save_around(
    certificate: Certificate, minimum: Minimum, centre: Centre, folder: Path, source: Mapping[str, Any] | None = None
) -> Path:
    """Write certificate.json and weights.safetensors of a certificate around a minimum to a folder.

    The prior's weights are left out where a function and a seed make them again.

    Returns:
        Path of the JSON file.
    """
    tensors = {f"minimum.{name}": t for name, t in minimum.model.state_dict().items()}
    if certificate.details["options"]["prior"] == "network":
        names = minimum.parameters.names
        tensors |= {f"prior.{n}": t for n, t in zip(names, minimum.parameters.split(centre.weights), strict=True)}
    return _write(certificate, tensors, make_folder(folder), source)


def _write(
    certificate: Certificate, tensors: Mapping[str, Tensor], folder: Path, source: Mapping[str, Any] | None
) -> Path:
    document: dict[str, Any] = certificate.to_dict() | {
        "schema": _SCHEMA,
        "kind": "certificate",
        "source": dict(source or {}),
        "weights": WEIGHTS if tensors else None,
        "sha256": None,
        "versions": versions(),
    }
    if tensors:
        write_weights(tensors, folder / WEIGHTS)
        document["sha256"] = file_hash(folder / WEIGHTS)
    path = folder / CERTIFICATE
    write_whole(path, json_text(document) + "\n")
    return path


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_document(path: Path) -> dict[str, Any]:
    """A certificate's JSON as a dictionary.

    Raises:
        CheckpointError: no such file, or it is something else.
    """
    try:
        document = read_json(path, _MOST)
    except Unreadable as error:
        raise CheckpointError(
            f"cannot read {path}: {error}; expected the {CERTIFICATE} that flatminima certify wrote"
        ) from None
    if not isinstance(document, dict) or document.get("kind") != "certificate" or document.get("schema") != _SCHEMA:
        raise CheckpointError(f"{path} is no certificate of schema {_SCHEMA}; expected what flatminima certify wrote")
    return document


def recompute(
    path: Path,
    model: nn.Module | Factory,
    data: Any,
    prior_data: Any = None,
    *,
    groups: Groups | None = None,
    prior_groups: Groups | None = None,
) -> list[Comparison]:
    """Every number of a certificate again: from its weights, the data and the recorded seed.

    The division of the samples, KL, the Gibbs risk by the recorded draws, the hold-out bound and both kl inverses are
    computed anew, and initial weights that no data has touched are made again. That a trained prior was trained on its
    own part only is not: repeat the command for that.

    Args:
        path: of certificate.json, its weights beside it.
        model: a function that makes the network, or one of the same architecture, whose weights are replaced.
        data: the whole training data, prior's part included; around a minimum, the samples of the bound.
        prior_data: around a minimum, those that its prior was trained on.
        groups, prior_groups: of the samples and of prior_data, where the certificate was made with them.

    Returns:
        A Comparison for each number.

    Raises:
        CheckpointError: files that do not fit, are damaged or were exchanged. UsageError: the data are others than the
            certificate's.
    """
    return compare_numbers(*recomputed(path, model, data, prior_data, groups=groups, prior_groups=prior_groups))


def compare_numbers(recorded: Certificate, again: Certificate) -> list[Comparison]:
    """The numbers of two certificates side by side."""
    return [Comparison(name, _number(recorded, name), _number(again, name)) for name in _COMPARED]


@neutral()
def recomputed(
    path: Path,
    model: nn.Module | Factory,
    data: Any,
    prior_data: Any = None,
    *,
    groups: Groups | None = None,
    prior_groups: Groups | None = None,
) -> tuple[Certificate, Certificate]:
    """A certificate as recorded, and as it is computed again; what cannot be is stated in the second, by the record."""
    document = read_document(path)
    recorded = Certificate.from_dict(document)
    samples = as_samples(data)
    if samples.fingerprint != recorded.details.get("fingerprint"):
        raise UsageError(
            f"the data have fingerprint {samples.fingerprint}, the certificate's have "
            f"{recorded.details.get('fingerprint')}: give the training data that it was made from, with the same "
            "scaling and limit"
        )
    weights = _read_beside(path, document)
    if "recipe" in recorded.details:
        return recorded, _recipe_again(recorded, weights, model, samples, groups)
    return recorded, _around_again(path, recorded, weights, model, samples, prior_data, (groups, prior_groups))


def _recipe_again(
    recorded: Certificate,
    weights: dict[str, Tensor],
    model: nn.Module | Factory,
    samples: Samples,
    groups: Groups | None,
) -> Certificate:
    recipe, seed = Recipe.from_dict(recorded.details["recipe"]), int(recorded.details["seed"])
    told: Repetition = "independent" if recorded.details.get("repetition") else "tested"
    division = split(samples, recipe.prior_fraction, seed, groups=groups, repetition=told)
    with same_randomness():
        problem, prior, made = _rebuilt(model, weights, recorded, recipe, seed, samples, division)
        problem.network.probe(problem.x)
    union = Union(recorded.candidates, recorded.evaluations)
    confidence = Confidence(recorded.delta, recorded.delta_mc, union, "as recorded")
    word = "" if made else f"the prior's weights are what the record says, {recorded.prior}"
    found = Findings(
        prior=prior_condition(True if made else None, "initial weights made again", stated=word),
        n=len(problem.y),
        of=len(samples),
        independent=independence(division),
        fixed=fixed_condition(True if made else None, "two forward passes agree", stated=word),
        hyper="as recorded",
        p_min=recipe.p_min,
    )
    penalty = sigma_penalty(recorded.sigma) if recipe.fit_sigma else 0.0
    risk = risk_of_recipe(problem, recipe, seed, 2, recipe.passes)
    return assemble(
        tally(problem, prior, penalty, risk, recipe.p_min, division),
        confidence,
        enforce(conditions_of(found, confidence), True),
        prior=recorded.prior,
        objective=recorded.objective,
        details={},
    )


def _around_again(
    path: Path,
    recorded: Certificate,
    weights: dict[str, Tensor],
    model: nn.Module | Factory,
    samples: Samples,
    prior_data: Any,
    groups: tuple[Groups | None, Groups | None],
) -> Certificate:
    """Around a minimum: the posterior is chosen by the recorded pilot draws, and certified by the recorded ones."""
    try:
        options = dict(recorded.details["options"])
        kind, loss, batch = options.pop("prior"), str(options.pop("loss")), int(options.pop("minimum_batch_size"))
        scales = Scales(tuple(options.pop("scales")), tuple(options.pop("shares")))
        kappa, box = options.pop("kappa"), options.pop("box")
        options |= {"kappa": None if kappa is None else Relative(**kappa), "box": math.inf if box is None else box}
        seed = int(recorded.details["seed"])
        start = Start.of(model, int(options["prior_seed"]))
        network = _loaded(copied(start.network), weights, "minimum.")
        prior: Any = model if kind == "function" else "zero"
        if kind == "network":
            prior = _loaded(copied(network), weights, "prior.", strict=False)
            options["prior_data"] = prior_data
            options["stated"] = "" if prior_data is not None else f"what the record says, {recorded.prior}"
        return certify_around(
            Minimum(network, samples, loss, batch_size=batch),
            prior=prior,
            groups=groups[0],
            prior_groups=groups[1],
            scales=scales,
            delta=recorded.delta,
            delta_mc=recorded.delta_mc,
            union=Union(recorded.candidates, recorded.evaluations),
            score=True,
            seed=seed,
            **options,
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not say how its certificate was made: {error}") from None


def _loaded(network: nn.Module, weights: Mapping[str, Tensor], prefix: str, *, strict: bool = True) -> nn.Module:
    """The network in eval mode with the weights of a prefix."""
    state = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
    if not state:
        raise CheckpointError(f"the weights beside the certificate hold nothing called {prefix}*")
    own = network.state_dict()
    try:
        cast = {name: t.to(own[name].dtype) if name in own else t for name, t in state.items()}
        network.load_state_dict(cast, strict=strict)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the model: {' '.join(str(error).split())[:200]}") from None
    return network.eval()


def _read_beside(path: Path, document: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that lie beside a record, if they are those that it was written with.

    Raises:
        CheckpointError: the file is absent, or has another hash than the record says.
    """
    name, sha = document.get("weights"), document.get("sha256")
    if name is None:
        return {}
    own = path.with_suffix(Path(WEIGHTS).suffix)  # a record names no file to open: its weights are called as it is,
    file = own if name == own.name else path.with_name(WEIGHTS)  # or as `certify` calls them
    if not file.is_file():
        raise CheckpointError(f"no file {file.name} beside {path}: its weights belong to a certificate")
    if file_hash(file) != sha:
        raise CheckpointError(
            f"{file} is not what the certificate was written with (its SHA-256 differs): damaged, or exchanged"
        )
    return read_weights(file)


def _rebuilt(
    model: nn.Module | Factory,
    weights: dict[str, Tensor],
    c: Certificate,
    recipe: Recipe,
    seed: int,
    samples: Samples,
    division: Division,
) -> tuple[Problem, Prior, bool]:
    """The problem and its prior from kept weights, and whether the prior's were made again here."""
    rows = division.bound
    start = Start.of(model, seed, Packing.of(samples))
    base = Logits.needed(copied(start.network), tensors_at(samples, rows[:2], start.network)[0]).eval()
    state = {name.removeprefix("base."): t for name, t in weights.items() if name.startswith("base.")}
    if state:
        _loaded(base, weights, "base.")
    elif checksum(start.network) != c.details.get("start"):
        raise CheckpointError(
            f"the network has other initial weights under seed {seed} than the certificate's: give what made it"
        )
    round_weights(base, recipe.keep)  # what a seed makes again was rounded before anything was counted
    basis = weights.get("basis")
    if recipe.layers == "head" and basis is None:
        raise CheckpointError("the weights hold no basis of the head's inputs")
    problem = make_problem(base, samples, rows, recipe, basis)
    prior = Prior(problem.means, c.sigma)
    if recipe.epochs:
        _load_posterior(problem, prior, weights)
    elif not math.isclose(c.sigma, recipe.sigma):
        raise CheckpointError(f"sigma is {c.sigma} in the record, {recipe.sigma} in its recipe")
    return problem, prior, not state and start.seeded


def _load_posterior(problem: Problem, prior: Prior, weights: dict[str, Tensor]) -> None:
    network = problem.network
    names = [*(f"mean.{n}" for n in network.names), *(f"log_sigma.{n}" for n in network.names)]
    own, bases, _ = offsets(network, prior)
    try:
        with torch.no_grad():
            for name, tensor, base in zip(names, own, bases, strict=True):
                kept = weights[name]
                if kept.shape != tensor.shape:
                    raise RuntimeError(f"{name} has shape {tuple(kept.shape)}, the network's {tuple(tensor.shape)}")
                tensor.copy_(base + kept.to(tensor) if kept.dtype == torch.float16 else kept)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"the weights hold no such posterior: {error}") from None


def _kept(t: Tensor, half: bool) -> Tensor:
    return t.half() if half and t.is_floating_point() else t


def _number(certificate: Certificate, name: str) -> float:
    value = getattr(certificate, name)
    return math.nan if value is None else float(value)
