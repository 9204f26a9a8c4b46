"""`certify`: from an architecture and its training data to a risk that holds with probability 1 - delta.

The samples are divided by content; the prior's mean is trained on the one part, the posterior on the other, and the
one pipeline of two kl inverses makes the certificate, the hold-out bound of the same samples beside it.
"""

from __future__ import annotations

import copy
import hashlib
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
from flatminima.certification.conditions import Condition, Start, enforce, learned_conditions
from flatminima.certification.divide import divide, refuse_shared
from flatminima.certification.learning import Checkpoint, stage_seed, train_posterior, train_prior
from flatminima.certification.problem import Problem, mistakes, pose, tensors_at, wrong
from flatminima.certification.recipe import Recipe
from flatminima.certification.stochastic import GibbsRisk, Prior, StochasticNetwork, gibbs_risk
from flatminima.core.guard import same_randomness
from flatminima.core.samples import Samples, as_samples
from flatminima.errors import UsageError
from flatminima.io import run_key
from flatminima.training import evaluate

GRID_SCALE, GRID_PRECISION = 1e6, 100.0  # variances 1e6 e^(-j/100) of a prior whose sigma is chosen on the samples
_TEST_PASSES = 10


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
    initial: str = "",
    evaluations: int = 1,
    folder: Path | None = None,
    score: bool = False,
    seed: int = 0,
) -> Certified:
    """`certify`, with the posterior beside the certificate."""
    deltas = split_delta(delta, delta_mc)
    with same_randomness():
        samples = as_samples(train_data)
        others = None if test_data is None else as_samples(test_data)
        if others is not None:
            remedy = "the test data was passed as training data; give two different splits"
            refuse_shared(samples, others, "also in the test data", remedy)
        run = _Run(recipe or Recipe(), samples, deltas, folder, seed)
        return run.certified(model, others, initial, evaluations, score)


@dataclass
class _Run:
    """One call of `learn`, stage by stage."""

    recipe: Recipe
    samples: Samples
    deltas: tuple[float, float]
    folder: Path | None
    seed: int

    def __post_init__(self) -> None:
        self.division = divide(self.samples, self.recipe.prior_fraction, self.seed)
        self.clock = Clock()

    def certified(
        self, model: nn.Module, others: Samples | None, initial: str, evaluations: int, score: bool
    ) -> Certified:
        recipe = self.recipe
        found = self._conditions(model, initial, evaluations)
        enforce(found, score)
        with self.clock.stage("prior"):
            base = self._prior_network(model)
        with self.clock.stage("features"):
            problem = pose(base, self.samples, self.division.bound, recipe)
        with self.clock.stage("posterior"):
            prior, penalty = self._posterior(problem)
        with self.clock.stage("evaluation"):
            risk = self._risk(problem, 2, recipe.passes)
        certificate = assemble(
            risk,
            mistakes(problem),
            kl=problem.network.exact_kl(prior),
            penalty=penalty,
            n=len(self.division.bound),
            deltas=self.deltas,
            evaluations=evaluations,
            sigma=float(prior.sigma or 0.0),
            recipe=recipe,
            prior_text=self._prior_text(initial),
            assumptions=tuple(c.assumption for c in found),
            details=self._details(problem),
        )
        details = dict(certificate.details)
        if others is not None:
            details["test"] = self._test(problem, others)
        details |= {"seconds": self.clock.wall, "cpu_seconds": self.clock.cpu}
        certificate = replace(certificate, details=details)
        return Certified(certificate, problem, prior)

    def _conditions(self, model: nn.Module, initial: str, evaluations: int) -> tuple[Condition, ...]:
        """What is known before anything is trained."""
        recipe, n = self.recipe, len(self.division.bound)
        start = copy.deepcopy(model).eval()
        x, y = tensors_at(self.samples, self.division.bound, model)
        counts = y.bincount()
        counters = (getattr(module, "num_batches_tracked", None) for module in start.modules())
        batches = [int(counter) for counter in counters if isinstance(counter, Tensor)]
        return learned_conditions(
            n,
            len(self.samples),
            len(self.division.prior),
            Start(wrong(start, x, y), n - int(counts.max()), int((counts > 0).sum()), max(batches, default=0), initial),
            "sigma on a grid, paid for" if recipe.fit_sigma else f"sigma = {recipe.sigma:g} fixed before",
            "all layers random" if recipe.layers == "all" else "other layers frozen in P and Q alike",
            evaluations,
            recipe.p_min,
        )

    def _prior_network(self, model: nn.Module) -> nn.Module:
        recipe, base = self.recipe, copy.deepcopy(model)
        if not len(self.division.prior):
            return base.eval()
        x, y = tensors_at(self.samples, self.division.prior, model)
        config = replace(recipe.prior, seed=stage_seed(self.seed, 0) % (1 << 32))
        made = (asdict(config), recipe.augment, recipe.prior_fraction, self.seed, self.samples.fingerprint)
        checkpoint = self._checkpoint("prior.pt", *made, _checksum(base))
        train_prior(base, x, y, config, _augmentation(recipe.augment), checkpoint)
        return base

    def _posterior(self, problem: Problem) -> tuple[Prior, float]:
        """Train Q; P, and what choosing its sigma costs."""
        recipe, delta = self.recipe, self.deltas[0]
        prior = Prior(problem.means, None if recipe.fit_sigma else recipe.sigma)
        problem.network.probe(problem.x)
        made = (recipe.to_dict(), delta, self.seed, self.samples.fingerprint, _checksum(problem.base))
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
            seed=stage_seed(self.seed, 1),
            checkpoint=self._checkpoint("posterior.pt", *made),
        )
        return chosen_sigma(problem.network, prior)

    def _risk(self, problem: Problem, stage: int, passes: int, task: str = "certificate") -> GibbsRisk:
        return gibbs_risk(
            problem.network,
            problem.x,
            problem.y,
            passes=passes,
            batch_size=self.recipe.batch_size,
            p_min=self.recipe.p_min,
            seed=stage_seed(self.seed, stage),
            task=task,
        )

    def _test(self, problem: Problem, others: Samples) -> dict[str, Any]:
        """What the stochastic network, and the mean network, do on samples that were not trained on."""
        x, y = tensors_at(others, torch.arange(len(others)), problem.base)
        if problem.head is not None:
            x = problem.head.features(problem.base, x, task="test features")
        risk = self._risk(replace(problem, x=x, y=y), 3, _TEST_PASSES, "test")
        mean = wrong(problem.network.mean_network, x, y) / len(y)
        return {"n": len(y), "error": risk.error, "cross_entropy": risk.cross_entropy, "mean_network_error": mean}

    def _prior_text(self, initial: str) -> str:
        if not len(self.division.prior):
            return initial or "the network's initial weights, no data"
        config = self.recipe.prior
        trained = f"{config.epochs} epochs of {config.optimizer} on {len(self.division.prior)} other samples"
        return f"{initial}, then {trained}" if initial else trained

    def _details(self, problem: Problem) -> dict[str, Any]:
        prior = self.division.prior
        fitted = evaluate(problem.base, *tensors_at(self.samples, prior, problem.base)) if len(prior) else None
        return {
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "samples": len(self.samples),
            "fingerprint": self.samples.fingerprint,
            "prior_samples": len(prior),
            "random_weights": sum(m.numel() for m in problem.network.means),
            "why_not_by_example": problem.network.reason,
            "prior_training": fitted and {"loss": fitted.loss, "error": fitted.error},
        }

    def _checkpoint(self, name: str, *made: Any) -> Checkpoint:
        return Checkpoint(self.folder and self.folder / name, run_key(made))


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
    holdout: int,
    *,
    kl: float,
    penalty: float,
    n: int,
    deltas: tuple[float, float],
    evaluations: int,
    sigma: float,
    recipe: Recipe,
    prior_text: str,
    assumptions: tuple[Assumption, ...],
    details: dict[str, Any],
) -> Certificate:
    """L+ = kl^-1(p, ln(k / delta_mc) / draws), R = kl^-1(L+, (KL + penalty + ln(2 sqrt(n) k / delta)) / n).

    Args:
        risk: Monte-Carlo risks on the n samples. holdout: mistakes of the prior's mean network on them.
        deltas: failure probabilities of the PAC-Bayes and of the Monte-Carlo step.
        evaluations: k certificates of which this is one.
    """
    delta, delta_mc = deltas
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
        holdout_bound=float(bounds.binomial_tail_inverse(holdout, n, (delta + delta_mc) / evaluations)),
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


def _augmentation(name: str) -> Any:
    if name == "none":
        return None
    from functools import partial

    from flatminima.data.augment import random_shift

    return partial(random_shift, pixels=int(name.removeprefix("shift")))


def _checksum(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
