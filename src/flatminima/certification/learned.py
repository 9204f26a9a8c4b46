"""`certify`: from an architecture and its training data to a risk that holds with probability 1 - delta.

The samples are divided by content; the prior's mean is trained on the one part, the posterior on the other, and the
one pipeline of two kl inverses makes the certificate, the hold-out bound of the same samples beside it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima import bounds
from flatminima.certification.certificate import Assumption, Certificate
from flatminima.certification.divide import Division, divide, refuse_shared, shared
from flatminima.certification.learning import Checkpoint, stage_seed, train_posterior, train_prior
from flatminima.certification.problem import Problem, mistakes, pose, tensors_at
from flatminima.certification.recipe import Recipe
from flatminima.certification.stochastic import GibbsRisk, Prior, StochasticNetwork, gibbs_risk
from flatminima.errors import ModelError, UsageError
from flatminima.guard import same_randomness
from flatminima.samples import Samples, TensorSamples, as_samples
from flatminima.training import evaluate

GRID_SCALE, GRID_PRECISION = 1e6, 100.0  # variances 1e6 e^(-j/100) of a prior whose sigma is chosen on the samples
_TEST_PASSES = 10
_BETTER_THAN_CHANCE = 0.5  # untrained networks stay near the constant answer's error ...
_TELLING_CLASSES = 5  # ... but with two classes a random line may separate them


@dataclass(frozen=True)
class Certified:
    """A certificate and the distribution that it is about."""

    certificate: Certificate
    problem: Problem
    prior: Prior


def learn(
    model: nn.Module,
    train_data: Any,
    *,
    delta: float = 0.05,
    delta_mc: float | None = None,
    recipe: Recipe | None = None,
    test_data: Any = None,
    evaluations: int = 1,
    folder: Path | None = None,
    score: bool = False,
    seed: int = 0,
) -> Certified:
    """`certify`, with the posterior beside the certificate."""
    with same_randomness():
        return _learn(
            model,
            train_data,
            *split_delta(delta, delta_mc),
            recipe or Recipe(),
            test_data,
            evaluations,
            folder,
            score,
            seed,
        )


def _learn(
    model: nn.Module,
    train_data: Any,
    delta: float,
    delta_mc: float,
    recipe: Recipe,
    test_data: Any,
    evaluations: int,
    folder: Path | None,
    score: bool,
    seed: int,
) -> Certified:
    samples = as_samples(train_data)
    others = None if test_data is None else as_samples(test_data)
    _check_test(samples, others)
    division = divide(samples, recipe.prior_fraction, seed)
    clock = Clock()
    with clock.stage("prior"):
        base = _prior_network(model, samples, division, recipe, folder, seed)
    with clock.stage("features"):
        problem = pose(base, samples, division.bound, recipe)
    with clock.stage("hold-out"):
        wrong = mistakes(problem)
    seen = None if len(division.prior) else _seen_before(base, problem, wrong)
    if seen and not score:
        raise ModelError(
            f"{seen}, so the prior is not data-free: pass an untrained network or a prior_fraction above 0, "
            "or score=True for a number that certifies nothing"
        )
    key = _key(recipe.to_dict(), delta, seed, samples.fingerprint, _checksum(base))
    prior = Prior(problem.means, None if recipe.fit_sigma else recipe.sigma)
    problem.network.probe(problem.x)
    with clock.stage("posterior"):
        train_posterior(
            problem.network,
            prior,
            problem.x,
            problem.y,
            objective=recipe.objective,
            delta=delta,
            nats=recipe.nats or math.log(1 / recipe.p_min),
            epochs=recipe.epochs,
            lr=recipe.lr,
            batch_size=recipe.batch_size,
            seed=stage_seed(seed, 1),
            checkpoint=Checkpoint(folder and folder / "posterior.pt", key),
        )
    prior, penalty = chosen_sigma(problem.network, prior)
    with clock.stage("evaluation"):
        risk = gibbs_risk(
            problem.network,
            problem.x,
            problem.y,
            passes=recipe.passes,
            batch_size=recipe.batch_size,
            p_min=recipe.p_min,
            seed=stage_seed(seed, 2),
        )
    n = len(division.bound)
    certificate = assemble(
        risk,
        wrong,
        kl=problem.network.exact_kl(prior),
        penalty=penalty,
        n=n,
        delta=delta,
        delta_mc=delta_mc,
        evaluations=evaluations,
        sigma=float(prior.sigma or 0.0),
        recipe=recipe,
        prior_text=_prior_text(division, recipe),
        assumptions=_assumptions(samples, division, problem, recipe, evaluations, seen),
        details={
            "recipe": recipe.to_dict(),
            "seed": seed,
            "samples": len(samples),
            "fingerprint": samples.fingerprint,
            "prior_samples": len(division.prior),
            "random_weights": sum(m.numel() for m in problem.network.means),
            "why_not_by_example": problem.network.reason,
            "prior_training": _training_facts(base, samples, division),
        },
    )
    details = dict(certificate.details)
    if others is not None:
        details["test"] = _test(problem, others, recipe, seed)
    certificate = replace(certificate, details=details | {"seconds": clock.wall, "cpu_seconds": clock.cpu})
    return Certified(certificate, problem, prior)


def split_delta(delta: float, delta_mc: float | None) -> tuple[float, float]:
    """The total failure probability as those of the PAC-Bayes and of the Monte-Carlo step (a fifth by default).

    Raises:
        UsageError: one of them outside (0, 1).
    """
    if not 0 < delta < 1:
        raise UsageError(f"got delta={delta!r}; expected a probability in (0, 1), e.g. 0.05")
    if delta_mc is None:
        delta_mc = delta / 5
    if not 0 < delta_mc < delta:
        raise UsageError(f"got delta_mc={delta_mc!r}; expected a part of delta={delta!r}, in (0, {delta!r})")
    return delta - delta_mc, delta_mc


def chosen_sigma(network: StochasticNetwork, prior: Prior) -> tuple[Prior, float]:
    """The prior with a sigma, and what choosing it costs in nats (Dziugaite & Roy 2017, sec. 3.1)."""
    if prior.sigma is not None:
        return prior, 0.0
    best = network.best_sigma(prior) ** 2
    j = max(1, round(GRID_PRECISION * math.log(GRID_SCALE / best)))
    sigma = math.sqrt(GRID_SCALE * math.exp(-j / GRID_PRECISION))
    return Prior(prior.means, sigma), sigma_penalty(sigma)


def sigma_penalty(sigma: float) -> float:
    """Nats that a sigma of the grid costs; refuses one that is not on it."""
    return float(bounds.prior_variance_penalty(sigma**2, GRID_PRECISION, GRID_SCALE))


def assemble(
    risk: GibbsRisk,
    wrong: int,
    *,
    kl: float,
    penalty: float,
    n: int,
    delta: float,
    delta_mc: float,
    evaluations: int,
    sigma: float,
    recipe: Recipe,
    prior_text: str,
    assumptions: tuple[Assumption, ...],
    details: dict[str, Any],
) -> Certificate:
    """L+ = kl^-1(p, ln(k / delta_mc) / draws), R = kl^-1(L+, (KL + penalty + ln(2 sqrt(n) k / delta)) / n).

    Args:
        risk: Monte-Carlo risks on the n samples. wrong: mistakes of the prior's mean network on them.
        evaluations: k certificates of which this is one.
    """
    upper, ce_upper = (
        float(bounds.monte_carlo_risk(p, risk.draws, delta_mc / evaluations)) for p in (risk.error, risk.cross_entropy)
    )
    bound, ce_bound = (float(bounds.pac_bayes_kl(u, kl + penalty, n, delta / evaluations)) for u in (upper, ce_upper))
    return Certificate(
        risk_bound=bound,
        empirical_risk=risk.error,
        monte_carlo_upper=upper,
        kl=kl,
        sigma=sigma,
        n=n,
        draws=risk.draws,
        delta=delta,
        delta_mc=delta_mc,
        candidates=1,
        evaluations=evaluations,
        holdout_bound=float(bounds.binomial_tail_inverse(wrong, n, delta + delta_mc)),
        holdout_network="prior's mean network",
        prior=prior_text,
        assumptions=assumptions,
        penalty=penalty,
        draws_by=risk.by,
        cross_entropy_bound=ce_bound,
        cross_entropy=risk.cross_entropy,
        p_min=recipe.p_min,
        objective=recipe.objective if recipe.epochs else "none: the posterior is the prior",
        details=details,
    )


class Clock:
    """Wall-clock and processor seconds of each stage."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = round(time.perf_counter() - wall, 2)
        self.cpu[name] = round(time.process_time() - cpu, 2)


def _prior_network(
    model: nn.Module, samples: Samples, division: Division, recipe: Recipe, folder: Path | None, seed: int
) -> nn.Module:
    base = copy.deepcopy(model)
    if not len(division.prior):
        return base.eval()
    x, y = tensors_at(samples, division.prior)
    config = replace(recipe.prior, seed=stage_seed(seed, 0) % (1 << 32))
    key = _key(asdict(config), recipe.augment, recipe.prior_fraction, seed, samples.fingerprint, _checksum(base))
    train_prior(base, x, y, config, _augmentation(recipe.augment), Checkpoint(folder and folder / "prior.pt", key))
    return base


@torch.no_grad()
def _test(problem: Problem, others: Samples, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What the stochastic network, and the mean network, do on samples that were not trained on."""
    x, y = tensors_at(others, torch.arange(len(others)))
    if problem.head is not None:
        x = problem.head.features(problem.base, x, task="test features")
    risk = gibbs_risk(
        problem.network,
        x,
        y,
        passes=_TEST_PASSES,
        batch_size=recipe.batch_size,
        p_min=recipe.p_min,
        seed=stage_seed(seed, 3),
        task="test",
    )
    mean = sum(
        int((problem.network.mean_network(a).argmax(1) != b).sum())
        for a, b in zip(x.split(500), y.split(500), strict=True)
    )
    return {"n": len(y), "error": risk.error, "cross_entropy": risk.cross_entropy, "mean_network_error": mean / len(y)}


def _check_test(samples: Samples, others: Samples | None) -> None:
    if others is not None:
        remedy = "the test data was passed as training data; give two different splits"
        refuse_shared(samples, others, "also in the test data", remedy)


def _seen_before(base: nn.Module, problem: Problem, wrong: int) -> str:
    """Why a network that should be untrained has met data before; empty if nothing says so."""
    for name, module in base.named_modules():
        counter = getattr(module, "num_batches_tracked", None)
        if isinstance(counter, Tensor) and int(counter) > 0:
            return f"{name} ({type(module).__name__}) has statistics of {int(counter)} batches"
    n, counts = len(problem.y), problem.y.bincount()
    constant = n - int(counts.max())  # mistakes of the best constant answer
    if int((counts > 0).sum()) >= _TELLING_CLASSES and wrong < _BETTER_THAN_CHANCE * constant:
        return f"the network errs on {wrong} of {n} samples before training, the best constant answer on {constant}"
    return ""


def _augmentation(name: str) -> Any:
    if name == "none":
        return None
    from functools import partial

    from flatminima.data.augment import random_shift

    return partial(random_shift, pixels=int(name.removeprefix("shift")))


def _prior_text(division: Division, recipe: Recipe) -> str:
    if not len(division.prior):
        return "the network's initial weights, no data"
    config = recipe.prior
    return f"{config.epochs} epochs of {config.optimizer} on {len(division.prior)} other samples"


def _training_facts(base: nn.Module, samples: Samples, division: Division) -> dict[str, float] | None:
    if not len(division.prior):
        return None
    found = evaluate(base, *tensors_at(samples, division.prior))
    return {"loss": found.loss, "error": found.error}


def _assumptions(
    samples: Samples, division: Division, problem: Problem, recipe: Recipe, evaluations: int, seen: str | None
) -> tuple[Assumption, ...]:
    """The eight conditions of sec. 2.1 of formulas.md, each with what was looked at."""
    both = 0
    if len(division.prior):
        x, y = tensors_at(samples, division.prior)
        both = shared(TensorSamples(*tensors_at(samples, division.bound)), TensorSamples(x, y))
    source = f"trained on {len(division.prior)} samples" if len(division.prior) else "its seed alone"
    sigma = "sigma on a grid, paid for" if recipe.fit_sigma else f"sigma = {recipe.sigma:g} fixed before"
    frozen = "all layers random" if problem.head is None else "other layers frozen in P and Q alike"
    return (
        Assumption("the loss lies in [0, 1]", True, f"0-1 error; cross-entropy clamped at p_min = {recipe.p_min:g}"),
        Assumption(
            "the prior does not depend on the bound's samples",
            both == 0 and not seen,
            f"{source}; {both} equal by content" + (f"; {seen}" if seen else ""),
        ),
        Assumption("n counts the bound's samples only", True, f"n = {len(division.bound)} of {len(samples)}"),
        Assumption("the samples are independent and identically distributed", None, "rests on how they were gathered"),
        Assumption(
            "no augmentation, dropout or batch statistics on the bound's samples",
            True,
            "two forward passes agree, whatever else is in the batch; norm statistics from the prior's part",
        ),
        Assumption("the prior's hyper-parameters are fixed before, or paid for", True, f"{sigma}; {frozen}"),
        Assumption("best of several certificates is paid for", True, f"union over {evaluations} evaluations"),
        Assumption("the statement is about fresh weights for each prediction", True, "not about the mean network"),
        Assumption("divergence in float64, kl inverse rounded outward", True, "flatminima.bounds"),
    )


def _key(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def _checksum(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
