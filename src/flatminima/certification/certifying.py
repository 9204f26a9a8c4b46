"""The public `certify`, which finds out what is asked for: a network yet to be trained, or an existing minimum."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from flatminima.certification.around import certify_around
from flatminima.certification.budget import cost, within
from flatminima.certification.certificate import Certificate
from flatminima.certification.gaussian import Union
from flatminima.certification.learned import learn
from flatminima.certification.recipe import Recipe
from flatminima.certification.record import save
from flatminima.core.minimum import Minimum
from flatminima.core.samples import as_samples
from flatminima.errors import UsageError
from flatminima.io import claimed, write_whole

PLAN = "recipe.json"


def certify(
    model: nn.Module | None = None,
    train_data: Any = None,
    *,
    minimum: Minimum | None = None,
    posterior: str = "fisher_laplace",
    prior: nn.Module | Callable[[], nn.Module] | str | None = None,
    prior_data: Any = None,
    delta: float = 0.05,
    delta_mc: float | None = None,
    recipe: Recipe | None = None,
    seconds: float | None = None,
    test_data: Any = None,
    initial: str = "",
    output: str | Path | None = None,
    source: Mapping[str, Any] | None = None,
    evaluations: int = 1,
    score: bool = False,
    seed: int = 0,
) -> Certificate:
    """A bound on the error of a stochastic network, which holds with probability 1 - delta over its training data.

    The samples are divided by content: one part trains the mean of the prior P = N(w0, sigma^2 I), the other the
    posterior Q = N(mu, diag sigma_i^2), by minimising a PAC-Bayes bound. With p the mean 0-1 loss of fresh weights for
    every example (N_mc draws), n the samples of the second part and delta' = delta - delta_mc,

        L+ = kl^-1(p, ln(1 / delta_mc) / N_mc),    E_Q L <= kl^-1(L+, (KL(Q || P) + ln(2 sqrt(n) / delta')) / n).

    Args:
        model: architecture and initial weights, maps (batch, ...) to logits (batch, classes); left as it was.
        train_data: (inputs, labels), a Dataset or a DataLoader, without augmentation.
        minimum: instead of these two, a network that is trained already, with samples that its prior has not seen;
            then `posterior`, `prior` and `prior_data` are those of `certify_around`, which has more options.
        delta: total failure probability in (0, 1). delta_mc: the Monte-Carlo step's part; a fifth by default.
        recipe: how prior and posterior are made; the defaults of `Recipe`.
        seconds: fit epochs and passes of the recipe to this much time on this machine.
        initial: where the model's weights come from, if they were trained: on none of `train_data`.
        test_data: only to report the error on it; refused where it is training data.
        output: folder for certificate.json and weights.safetensors; a run that was killed goes on from there.
        source: of model and data, recorded for whoever recomputes the certificate.
        evaluations: certificates computed of which this one was chosen; delta is divided by it.
        score: give a number also where a condition fails; `is_certificate` is then False.
        seed: of the division and of everything drawn.

    Returns:
        Certificate, with the binomial hold-out bound of the prior's network on the same samples beside it.

    Raises:
        UsageError, DataError, ModelError: what would not be a certificate, with the reason and what to do.

    Source: Dziugaite & Roy (2017), Perez-Ortiz et al. (2021); sec. 2.1 of formulas.md.

    Examples:
        >>> import torch
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> certificate = certify(nn.Linear(2, 2), (x, (x[:, 0] > 0).long()), delta=0.05)
        >>> certificate.is_certificate, certificate.n, certificate.draws
        (True, 100, 1000)
    """
    if minimum is not None:
        if any(x is not None for x in (model, train_data, recipe, seconds, output)):
            raise UsageError(
                "got a minimum beside what trains a network (model, train_data, recipe, seconds, output); "
                "a Minimum has its model and its samples: leave the others out"
            )
        union = Union(evaluations=evaluations)
        return _around(minimum, posterior, prior, prior_data, delta=delta, delta_mc=delta_mc, union=union,
                       test_data=test_data, score=score, seed=seed)  # fmt: skip
    if prior is not None or prior_data is not None:
        raise UsageError("got a prior without a minimum; for a network that certify trains, the recipe makes the prior")
    if model is None or train_data is None:
        raise UsageError("certify needs a model and its training data, or minimum= and its prior=")
    recipe = recipe or Recipe()
    with nullcontext() if output is None else claimed(Path(output)) as folder:
        samples = as_samples(train_data)
        if seconds is not None:
            recipe = _planned(model, samples, recipe, seconds, folder, seed)
        certified = learn(
            model,
            samples,
            delta=delta,
            delta_mc=delta_mc,
            recipe=recipe,
            test_data=test_data,
            initial=initial,
            evaluations=evaluations,
            folder=folder,
            score=score,
            seed=seed,
        )
        if folder is not None:
            save(certified, folder, source)
        return certified.certificate


def _around(
    minimum: Minimum,
    posterior: str,
    prior: nn.Module | Callable[[], nn.Module] | str | None,
    prior_data: Any,
    **options: Any,
) -> Certificate:
    if prior is None:
        raise UsageError(
            "a certificate around a minimum needs its prior: prior= a function that makes the initial network, or "
            "a network trained on prior_data="
        )
    return certify_around(minimum, posterior, prior=prior, prior_data=prior_data, **options)


def _planned(model: nn.Module, samples: Any, recipe: Recipe, seconds: float, folder: Path | None, seed: int) -> Recipe:
    """The recipe within the time; a run that goes on keeps the plan that it began with."""
    asked = {"recipe": recipe.to_dict(), "seconds": seconds, "seed": seed}
    if folder is not None and (folder / PLAN).exists():
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if plan.get("asked") == json.loads(json.dumps(asked)):
            return Recipe.from_dict(plan["plan"])
    found = within(recipe, cost(model, samples, recipe, seed), seconds)
    if folder is not None:
        write_whole(folder / PLAN, json.dumps({"asked": asked, "plan": found.to_dict()}, indent=1) + "\n")
    return found
