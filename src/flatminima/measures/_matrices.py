"""Products of norms over all weight matrices, where a network is a transformer and no chain of ReLU layers."""

from __future__ import annotations

import math
from collections.abc import Callable

from flatminima.core.statistic import Statistics
from flatminima.errors import Undefined
from flatminima.estimate import Estimate
from flatminima.statistics import FeedForward, MatrixNorm, MatrixNorms

_NOTE = "product over weight matrices, no margin: a transformer"


def over_matrices(minimum: Statistics, norm: Callable[[MatrixNorm], float], balanced: bool = False) -> Estimate:
    """``ln prod_i ||W_i||^2`` over all weight matrices, without constants, widths and margin.

    Args:
        minimum: a Minimum.
        norm: of a matrix.
        balanced: ``ln d (prod_i ||W_i||^2)^{1/d}`` instead.

    Raises:
        Undefined: not a transformer, a matrix of zeros.

    Source:
        Jiang et al. 2020, eq. 32, 35, 37, 39; Yang et al. 2023 (KDD, arXiv 2202.02842) for transformers.
    """
    layers = {name: _log(norm(found), name) for name, found in minimum[MatrixNorms()].items()}
    value = math.fsum(layers.values())
    if balanced:
        value = math.log(len(layers)) + value / len(layers)
    return Estimate(value, details={"layers": layers, "log_margin": None, "note": _NOTE})


def complexity_of_matrices(minimum: Statistics) -> Estimate:
    """``ln (prod_i ||W_i||_2^2 sum_j ||W_j||_F^2 / ||W_j||_2^2)`` over all weight matrices (Jiang et al., eq. 30)."""
    product = over_matrices(minimum, lambda m: m.two)
    ratios = {name: (found.frobenius / found.two) ** 2 for name, found in minimum[MatrixNorms()].items()}
    total = math.fsum(ratios.values())
    details = {"log_product": product.value, "ratios": ratios, "ratio_sum": total, "log_margin": None, "note": _NOTE}
    return Estimate(float(product) + math.log(total), details=details)


def instead(minimum: Statistics, found: Callable[[], Estimate]) -> Estimate | None:
    """Value that `found` gives for a transformer, None for a ReLU network, of which a measure is then undefined.

    Raises:
        Undefined: the network is neither.
    """
    try:
        minimum[FeedForward()]
    except Undefined as reason:
        try:
            minimum[MatrixNorms()]
        except Undefined:
            raise reason from None
        return found()
    return None


def _log(norm: float, name: str) -> float:
    if norm == 0:
        raise Undefined(f"layer {name!r} is all zeros: the product of norms is 0")
    return 2 * math.log(norm)
