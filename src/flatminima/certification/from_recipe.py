"""`certify_recipe`: from an architecture and its training data to a risk that holds with probability 1 - delta.

The samples are divided by content; the prior's mean is trained on the one part, the posterior on the other, and the
one pipeline of two kl inverses makes the certificate, the hold-out bound of the same samples beside it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima import bounds, interrupts
from flatminima.certification.certificate import Certificate
from flatminima.certification.conditions import (
    Condition,
    Findings,
    conditions_of,
    enforce,
    fixed_condition,
    independence,
)
from flatminima.certification.division.reading import read_samples
from flatminima.certification.division.repeats import refuse_overlap
from flatminima.certification.division.split import Division, Drawn, split
from flatminima.certification.gibbs.outputs import Logits, Packing
from flatminima.certification.gibbs.risk import GibbsRisk, gibbs_risk
from flatminima.certification.gibbs.stochastic import Prior, StochasticNetwork
from flatminima.certification.ledger import Account, with_others
from flatminima.certification.pipeline import Confidence, Counted, assemble
from flatminima.certification.provenance import Factory, Start, refuse_changed, start_condition, start_errors
from flatminima.certification.recipe import Recipe
from flatminima.certification.train import (
    Checkpoint,
    Problem,
    check_task,
    count_errors,
    holdout_errors,
    make_problem,
    round_posterior,
    round_weights,
    stage_seed,
    tensors_at,
    train_posterior,
    train_prior,
)
from flatminima.core.ambient import neutral
from flatminima.core.guard import same_randomness
from flatminima.core.parameters import copied
from flatminima.core.samples import Samples, as_samples, seed_number
from flatminima.errors import UsageError
from flatminima.io import run_key
from flatminima.training import evaluate

GRID_SCALE, GRID_PRECISION = 1e6, 100.0  # variances 1e6 e^(-j/100) of a prior whose sigma is chosen on the samples
_TEST_PASSES = 10
PRIOR_STATE = "prior.pt"  # in the run's folder


@dataclass(frozen=True)
class Certified:
    """A certificate and the distribution that it is about.

    Attributes:
        start: the network before training here.
    """

    certificate: Certificate
    problem: Problem
    prior: Prior
    start: Start


@neutral()
def certify_recipe(
    model: nn.Module | Factory,
    train_data: Any,
    *,
    account: Account | None = None,
    recipe: Recipe | None = None,
    test_data: Any = None,
    stated: str = "",
    folder: Path | None = None,
    drawn: Drawn | None = None,
    score: bool = False,
    seed: int = 0,
) -> Certified:
    """`certify` of a network yet to be trained, with the posterior beside the certificate."""
    account = account or Account()
    undivided, seed = account.undivided, seed_number(seed)
    with same_randomness():
        samples = read_samples(train_data)
        others = None if test_data is None else as_samples(test_data)
        if others is not None:
            remedy = "the test data was passed as training data; give two different splits"
            refuse_overlap(samples, others, "also in the test data", remedy)
        recipe = recipe or Recipe()
        drawn = drawn or Drawn()
        division = split(samples, recipe.prior_fraction, seed, groups=drawn.groups, repetition=drawn.repetition)
        run = _Run(recipe, samples, division, undivided.delta - undivided.for_draws, folder, seed)
        return run.certified(model, others, stated, account, score)


@dataclass
class _Run:
    """One call of `certify_recipe`, stage by stage; `delta` is that of the posterior's objective, undivided."""

    recipe: Recipe
    samples: Samples
    division: Division
    delta: float
    folder: Path | None
    seed: int

    def __post_init__(self) -> None:
        self.clock = _Clock()

    def certified(
        self, model: nn.Module | Factory, others: Samples | None, stated: str, account: Account, score: bool
    ) -> Certified:
        recipe = self.recipe
        start = Start.of(model, self.seed, Packing.of(self.samples))
        if start.packing is not None and recipe.augment != "none":
            raise UsageError(f"got augment={recipe.augment!r} for inputs that are no images; use augment='none'")
        # what cannot take the samples, or tell their classes apart, is refused here, before its code is looked through
        self._check(start.network, [self.samples, *([] if others is None else [others])])
        found = self._findings(start, model, stated)
        enforce(conditions_of(found, Confidence(0.05)), score)  # what can be refused is, before anything is trained
        answers = self._answers(start)
        with self.clock.stage("prior"):
            base, resumed = self._prior_network(start.network)
            found = _as_resumed(found) if resumed else found
        with self.clock.stage("features"):
            problem = make_problem(base, self.samples, self.division.bound, recipe)
        with self.clock.stage("posterior"):
            prior, penalty = self._posterior(problem)
        with self.clock.stage("evaluation"):
            risk = self._risk(problem, 2, recipe.passes)
        refuse_changed(answers, self._answers(start))
        counted = tally(problem, prior, penalty, risk, recipe.p_min, self.division)
        # with what was counted, since a network of other code may have the same weights
        key = self._key(
            recipe.to_dict(), checksum(start.network), risk.error, risk.cross_entropy, counted.kl, counted.n
        )
        confidence = account.take(self.samples, key, f"recipe {key} with seed {self.seed}")
        details = self._details(problem, start)
        if others is not None:
            details["test"] = self._test(problem, others)
        details |= {"seconds": self.clock.wall, "cpu_seconds": self.clock.cpu}
        certificate = assemble(
            counted,
            confidence,
            enforce(conditions_of(found, confidence), score),
            prior=self._prior_text(start, stated),
            objective=recipe.objective if recipe.epochs else "none: the posterior is the prior",
            details=details,
        )
        return Certified(with_others(certificate, self.samples, key), problem, prior, start)

    def _check(self, network: nn.Module, data: Iterable[Samples]) -> None:
        """Refuse a network and labels that do not fit each other."""
        x, _ = tensors_at(self.samples, self.division.bound[:2], network)
        check_task(Logits.needed(copied(network), x), x, data, self.recipe, len(self.division.prior))

    def _findings(self, start: Start, model: nn.Module | Factory, stated: str) -> Findings:
        """What is known before anything is trained."""
        recipe, n = self.recipe, len(self.division.bound)
        trained_on = len(self.division.prior)
        then = f", then trained here on {trained_on} other samples" if trained_on else ""
        x, y = tensors_at(self.samples, self.division.bound, start.network)
        prior = start_condition(start, model, stated, x, y, self.seed, then)
        sigma = "sigma on a grid, paid for" if recipe.fit_sigma else f"sigma = {recipe.sigma:g} fixed before"
        layers = "all layers random" if recipe.layers == "all" else "other layers frozen in P and Q alike"
        return Findings(
            prior=prior,
            n=n,
            of=len(self.samples),
            independent=independence(self.division),
            fixed=self._fixed(start, prior),
            hyper=f"{sigma}; {layers}",
            p_min=recipe.p_min,
        )

    def _answers(self, start: Start) -> Tensor:
        """Which of the bound's samples the start errs on; nothing here touches its weights."""
        return start_errors(start, *tensors_at(self.samples, self.division.bound, start.network))

    def _fixed(self, start: Start, prior: Condition) -> Condition:
        checked = "two forward passes agree, whatever else is in the batch"
        if start.seeded:
            return fixed_condition(True, f"{checked}; statistics are the seed's, or the prior's part's")
        return fixed_condition(None, f"{checked}; statistics of norm layers came with the network", stated=prior.stated)

    def _prior_network(self, model: nn.Module) -> tuple[nn.Module, bool]:
        """The prior's network, and whether a part of its training was read from a file."""
        recipe, resumed = self.recipe, False
        base = Logits.needed(copied(model), tensors_at(self.samples, self.division.bound[:2], model)[0])
        if len(self.division.prior):
            x, y = tensors_at(self.samples, self.division.prior, model)
            config = replace(recipe.prior, seed=stage_seed(self.seed, 0) % (1 << 32))
            made = (asdict(config), recipe.augment, recipe.prior_fraction, self.seed, self.samples.fingerprint)
            checkpoint = self._checkpoint(PRIOR_STATE, *made, checksum(base))
            resumed = train_prior(base, x, y, config, _augmentation(recipe.augment), checkpoint)
        round_weights(base, recipe.keep)
        return base.eval(), resumed

    def _posterior(self, problem: Problem) -> tuple[Prior, float]:
        """Train Q; P, and what choosing its sigma costs."""
        recipe = self.recipe
        prior = Prior(problem.means, None if recipe.fit_sigma else recipe.sigma)
        problem.network.probe(problem.x)
        made = (recipe.to_dict(), self.delta, self.seed, self.samples.fingerprint, checksum(problem.base))
        with interrupts.deferred():
            train_posterior(
                problem.network,
                prior,
                problem.x,
                problem.y,
                recipe,
                delta=self.delta,
                seed=stage_seed(self.seed, 1),
                checkpoint=self._checkpoint("posterior.pt", *made),
            )
        prior, penalty = chosen_sigma(problem.network, prior)
        if recipe.keep == "float16":
            round_posterior(problem.network, prior)
        return prior, penalty

    def _risk(self, problem: Problem, stage: int, passes: int, task: str = "certificate") -> GibbsRisk:
        return risk_of_recipe(problem, self.recipe, self.seed, stage, passes, task)

    def _test(self, problem: Problem, others: Samples) -> dict[str, Any]:
        """What the stochastic network, and the mean network, do on samples that were not trained on."""
        x, y = tensors_at(others, torch.arange(len(others)), problem.base)
        if problem.head is not None:
            x = problem.head.features(problem.base, x, task="test features")
        risk = self._risk(replace(problem, x=x, y=y), 3, _TEST_PASSES, "test")
        mean = count_errors(problem.network.mean_network, x, y) / len(y)
        return {"n": len(y), "error": risk.error, "cross_entropy": risk.cross_entropy, "mean_network_error": mean}

    def _prior_text(self, start: Start, stated: str) -> str:
        origin = "" if start.seeded else stated or "a network of unknown origin"
        if not len(self.division.prior):
            return origin or f"initial weights of seed {self.seed}, no data"
        config = self.recipe.prior
        trained = f"{config.epochs} epochs of {config.optimizer} on {len(self.division.prior)} other samples"
        return f"{origin}, then {trained}" if origin else trained

    def _details(self, problem: Problem, start: Start) -> dict[str, Any]:
        prior = self.division.prior
        fitted = evaluate(problem.base, *tensors_at(self.samples, prior, problem.base)) if len(prior) else None
        return {
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "samples": len(self.samples),
            "fingerprint": self.samples.fingerprint,
            "start": checksum(start.network),
            "prior_samples": len(prior),
            "groups": self.division.groups,
            "left_out": len(self.division.left_out),
            "repetition": self.division.stated,
            "random_weights": sum(m.numel() for m in problem.network.means),
            "why_not_by_example": problem.network.reason,
            "prior_training": fitted and {"loss": fitted.loss, "error": fitted.error},
        }

    def _key(self, *made: Any) -> str:
        return run_key((made, self.seed, self.samples.fingerprint))

    def _checkpoint(self, name: str, *made: Any) -> Checkpoint:
        return Checkpoint(self.folder and self.folder / name, run_key(made))


def _as_resumed(found: Findings) -> Findings:
    """The same of a prior whose training went on from a file: nobody here saw who wrote it."""
    own = f"the {PRIOR_STATE} in the output folder is this command's own"
    words = "; ".join(w for w in (found.prior.stated, own) if w)

    def stated(condition: Condition) -> Condition:
        return replace(condition, holds=None, stated=words) if condition.holds is not False else condition

    return replace(found, prior=stated(found.prior), fixed=stated(found.fixed))


def risk_of_recipe(
    problem: Problem, recipe: Recipe, seed: int, stage: int, passes: int, task: str = "certificate"
) -> GibbsRisk:
    """Risks of the stochastic network on the problem's samples by the draws of a stage."""
    return gibbs_risk(
        problem.network,
        problem.x,
        problem.y,
        passes=passes,
        batch_size=recipe.batch_size,
        p_min=recipe.p_min,
        seed=stage_seed(seed, stage),
        task=task,
    )


def tally(problem: Problem, prior: Prior, penalty: float, risk: GibbsRisk, p_min: float, division: Division) -> Counted:
    """Count all that a certificate of the problem is made from; samples that the split left out are paid here."""
    return Counted(
        risk=risk,
        kl=problem.network.exact_kl(prior),
        penalty=penalty + division.nats,
        n=len(problem.y),
        holdout_errors=holdout_errors(problem),
        constant_errors=len(problem.y) - int(problem.y.bincount().max()),
        sigma=float(prior.sigma or 0.0),
        p_min=p_min,
        left_out=len(division.left_out),
    )


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


class _Clock:
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
    from flatminima.data.augment import random_shift

    return partial(random_shift, pixels=int(name.removeprefix("shift")))


def checksum(model: nn.Module) -> str:
    """Hash of a network's weights and buffers, by name."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
