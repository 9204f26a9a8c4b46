"""The public `certify`: a network yet to be trained, within a time where one is given, or an existing minimum.

What a recipe costs on this machine is measured by a few timed steps of each stage.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from flatminima.certification.arguments import of_kind, real
from flatminima.certification.around import certify_around
from flatminima.certification.around_setting import refuse_others_minimum
from flatminima.certification.certificate import Certificate
from flatminima.certification.division.reading import read_samples
from flatminima.certification.division.split import Drawn, Groups, Repetition, fair_draw
from flatminima.certification.from_recipe import certify_recipe
from flatminima.certification.gibbs.outputs import Logits, Packing
from flatminima.certification.ledger import Account
from flatminima.certification.pipeline import Union
from flatminima.certification.provenance import Factory, Start
from flatminima.certification.recipe import Recipe
from flatminima.certification.record import save
from flatminima.certification.train import check_task, make_problem, tensors_at
from flatminima.core.ambient import neutral
from flatminima.core.guard import same_randomness
from flatminima.core.minimum import Minimum
from flatminima.core.parameters import copied
from flatminima.core.samples import Samples, as_samples, seed_number
from flatminima.errors import UsageError
from flatminima.io import claimed, json_text, write_whole
from flatminima.training import TrainConfig
from flatminima.untrusted import read_json

# Of the budget: the prior earns most, and evaluation needs draws of the order of ten passes.
_PRIOR, _POSTERIOR, _EVALUATION = 0.6, 0.15, 0.1
_MOST_PASSES = 100
_STEPS = 4
_ROOM = 0.9  # a machine that other work slows down should still make it


@dataclass(frozen=True)
class StageCosts:
    """Seconds of one epoch of each training and of one evaluation pass."""

    prior_epoch: float
    posterior_epoch: float
    evaluation_pass: float

    def total(self, recipe: Recipe) -> float:
        """Seconds of a recipe, without reading data and without frozen features."""
        prior = recipe.prior.epochs * self.prior_epoch
        return prior + recipe.epochs * self.posterior_epoch + recipe.passes * self.evaluation_pass


def cost(model: nn.Module, train_data: Any, recipe: Recipe, seed: int = 0) -> StageCosts:
    """Time a few steps of each stage on copies of the network.

    Args:
        model, train_data, recipe, seed: as for `certify`.

    Returns:
        Cost; 0 for a stage that the recipe does not have.
    """
    samples = as_samples(train_data)
    division = fair_draw(samples, recipe.prior_fraction, seed)
    with same_randomness():
        few, _ = tensors_at(samples, division.bound[:2], model)
        base = Logits.needed(copied(model), few)
        check_task(base, few, [samples], recipe, len(division.prior))
        prior = 0.0
        if len(division.prior):
            x, y = tensors_at(samples, division.prior[: recipe.prior.batch_size], base)
            base.train()

            def step() -> None:
                nn.functional.cross_entropy(base(x), y).backward()

            prior = _timed(step) * len(division.prior) / len(y)
        rows = division.bound[: recipe.batch_size]
        problem = make_problem(base.eval(), samples, rows, recipe)
        problem.network.probe(problem.x)

        def learn() -> None:
            problem.network(problem.x, kernels_by_batch=True).sum().backward()

        def draw() -> None:
            with torch.no_grad():
                problem.network(problem.x)

        batches = len(division.bound) / len(rows)
        return StageCosts(prior, _timed(learn) * batches if recipe.epochs else 0.0, _timed(draw) * batches)


def in_time(recipe: Recipe, found: StageCosts, seconds: float) -> Recipe:
    """The recipe with as many epochs and passes as the budget allows.

    Raises:
        UsageError: no time, or not even one epoch and pass fit.
    """
    seconds = real("seconds", seconds, "600")
    if not 0 < seconds < math.inf:
        raise UsageError(f"got seconds={seconds!r}; expected a time above 0, e.g. 600")
    spend = seconds * _ROOM
    least = replace(recipe, prior=replace(recipe.prior, epochs=1), epochs=min(recipe.epochs, 1), passes=1)
    if found.total(least) > spend:
        raise UsageError(
            f"one epoch of each training takes about {found.total(least):.0f} s; "
            f"give more than {seconds:.0f} s or a smaller network"
        )
    # a data-free prior leaves its share to the posterior
    share = _POSTERIOR + (0.0 if found.prior_epoch else _PRIOR)
    prior = max(1, math.floor(spend * _PRIOR / found.prior_epoch)) if found.prior_epoch else recipe.prior.epochs
    epochs = max(1, math.floor(spend * share / found.posterior_epoch)) if found.posterior_epoch else 0
    passes = max(1, min(_MOST_PASSES, math.floor(spend * _EVALUATION / found.evaluation_pass)))
    return replace(recipe, prior=replace(recipe.prior, epochs=prior), epochs=epochs, passes=passes)


def _timed(step: Callable[[], None]) -> float:
    """Seconds of one call, the first left out."""
    step()
    start = time.perf_counter()
    for _ in range(_STEPS):
        step()
    return (time.perf_counter() - start) / _STEPS


PLAN = "recipe.json"


@neutral()
def certify(
    model: nn.Module | Factory | None = None,
    train_data: Any = None,
    *,
    minimum: Minimum | None = None,
    posterior: str = "fisher_laplace",
    prior: nn.Module | Factory | str | None = None,
    prior_data: Any = None,
    prior_training: TrainConfig | None = None,
    prior_fraction: float = 0.0,
    stated: str = "",
    delta: float = 0.05,
    delta_mc: float | None = None,
    recipe: Recipe | None = None,
    seconds: float | None = None,
    test_data: Any = None,
    output: str | Path | None = None,
    source: Mapping[str, Any] | None = None,
    evaluations: int | None = None,
    ledger: str | Path | Literal[False] | None = None,
    groups: Groups | None = None,
    prior_groups: Groups | None = None,
    repetition: Repetition = "tested",
    score: bool = False,
    seed: int = 0,
) -> Certificate:
    """A bound on the error of a stochastic network, which holds with probability 1 - delta over its training data.

    The samples are divided by content: one part trains the mean of the prior P = N(w0, sigma^2 I), the other the
    posterior Q = N(mu, diag sigma_i^2), by minimising a PAC-Bayes bound. With p the mean 0-1 loss of fresh weights for
    every example (N_mc draws), n the samples of the second part, k certificates that could have been chosen and delta'
    = delta - delta_mc,

        L+ = kl^-1(p, ln(k / delta_mc) / N_mc),    E_Q L <= kl^-1(L+, (KL(Q || P) + ln(2 sqrt(n) k / delta')) / n).

    Args:
        model: a function that makes the network, (batch, ...) to logits (batch, classes), called here under `seed` (and
            as `seed=`, where it takes one); or a network, left as it was, whose weights are then for you to state.
        train_data: (inputs, labels), a Dataset or a DataLoader, without augmentation.
        minimum: instead of these two, a network that is trained already, with samples that its prior has not seen;
            then `posterior`, `prior`, `prior_data`, `prior_training` and `prior_fraction` are those of
            `certify_around`, which has more options.
        stated: where the weights of a network that is handed in come from, in your words: "untrained", or what it was
            trained on, none of `train_data`. They are printed first; without them the number is a score.
        delta: total failure probability in (0, 1). delta_mc: the Monte-Carlo step's part; a fifth by default.
        recipe: how prior and posterior are made; the defaults of `Recipe`.
        seconds: fit epochs and passes of the recipe to this much time on this machine.
        test_data: only to report the error on it; refused where it is training data.
        output: folder for certificate.json, weights.safetensors and the ledger; a run that was killed goes on from
            there.
        source: of model and data, recorded for whoever recomputes the certificate.
        evaluations: how many certificates on these samples could have been chosen, this one included: the length of a
            list that was fixed before they were seen. delta is divided by it. None for this one alone, or for what the
            ledger counts.
        ledger: file that counts the certificates of these samples, across commands; one in `output` by default, False
            for none.
        groups: an identifier a sample, of what was drawn independently (a patient, a document, an augmented original);
            the division and n count groups then. prior_groups: the same of `prior_data`.
        repetition: "tested", whether independent draws explain rows that repeat; or "independent", your word that every
            repeated row was drawn anew.
        score: give a number also where a condition fails; `is_certificate` is then False.
        seed: of the initial weights, the division and everything drawn.

    Returns:
        Certificate, with the binomial hold-out bound of the prior's network on the same samples beside it.

    Raises:
        UsageError, DataError, ModelError: what would not be a certificate, with the reason and what to do.

    Source: Dziugaite & Roy (2017), Perez-Ortiz et al. (2021); docs/certificates.md.

    Examples:
        >>> import torch
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> certificate = certify(lambda: nn.Linear(2, 2), (x, (x[:, 0] > 0).long()), delta=0.05)
        >>> certificate.standing, certificate.n, certificate.draws
        ('certificate', 100, 1000)
    """
    union = None if evaluations is None else Union(evaluations=evaluations)
    seed = seed_number(seed)
    if minimum is not None:
        refuse_others_minimum(minimum)
        if any(x is not None for x in (model, train_data, recipe, seconds)):
            raise UsageError(
                "got a minimum beside what trains a network (model, train_data, recipe, seconds); "
                "a Minimum has its model and its samples: leave the others out"
            )
        if prior is None:
            raise UsageError(
                "a certificate around a minimum needs its prior: prior= a function that makes the initial network, or "
                "a network trained on prior_data="
            )
        with nullcontext() if output is None else claimed(Path(output)) as folder:
            kept = _ledger(ledger, folder, minimum.samples)
            return certify_around(minimum, posterior, prior=prior, prior_data=prior_data, prior_training=prior_training,
                                  prior_fraction=prior_fraction, stated=stated, delta=delta, delta_mc=delta_mc,
                                  union=union, ledger=kept,
                                  test_data=test_data, groups=groups, prior_groups=prior_groups,
                                  repetition=repetition, output=folder,
                                  source=source, score=score, seed=seed)  # fmt: skip
    if prior_fraction or any(x is not None for x in (prior, prior_data, prior_training, prior_groups)):
        raise UsageError("got a prior without a minimum; for a network that certify trains, the recipe makes the prior")
    if model is None or train_data is None:
        raise UsageError("certify needs a model and its training data, or minimum= and its prior=")
    recipe = recipe or Recipe()
    of_kind("recipe", recipe, Recipe)
    with nullcontext() if output is None else claimed(Path(output)) as folder:
        samples = read_samples(train_data)
        if seconds is not None:
            recipe = _planned(model, samples, recipe, seconds, folder, seed)
        certified = certify_recipe(
            model,
            samples,
            account=Account(delta, delta_mc, union, _ledger(ledger, folder, samples)),
            recipe=recipe,
            test_data=test_data,
            stated=stated,
            folder=folder,
            drawn=Drawn(groups, repetition),
            score=score,
            seed=seed,
        )
        if folder is not None:
            save(certified, folder, source)
        return certified.certificate


def _ledger(given: str | Path | Literal[False] | None, folder: Path | None, samples: Samples) -> Path | None:
    """The ledger's file: as given, or one of these samples in the folder."""
    if given is False or (given is None and folder is None):
        return None
    return Path(given) if given is not None else Path(folder or ".") / f"ledger-{samples.fingerprint}.json"


def _planned(
    model: nn.Module | Factory, samples: Samples, recipe: Recipe, seconds: float, folder: Path | None, seed: int
) -> Recipe:
    """The recipe within the time; a run that goes on keeps the plan that it began with."""
    asked = {"recipe": recipe.to_dict(), "seconds": seconds, "seed": seed}
    if folder is not None and (folder / PLAN).exists():
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):  # damaged: planned anew
            plan = read_json(folder / PLAN)
            if plan["asked"] == json.loads(json.dumps(asked)):
                return Recipe.from_dict(plan["plan"])
    found = in_time(recipe, cost(Start.of(model, seed, Packing.of(samples)).network, samples, recipe, seed), seconds)
    if folder is not None:
        write_whole(folder / PLAN, json_text({"asked": asked, "plan": found.to_dict()}, finite=False) + "\n")
    return found
