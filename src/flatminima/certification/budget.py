"""What a recipe costs on this machine, from a few timed steps, and the recipe that fits a time budget."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from flatminima.certification.recipe import Recipe
from flatminima.certification.split import fair_draw
from flatminima.certification.train import make_problem, tensors_at
from flatminima.core.guard import same_randomness
from flatminima.core.samples import as_samples
from flatminima.errors import UsageError

# Of the budget: the prior earns most, and evaluation needs draws of the order of ten passes.
_PRIOR, _POSTERIOR, _EVALUATION = 0.6, 0.15, 0.1
_MOST_PASSES = 100
_STEPS = 4
_ROOM = 0.9  # a machine that other work slows down should still make it


@dataclass(frozen=True)
class Cost:
    """Seconds of one epoch of each training and of one evaluation pass."""

    prior_epoch: float
    posterior_epoch: float
    evaluation_pass: float

    def total(self, recipe: Recipe) -> float:
        """Seconds of a recipe, without reading data and without frozen features."""
        prior = recipe.prior.epochs * self.prior_epoch
        return prior + recipe.epochs * self.posterior_epoch + recipe.passes * self.evaluation_pass


def cost(model: nn.Module, train_data: Any, recipe: Recipe, seed: int = 0) -> Cost:
    """Time a few steps of each stage on copies of the network.

    Args:
        model, train_data, recipe, seed: as for `certify`.

    Returns:
        Cost; 0 for a stage that the recipe does not have.
    """
    samples = as_samples(train_data)
    division = fair_draw(samples, recipe.prior_fraction, seed)
    base = copy.deepcopy(model)
    with same_randomness():
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
        return Cost(prior, _timed(learn) * batches if recipe.epochs else 0.0, _timed(draw) * batches)


def within(recipe: Recipe, found: Cost, seconds: float) -> Recipe:
    """The recipe with as many epochs and passes as the budget allows.

    Raises:
        UsageError: not even one epoch and pass fit.
    """
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
