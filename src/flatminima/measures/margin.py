"""How sure the network is of its training samples: margin (Neyshabur et al. 2017, eq. 2) and entropy."""

from __future__ import annotations

import math

from flatminima.core.statistic import Statistics
from flatminima.errors import Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.measures._measure import measure
from flatminima.statistics import OutputEntropies, Outputs


@measure
def margin(minimum: Statistics, *, fraction: float = 0.05) -> Estimate:
    """The k-th smallest margin f[y] - max_{j != y} f[j], k = ceil(fraction n).

    No interpolation, and the sign is kept: neighbours take |margin|, which turns a misclassified percentile into a
    good one.

    Args:
        minimum: a Minimum.
        fraction: in (0, 1]; 0.05 in the paper's figures.

    Returns:
        Estimate (higher is better), exact for the data; details: n, k, train_error, train_loss.
        Undefined: targets that are not classes.

    Raises:
        UsageError: fraction outside (0, 1].

    Source:
        Neyshabur et al., arXiv 1706.08947, eq. 2 and the text below it.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"got fraction={fraction!r}; it must lie in (0, 1]")
    outputs = minimum[Outputs()]
    if outputs.margins is None:
        raise Undefined("targets are not classes: there is no margin")
    n = len(outputs.margins)
    # 0.07 * 100 is 7.000000000000001 in floating point: round before the ceiling
    k = max(1, math.ceil(round(fraction * n, 9)))
    value = float(outputs.margins.kthvalue(k).values)
    wrong = float((outputs.margins <= 0).double().mean())
    return Estimate(value, details={"n": n, "k": k, "train_error": wrong, "train_loss": float(outputs.losses.mean())})


@measure
def output_entropy(minimum: Statistics) -> Estimate:
    """Mean entropy ``-sum_c p_c ln p_c`` of the predicted class probabilities.

    Args:
        minimum: a Minimum.

    Returns:
        Estimate in nats, at most ln C; stderr over samples; details: n. Undefined: targets that are not classes.

    Source:
        Pereyra et al. 2017, arXiv 1701.06548; Jiang et al. 2020, arXiv 1912.02178, appendix C (its negative).
    """
    return Estimate.mean(minimum[OutputEntropies()])
