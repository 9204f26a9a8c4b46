"""PAC-Bayes-kl certificate of a Gaussian around given weights, by the one pipeline of kl inverses.

P = N(w_prior, sigma^2 I), Q = N(w, sigma^2 I): KL = ||w - w_prior||^2 / (2 sigma^2). The Gibbs risk on the bound's
samples comes from fresh weights for every batch of equal size: the batch losses are independent and lie in [0, 1], so
Hoeffding (1963) covers them although they are not identically distributed, and a pass over the data counts as many
draws as it has batches. Images that share weights within a batch are one draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from flatminima import bounds, progress
from flatminima.certification.certificate import Assumption, Certificate
from flatminima.certification.draws import mistakes_at
from flatminima.core.minimum import Minimum
from flatminima.core.perturbation import Explicit, Gaussian
from flatminima.core.samples import TensorSamples, as_samples
from flatminima.errors import DataError, UsageError

_FEWEST = 8  # samples that the PAC-Bayes-kl bound needs
_DUPLICATES = 0.01  # share of bound samples that may also occur in the prior's data, as real data sets have duplicates


@dataclass(frozen=True)
class Union:
    """What the certificate was chosen from: priors that could have been used, and certificates computed."""

    candidates: int = 1
    evaluations: int = 1

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.evaluations < 1:
            raise UsageError(f"got {self}; both count at least the one at hand")


def certify_gaussian(
    model: nn.Module,
    prior: Tensor,
    bound_data: tuple[Tensor, Tensor],
    *,
    sigma: float,
    prior_data: tuple[Tensor, Tensor] | None,
    prior_text: str,
    delta: float = 0.025,
    delta_mc: float = 0.01,
    draws: int = 2_000,
    batch_size: int = 64,
    union: Union | None = None,
    seed: int = 0,
) -> Certificate:
    """Bound the 0-1 error of the network that draws its weights from N(w, sigma^2 I), w the model's.

    Args:
        model: classifier in eval mode, its weights the posterior's mean.
        prior: (W,) weights of the prior's mean, made without the bound's samples.
        bound_data: (x, y), the samples of the bound; the posterior may have been trained on them.
        sigma: standard deviation of prior and posterior, fixed without the bound's samples, or one of `union`.
        prior_data: what the prior was trained on; None for a prior from its seed alone.
        prior_text: where the prior comes from, for the reader.
        delta, delta_mc: failure probabilities, in (0, 1).
        draws: of the weights, at least; rounded up to whole passes over the samples.
        batch_size: samples a draw at most; the largest divisor of n up to it is used.
        union: of what this is one.
        seed: of the draws, made after the posterior was frozen.

    Returns:
        Certificate of the stochastic network, the hold-out bound of the prior's mean network beside it.

    Raises:
        UsageError: delta, sigma or draws out of range, fewer than 8 samples, weights of the wrong length.
        DataError: samples of the bound among the prior's.

    Source: Langford & Caruana (2002), Maurer (2004), Dziugaite & Roy (2017), Perez-Ortiz et al. (2021).
    """
    union = union or Union()
    samples = as_samples(bound_data)
    n = len(samples)
    _check(n, sigma, delta, delta_mc, draws)
    shared = _overlap(samples, prior_data)
    minimum = Minimum(model, samples)
    weights = minimum.parameters.flat(torch.float64).cpu()
    if prior.shape != weights.shape or not bool(torch.isfinite(prior).all()):
        raise UsageError(f"got a prior of shape {tuple(prior.shape)}; expected {weights.numel()} finite weights, flat")
    kl = float((weights - prior.double().cpu()).square().sum()) / (2 * sigma**2)
    risk, made = gibbs_error(minimum, sigma, draws, batch_size, seed)
    upper = float(bounds.monte_carlo_risk(risk, made, delta_mc / union.evaluations))
    bound = float(bounds.pac_bayes_kl(upper, kl, n, delta / union.candidates))
    wrong = mistakes_at(minimum, prior)
    holdout = float(bounds.binomial_tail_inverse(wrong, n, (delta + delta_mc) / union.candidates))
    return Certificate(
        risk_bound=bound,
        empirical_risk=risk,
        monte_carlo_upper=upper,
        kl=kl,
        sigma=sigma,
        n=n,
        draws=made,
        delta=delta,
        delta_mc=delta_mc,
        candidates=union.candidates,
        evaluations=union.evaluations,
        holdout_bound=holdout,
        holdout_network="prior's mean network",
        prior=prior_text,
        assumptions=_assumptions(n, shared, prior_data, union),
    )


def gibbs_error(minimum: Minimum, sigma: float, draws: int, batch_size: int, seed: int) -> tuple[float, int]:
    """Monte-Carlo mean of the 0-1 error under N(w, sigma^2 I), fresh weights for every batch, and how many draws."""
    n = len(minimum.samples)
    size = next(d for d in range(min(batch_size, n), 0, -1) if n % d == 0)
    passes = math.ceil(draws * size / n)
    noise = Gaussian(Explicit(torch.full((len(minimum.parameters),), sigma)))
    mistakes, made = 0, 0
    with minimum.open(), torch.no_grad():
        weights = minimum.parameters.flat()
        try:
            for turn in range(passes):
                for indices in torch.arange(n).split(size):
                    batch = minimum.batch(indices)
                    minimum.parameters.assign(weights + noise.draw(weights, seed, made))
                    mistakes += int((minimum.forward(batch.inputs).argmax(1) != batch.targets).sum())
                    made += 1
                progress.report("certificate", turn + 1, passes)
        finally:
            minimum.parameters.assign(weights)
    return mistakes / (passes * n), made


def _check(n: int, sigma: float, delta: float, delta_mc: float, draws: int) -> None:
    if n < _FEWEST:
        raise UsageError(f"got {n} samples for the bound; the PAC-Bayes-kl bound needs at least {_FEWEST}")
    if not (math.isfinite(sigma) and sigma > 0):
        raise UsageError(f"got sigma={sigma!r}; the Gaussian's standard deviation must be positive")
    if not (0 < delta < 1 and 0 < delta_mc < 1 and delta + delta_mc < 1):
        raise UsageError(f"got delta={delta!r}, delta_mc={delta_mc!r}; both in (0, 1), their sum below 1")
    if draws < 1:
        raise UsageError(f"got draws={draws!r}; at least one draw of the weights is needed")


def _overlap(samples: TensorSamples | object, prior_data: tuple[Tensor, Tensor] | None) -> int:
    if prior_data is None or len(prior_data[1]) == 0:
        return 0
    own = as_samples(samples).hashes
    shared = int(np.isin(own, as_samples(prior_data).hashes).sum())
    if shared > max(1, _DUPLICATES * len(own)):
        raise DataError(
            f"{shared} of the bound's {len(own)} samples were also used for the prior; "
            "train the prior on samples that the bound does not use"
        )
    return shared


def _assumptions(n: int, shared: int, prior_data: tuple[Tensor, Tensor] | None, union: Union) -> tuple[Assumption, ...]:
    source = "no data" if prior_data is None else f"{len(prior_data[1])} other samples"
    return (
        Assumption("the loss lies in [0, 1]", True, "0-1 error"),
        Assumption(
            "the prior does not depend on the bound's samples", True, f"made from {source}; {shared} equal by content"
        ),
        Assumption("n counts the bound's samples only", True, f"n = {n}"),
        Assumption("the samples are independent and identically distributed", None, "rests on how they were gathered"),
        Assumption("no augmentation, dropout or batch statistics", True, "deterministic forward pass in eval mode"),
        Assumption("choices made after seeing the samples are paid for", True, f"union over {union.candidates} priors"),
        Assumption("best of several certificates is paid for", True, f"union over {union.evaluations} evaluations"),
        Assumption("the statement is about fresh weights for each prediction", True, "not about the mean network"),
        Assumption("divergence in float64, kl inverse rounded outward", True, "flatminima.bounds"),
    )
