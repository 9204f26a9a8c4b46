"""The Fisher-Rao norm (Liang et al. 2019): the length of the weights in the metric of the Fisher matrix."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from flatminima.core.statistic import Statistic, Statistics
from flatminima.errors import UsageError
from flatminima.estimate import Estimate
from flatminima.measures._measure import at_least_one, catalogued_measure, seed_of, until
from flatminima.statistics import RadialCurvature, RadialGradients


@catalogued_measure
def fisher_rao_norm(
    minimum: Statistics,
    *,
    labels: Literal["data", "model"] = "data",
    samples: int | None = 10_000,
    rtol: float | None = None,
    seed: int | None = None,
) -> Estimate:
    """``||w||_fr = sqrt(<w, I(w) w>) = sqrt(mean_i <w, g_i>^2)``, g_i the gradient of sample i's loss.

    For a ReLU network of d layers without biases ``<w, g_i> = d <dl/df, f(x_i)>``: it is a function of the outputs
    alone, and no rescaling of weights that keeps the function changes it (with biases neither).

    Args:
        minimum: a Minimum.
        labels: "data", the empirical Fisher matrix I at the samples' labels, or "model", expected over labels drawn
            from the network (the Gauss-Newton matrix; C backward passes).
        samples: drawn by seed, at most; None: all.
        rtol: raise `samples` until the 95% interval is value (1 +- rtol).
        seed: of the samples; None: the Minimum's.

    Returns:
        Estimate; stderr over samples; details: n, squared (the paper's ||w||_fr^2), labels.
        Undefined: a gradient that overflows, or for labels="model" a loss without a Gauss-Newton matrix.

    Raises:
        UsageError: unknown labels, fewer than one sample.

    Source:
        Liang et al., AISTATS 2019, arXiv 1711.01530, definition 2 and theorem 3.1.

    Examples:
        >>> import torch
        >>> from flatminima import Minimum
        >>> net = torch.nn.Linear(1, 2, bias=False)
        >>> net.weight.data = torch.tensor([[1.0], [0.0]])
        >>> m = Minimum(net, (torch.ones(1, 1), torch.tensor([0])))
        >>> p = 1 / (1 + math.e)  # of the other class: <w, g> = -p
        >>> abs(float(fisher_rao_norm(m)) - p) < 1e-6
        True
    """
    at_least_one(samples=samples)
    if labels not in ("data", "model"):
        raise UsageError(f"got labels={labels!r}; expected 'data' or 'model'")
    kind = RadialGradients if labels == "data" else RadialCurvature

    def estimate(samples: int | None) -> Estimate:
        key: Statistic[Tensor] = kind(samples, seed_of(minimum, seed))
        squared = Estimate.mean(minimum[key], error_of="new data")
        if squared.value is None:
            return squared
        value = math.sqrt(squared.value)
        stderr = None if squared.stderr is None else (squared.stderr / (2 * value) if value else 0.0)
        return Estimate(value, stderr, {**squared.details, "squared": squared.value, "labels": labels})

    return estimate(None) if samples is None else until(rtol, samples, estimate)
