"""Certainty of the network on its training samples: margin (Neyshabur et al. 2017, eq. 2) and entropy."""

from __future__ import annotations

import math

from flatminima.core.statistic import Statistics
from flatminima.errors import UsageError
from flatminima.estimate import Estimate
from flatminima.measures._measure import catalogued_measure
from flatminima.measures._positions import mean_of_positions
from flatminima.statistics import Margins, OutputEntropies, Outputs


@catalogued_measure
def margin(minimum: Statistics, *, fraction: float = 0.05) -> Estimate:
    """The k-th smallest margin f[y] - max_{j != y} f[j], k = ceil(fraction n).

    No interpolation, and the sign is kept: neighbours take |margin|, which turns a misclassified percentile into a
    good one. Each labelled position counts once: a sample, or each token or pixel whose label is not ignored.

    Args:
        minimum: a Minimum.
        fraction: in (0, 1]; 0.05 in the paper's figures.

    Returns:
        Estimate (higher is better), exact for the data; details: n (labelled positions), unit (what they are:
        "sample", "token" or "position"), k, train_error (their share), train_loss. Undefined: targets that are not
        classes.

    Raises:
        UsageError: fraction outside (0, 1].

    Source:
        Neyshabur et al., arXiv 1706.08947, eq. 2 and the text below it.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"got fraction={fraction!r}; it must lie in (0, 1]")
    margins, outputs = minimum[Margins(), Outputs()]
    n = len(margins.values)
    # 0.07 * 100 is 7.000000000000001 in floating point: round before the ceiling
    k = max(1, math.ceil(round(fraction * n, 9)))
    return Estimate(
        float(margins.values[k - 1]),
        details={
            "n": n,
            "unit": margins.unit,
            "k": k,
            "train_error": margins.error_rate,
            "train_loss": float(outputs.losses.mean()),
        },
    )


@catalogued_measure
def output_entropy(minimum: Statistics) -> Estimate:
    """Mean entropy ``-sum_c p_c ln p_c`` of the predicted class probabilities.

    Args:
        minimum: a Minimum.

    Returns:
        Estimate in nats, at most ln C, the mean over labelled positions (samples; tokens or pixels whose label is not
        ignored); stderr over samples; details: n (samples), positions, unit. Undefined: targets that are not classes.

    Source:
        Pereyra et al. 2017, arXiv 1701.06548; Jiang et al. 2020, arXiv 1912.02178, appendix C (its negative).
    """
    return mean_of_positions(minimum[OutputEntropies()])
