"""A certificate as a file, the weights it is about beside it, and the recomputation of the one from the other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.certification.certificate import Certificate
from flatminima.certification.divide import divide
from flatminima.certification.head import Head
from flatminima.certification.learned import Certified, assemble, sigma_penalty
from flatminima.certification.learning import stage_seed
from flatminima.certification.problem import Problem, mistakes, tensors_at
from flatminima.certification.recipe import Recipe
from flatminima.certification.stochastic import Prior, StochasticNetwork, gibbs_risk
from flatminima.core.guard import same_randomness
from flatminima.core.samples import as_samples
from flatminima.errors import CheckpointError, UsageError
from flatminima.io import versions, write_whole
from flatminima.training import read_weights, write_weights

SCHEMA = 1
CERTIFICATE, WEIGHTS = "certificate.json", "weights.safetensors"
_TOLERANCE = 1e-6  # relative: another version or processor may round a logit to the other side, once
_COMPARED = ("risk_bound", "empirical_risk", "monte_carlo_upper", "kl", "penalty", "n", "draws", "holdout_bound",
             "cross_entropy_bound")  # fmt: skip


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

    Args:
        source: where model and data come from, for whoever recomputes it.

    Returns:
        Path of the JSON file.
    """
    problem, prior = certified.problem, certified.prior
    tensors: dict[str, Tensor] = {f"base.{name}": t for name, t in problem.base.state_dict().items()}
    network = problem.network
    for name, mean, rho in zip(network.names, network.means, network.log_sigmas, strict=True):
        tensors |= {f"mean.{name}": mean, f"log_sigma.{name}": rho, f"prior.{name}": prior.means[name]}
    if problem.head is not None and problem.head.basis is not None:
        tensors["basis"] = problem.head.basis
    write_weights(tensors, folder / WEIGHTS)
    document = certified.certificate.to_dict() | {
        "schema": SCHEMA,
        "kind": "certificate",
        "source": dict(source or {}),
        "weights": WEIGHTS,
        "head": problem.head and problem.head.name,
        "versions": versions(),
    }
    path = folder / CERTIFICATE
    write_whole(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return path


def read_document(path: Path) -> dict[str, Any]:
    """A certificate's JSON as a dictionary.

    Raises:
        CheckpointError: no such file, or it is something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        raise CheckpointError(f"{path} is not JSON; expected the {CERTIFICATE} that flatminima certify wrote") from None
    if not isinstance(document, dict) or document.get("kind") != "certificate" or document.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} is no certificate of schema {SCHEMA}; expected what flatminima certify wrote")
    return document


def recompute(path: Path, model: nn.Module, train_data: Any) -> list[Comparison]:
    """Every number of a certificate again: from its weights, the training data and the recorded seed.

    The division of the samples, KL, the Gibbs risk by the recorded draws, the hold-out bound and both kl inverses are
    computed anew. That the prior was trained on its own part only is not: repeat the command for that.

    Args:
        path: of certificate.json, its weights beside it.
        model: of the same architecture; its weights are replaced.
        train_data: the whole training data, prior's part included.

    Returns:
        A Comparison for each number.

    Raises:
        CheckpointError: files that do not fit. UsageError: the data are others than the certificate's.
    """
    document = read_document(path)
    certificate = Certificate.from_dict(document)
    details = certificate.details
    if "recipe" not in details:
        raise UsageError(f"{path} was not made by certify(model, train_data); it cannot be recomputed from weights")
    recipe, seed = Recipe.from_dict(details["recipe"]), int(details["seed"])
    samples = as_samples(train_data)
    if samples.fingerprint != details["fingerprint"]:
        raise UsageError(
            f"the data have fingerprint {samples.fingerprint}, the certificate's have {details['fingerprint']}: "
            "give the training data that it was made from, with the same scaling and limit"
        )
    weights = read_weights(path.with_name(str(document["weights"])))
    division = divide(samples, recipe.prior_fraction, seed)
    with same_randomness():
        problem, prior = _rebuilt(model, weights, document["head"], samples, division.bound, certificate.sigma)
        problem.network.probe(problem.x)
    risk = gibbs_risk(
        problem.network,
        problem.x,
        problem.y,
        passes=recipe.passes,
        batch_size=recipe.batch_size,
        p_min=recipe.p_min,
        seed=stage_seed(seed, 2),
    )
    again = assemble(
        risk,
        mistakes(problem),
        kl=problem.network.exact_kl(prior),
        penalty=sigma_penalty(certificate.sigma) if recipe.fit_sigma else 0.0,
        n=len(division.bound),
        deltas=(certificate.delta, certificate.delta_mc),
        evaluations=certificate.evaluations,
        sigma=certificate.sigma,
        recipe=recipe,
        prior_text=certificate.prior,
        assumptions=certificate.assumptions,
        details={},
    )
    return [Comparison(name, float(getattr(certificate, name)), float(getattr(again, name))) for name in _COMPARED]


def _rebuilt(
    model: nn.Module, weights: dict[str, Tensor], head_name: str | None, samples: Any, rows: Tensor, sigma: float
) -> tuple[Problem, Prior]:
    base = {name.removeprefix("base."): t for name, t in weights.items() if name.startswith("base.")}
    try:
        model.load_state_dict(base)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the model: {' '.join(str(error).split())[:200]}") from None
    x, y = tensors_at(samples, rows, model)
    head = None if head_name is None else Head(head_name, weights.get("basis"))
    if head is not None:
        x = head.features(model.eval(), x)
    network = StochasticNetwork(model if head is None else head.layer(model), sigma)
    try:
        means = {name: weights[f"prior.{name}"] for name in network.names}
        with torch.no_grad():
            for name, mean, rho in zip(network.names, network.means, network.log_sigmas, strict=True):
                mean.copy_(weights[f"mean.{name}"])
                rho.copy_(weights[f"log_sigma.{name}"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"the weights hold no such posterior: {error}") from None
    return Problem(model, head, network, means, x, y), Prior(means, sigma)
