"""Risk of a network whose weights are drawn from a posterior, and how many independent draws stand behind it.

A diagonal Gaussian is drawn anew for every example where the layers allow it (see `per_example`): n draws a pass.
Correlated or bounded noise cannot be, so one draw serves a batch. Batches are of equal size; their mean losses are
independent, lie in [0, 1] and average to E_Q of the empirical risk in expectation, so Hoeffding (1963) and its kl form
hold with as many draws as there are batches, although the batches' means are not identically distributed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flatminima import progress
from flatminima.certification.posteriors import DiagonalGaussian, Posterior
from flatminima.certification.stochastic import GibbsRisk, StochasticNetwork, clamped_cross_entropy, gibbs_risk
from flatminima.core.minimum import Minimum
from flatminima.core.samples import TensorSamples

_AT_ONCE, _MOST = 32, 1 << 24  # draws made together, and numbers in them


def risk_of(
    minimum: Minimum, posterior: Posterior, *, draws: int, batch_size: int, p_min: float, seed: int
) -> GibbsRisk:
    """0-1 error and clamped cross-entropy of the stochastic network on all of the minimum's samples.

    Args:
        draws: of the weights, at least; rounded up to whole passes.
        batch_size: samples that share a draw, where they have to; the largest divisor of n up to it is used.
        p_min: clamp of the cross-entropy.
        seed: of the draws.
    """
    n = len(minimum.samples)
    network = _by_example(minimum, posterior)
    if network is not None:
        x, y = minimum.samples.inputs, minimum.samples.targets  # type: ignore[attr-defined]
        passes = math.ceil(draws / n)
        return gibbs_risk(network, x, y.long(), passes=passes, batch_size=minimum.batch_size, p_min=p_min, seed=seed)
    size = next(d for d in range(min(batch_size, n), 0, -1) if n % d == 0)
    blocks = [block for _ in range(math.ceil(draws * size / n)) for block in torch.arange(n).split(size)]
    return by_batch(minimum, posterior, blocks, p_min=p_min, seed=seed)


def by_batch(
    minimum: Minimum, posterior: Posterior, blocks: list[Tensor], *, p_min: float, seed: int, task: str = "certificate"
) -> GibbsRisk:
    """The same with one draw for each block of indices, all of one size."""
    wrong, loss, seen = 0, 0.0, 0
    with minimum.open(), torch.no_grad():
        weights = minimum.parameters.flat()
        at_once = max(1, min(_AT_ONCE, _MOST // len(weights)))
        noise = weights.new_empty(0, len(weights))
        try:
            for index, indices in enumerate(blocks):
                place = index % at_once
                if place == 0:
                    noise = posterior.draws(weights, seed, range(index, min(index + at_once, len(blocks))))
                minimum.parameters.assign(weights + noise[place])
                for part in indices.split(minimum.batch_size):
                    batch = minimum.batch(part)
                    output = minimum.forward(batch.inputs)
                    wrong += int((output.argmax(1) != batch.targets).sum())
                    loss += float(clamped_cross_entropy(output.double(), batch.targets, p_min).sum())
                seen += len(indices)
                progress.report(task, index + 1, len(blocks))
        finally:
            minimum.parameters.assign(weights)
    return GibbsRisk(wrong / seen, min(loss / seen, 1.0), len(blocks), "batch")


def mistakes_at(minimum: Minimum, weights: Tensor) -> int:
    """0-1 mistakes of the deterministic network with other weights (W,)."""
    own = minimum.parameters.flat()
    wrong = 0
    with minimum.open(), torch.no_grad():
        try:
            minimum.parameters.assign(weights.to(own))
            for indices in torch.arange(len(minimum.samples)).split(minimum.batch_size):
                batch = minimum.batch(indices)
                wrong += int((minimum.forward(batch.inputs).argmax(1) != batch.targets).sum())
        finally:
            minimum.parameters.assign(own)
    return wrong


def _by_example(minimum: Minimum, posterior: Posterior) -> StochasticNetwork | None:
    """The network with fresh weights for each example, or None where a draw has to serve a batch."""
    samples = minimum.samples
    if not isinstance(posterior, DiagonalGaussian) or not isinstance(samples, TensorSamples):
        return None
    if not isinstance(samples.inputs, Tensor) or samples.inputs.device != minimum.device:
        return None
    with minimum.open():
        network = StochasticNetwork(minimum.model, posterior.scale)
        network.probe(samples.inputs)
    if network.by != "example":
        return None
    with torch.no_grad():
        for rho, sigma in zip(network.log_sigmas, minimum.parameters.split(posterior.sigma), strict=True):
            rho.copy_(sigma.log())
    return network
