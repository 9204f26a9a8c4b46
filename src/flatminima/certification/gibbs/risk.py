"""Risk of a network whose weights are drawn from a posterior, and how many independent draws stand behind it.

A diagonal Gaussian is drawn anew for every example where the layers allow it (see `per_example`): n draws a pass.
Correlated or bounded noise cannot be, so one draw serves a batch. Batches are of equal size; their mean losses are
independent, lie in [0, 1] and average to E_Q of the empirical risk in expectation, so Hoeffding (1963) and its kl form
hold with as many draws as there are batches, although the batches' means are not identically distributed.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flatminima import progress
from flatminima.certification.gibbs.outputs import Logits, class_labels, two_class
from flatminima.certification.gibbs.posteriors import DiagonalGaussian, Posterior
from flatminima.certification.gibbs.stochastic import StochasticNetwork
from flatminima.core.minimum import Minimum
from flatminima.core.perturbation import generator
from flatminima.core.samples import TensorSamples
from flatminima.errors import DataError, ModelError, NumericalError

_AT_ONCE, _MOST = 32, 1 << 24  # draws made together, and numbers in them


@dataclass(frozen=True)
class GibbsRisk:
    """Risk of fresh draws of the weights on given samples.

    Attributes:
        error, cross_entropy: mean 0-1 loss and mean clamped cross-entropy, both in [0, 1].
        draws: independent draws of the weights behind them.
        by: "example" or "batch", what shares a draw.
    """

    error: float
    cross_entropy: float
    draws: int
    by: str


def clamped_cross_entropy(logits: Tensor, targets: Tensor, p_min: float) -> Tensor:
    """ln(1 / max(p, p_min)) / ln(1 / p_min) of each sample, in [0, 1]."""
    log_p = logits.log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
    return log_p.clamp_min(math.log(p_min)) / math.log(p_min)


@torch.no_grad()
def gibbs_risk(
    network: StochasticNetwork,
    x: Tensor,
    y: Tensor,
    *,
    passes: int = 1,
    batch_size: int = 250,
    p_min: float = 1e-5,
    seed: int = 0,
    task: str = "certificate",
) -> GibbsRisk:
    """Risks of the stochastic network over samples, fresh weights for every example and pass.

    Where `network.by` is "batch", batches are of equal size (the largest divisor of n up to `batch_size`) and each is
    one draw: independent losses in [0, 1] that need not be identically distributed (Hoeffding 1963).

    Args:
        x, y: n samples.
        passes: over the samples, each with fresh draws.
        seed: of the draws; the same seed gives the same numbers.

    Raises:
        DataError: lengths that differ. NumericalError: an output that is not finite.
    """
    if len(x) != len(y) or len(y) == 0:
        raise DataError(f"got {len(x)} inputs and {len(y)} targets; expected as many, and at least one")
    if not network.by:
        network.probe(x)
    n = len(y)
    size = batch_size if network.by == "example" else divisor(n, batch_size)
    starts = range(0, n, size)
    wrong, loss = 0, 0.0
    for turn in range(passes):
        for index, start in enumerate(starts):
            noise = generator(seed, turn * len(starts) + index)
            targets = y[start : start + size]
            logits = two_class(network(x[start : start + size], noise))
            wrong += errors(logits, targets)
            loss += float(clamped_cross_entropy(logits.double(), targets, p_min).sum())
            progress.report(task, turn * len(starts) + index + 1, passes * len(starts))
    total = passes * n
    draws = total if network.by == "example" else passes * len(starts)
    return GibbsRisk(wrong / total, min(loss / total, 1.0), draws, network.by)


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
        labels = class_labels(y, network.mean_network(x[:1]), minimum.loss)
        passes = math.ceil(draws / n)
        return gibbs_risk(network, x, labels, passes=passes, batch_size=minimum.batch_size, p_min=p_min, seed=seed)
    return by_batch(minimum, posterior, blocks_of(n, draws, batch_size), p_min=p_min, seed=seed)


def blocks_of(n: int, draws: int, batch_size: int) -> list[Tensor]:
    """Indices in blocks of one size, at least as many as draws are wanted, over whole passes."""
    size = divisor(n, batch_size)
    return [block for _ in range(math.ceil(draws * size / n)) for block in torch.arange(n).split(size)]


@torch.no_grad()
def by_batch(
    minimum: Minimum, posterior: Posterior, blocks: list[Tensor], *, p_min: float, seed: int, task: str = "certificate"
) -> GibbsRisk:
    """The same with one draw for each block of indices, all of one size.

    Raises:
        NumericalError: an output that is not finite. ModelError: a network that does not follow its weights.
    """
    wrong, loss, seen = 0, 0.0, 0
    with minimum.open(), torch.no_grad():
        kept = minimum.parameters.flat()
        # a sum in half precision would round the noise before it is added, which no prior is drawn like
        weights = kept.float() if kept.dtype in (torch.float16, torch.bfloat16) else kept
        at_once = max(1, min(_AT_ONCE, _MOST // len(weights)))
        noise = weights.new_empty(0, len(weights))
        for index, indices in enumerate(blocks):
            place = index % at_once
            if place == 0:
                noise = posterior.draws(weights, seed, range(index, min(index + at_once, len(blocks))))
            drawn = weights + noise[place]
            if index == 0 and not torch.equal(drawn.to(kept), kept):
                _refuse_still(minimum, indices[: minimum.batch_size], drawn)
            with minimum.at(drawn):
                for part in indices.split(minimum.batch_size):
                    counted = _counted(minimum, part, p_min)
                    wrong, loss = wrong + counted[0], loss + counted[1]
            seen += len(indices)
            progress.report(task, index + 1, len(blocks))
    return GibbsRisk(wrong / seen, min(loss / seen, 1.0), len(blocks), "batch")


def _counted(minimum: Minimum, rows: Tensor, p_min: float) -> tuple[int, float]:
    """Errors, and the sum of clamped cross-entropies, at the weights as they are now."""
    batch = minimum.batch(rows)
    output = minimum.forward(batch.inputs)
    labels = class_labels(batch.targets, output, minimum.loss)
    logits = two_class(output)
    return errors(logits, labels), float(clamped_cross_entropy(logits.double(), labels, p_min).sum())


def _refuse_still(minimum: Minimum, rows: Tensor, drawn: Tensor) -> None:
    """Refuse a network that does not follow its weights: it would be evaluated at the mean, whatever is drawn.

    Raises:
        ModelError: weights that moved, and outputs that are the same to the last bit.
    """
    inputs = minimum.batch(rows).inputs
    before = minimum.forward(inputs)
    with minimum.at(drawn):
        same = torch.equal(minimum.forward(inputs), before)
    if same:
        raise ModelError(
            "the network's outputs stay the same when its weights are drawn anew: it computes with a copy of them; let "
            "it read its parameters at each pass"
        )


def errors(logits: Tensor, labels: Tensor) -> int:
    """0-1 mistakes; what is not finite is no prediction.

    Raises:
        NumericalError: NaN or an infinity as the largest of the logits, which would be taken for a prediction.
    """
    if not bool((logits < math.inf).all()):
        raise NumericalError("the network's output is NaN or Inf at drawn weights: use a smaller sigma, or float32")
    return int((logits.argmax(1) != labels).sum())


def errors_at(minimum: Minimum, weights: Tensor) -> Tensor:
    """Mark the samples that the deterministic network with other weights (W,) errs on, (n,) on the CPU."""
    wrong = []
    with minimum.at(weights.to(minimum.parameters.flat())), torch.no_grad():
        for indices in torch.arange(len(minimum.samples)).split(minimum.batch_size):
            batch = minimum.batch(indices)
            output = minimum.forward(batch.inputs)
            labels = class_labels(batch.targets, output, minimum.loss, int(indices[0]))
            wrong.append((two_class(output).argmax(1) != labels).cpu())
    return torch.cat(wrong)


def constant_errors(minimum: Minimum) -> Tensor:
    """Mark the samples that the best constant answer errs on, (n,) on the CPU."""
    labels = []
    for part in torch.arange(len(minimum.samples)).split(minimum.batch_size):
        targets = minimum.samples.take(part)[1]
        labels.append(targets.reshape(len(targets), -1)[:, 0].long().cpu())
    y = torch.cat(labels)
    most: int = Counter(y.tolist()).most_common(1)[0][0]
    return torch.as_tensor(y != most)


def divisor(n: int, most: int) -> int:
    """The largest divisor of n up to `most`."""
    return next(d for d in range(min(most, n), 0, -1) if n % d == 0)


def _by_example(minimum: Minimum, posterior: Posterior) -> StochasticNetwork | None:
    """The network with fresh weights for each example, or None where a draw has to serve a batch."""
    samples = minimum.samples
    if not isinstance(posterior, DiagonalGaussian) or not isinstance(samples, TensorSamples):
        return None
    if not isinstance(samples.inputs, Tensor) or samples.inputs.device != minimum.device:
        return None
    if samples.targets.device != minimum.device:
        return None
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in minimum.parameters.tensors):
        return None
    with minimum.open():
        needed = Logits if minimum.writes_inputs else partial(Logits.needed, x=samples.inputs[:1])
        network = StochasticNetwork(needed(minimum.model, which=minimum.output), posterior.scale)
        network.probe(samples.inputs)
    if network.by != "example":
        return None
    with torch.no_grad():
        for rho, sigma in zip(network.log_sigmas, minimum.parameters.split(posterior.sigma), strict=True):
            rho.copy_(sigma.log())
    return network
