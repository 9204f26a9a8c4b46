"""Lipschitz constants over the margin (Neyshabur et al. 2017, sec. 2.3; Luxburg & Bousquet 2004)."""

from __future__ import annotations

import math
from typing import Any, Literal

from flatminima.core.statistic import Statistics
from flatminima.errors import Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.measures._matrices import instead
from flatminima.measures._measure import catalogued_measure
from flatminima.measures._over_margin import Normalise, check_options, with_margin
from flatminima.statistics import FeedForward, OperatorNorms

_TRANSFORMER = (
    "dot-product attention has no Lipschitz constant (Kim, Papamakarios & Mnih 2021), and that of LayerNorm is "
    "1 / sqrt(eps): no bound of a transformer by its layers' norms says anything"
)


@catalogued_measure
def lipschitz(
    minimum: Statistics,
    *,
    norm: Literal["2", "inf"] = "2",
    normalise: Normalise = "figure",
    fraction: float = 0.05,
    over_margin: bool = True,
) -> Estimate:
    """ln of ``C / gamma``, C a bound of the network's Lipschitz constant by its layers' operator norms (N17).

    In a chain ``C_2 = prod_i ||W_i||_2`` and ``C_inf = prod_i ||W_i||_{1,inf}``, times the norms of average pooling
    and of max-pooling windows that overlap. Along a network with branches, constants of added branches add up,
    those of concatenated ones make the root of the sum of their squares (inf: the largest).

    Args:
        minimum: a Minimum.
        norm: of changes of input and output, "2" or "inf".
        normalise: "figure" is ln(C / gamma); "capacity" multiplies it by the number of inputs h_0, the logarithm of
            the paper's (C / gamma)^{h_0}.
        fraction: of the margin.
        over_margin: divide by the margin; without, any ReLU network will do.

    Returns:
        Estimate in nats, exact for the data; details: log_constant (ln C), log_product (sum over all layers, which
        is the same for a chain without pooling, and no bound otherwise), log_margin, layers, folded, diagonal,
        branches, residual. Undefined: not a ReLU network (attention has no Lipschitz constant: Kim,
        Papamakarios & Mnih 2021), not a classifier, a margin that is not positive, C = 0, a convolution's norm that
        does not converge.

    Raises:
        UsageError: an unknown norm or normalisation, a fraction outside (0, 1].

    Source:
        Neyshabur et al., arXiv 1706.08947, sec. 2.3; Szegedy et al. 2014, sec. 4.3, for the product over layers.
    """
    check_options(normalise, fraction)
    if norm not in ("2", "inf"):
        raise UsageError(f"got norm={norm!r}; expected '2' or 'inf'")
    try:
        (network, norms), log_margin = with_margin(minimum, fraction, over_margin, FeedForward(), OperatorNorms())
    except Undefined:
        if instead(minimum, lambda: Estimate(0.0)) is not None:
            raise Undefined(_TRANSFORMER) from None
        raise
    constant = norms.log_lipschitz_2 if norm == "2" else norms.log_lipschitz_inf
    if constant == -math.inf:
        raise Undefined("a layer of zeros, or a factor of 0, cuts the output off: the Lipschitz constant is 0")
    sizes = [layer.two if norm == "2" else layer.infinity for layer in norms.layers]
    layers = {f"{i}: {layer.name}": size for i, (layer, size) in enumerate(zip(norms.layers, sizes, strict=True))}
    value = (constant - (log_margin or 0.0)) * (network.inputs if normalise == "capacity" else 1)
    details: dict[str, Any] = {"log_constant": constant, "log_margin": log_margin, "layers": layers}
    numbers = [abs(value) for _, value in network.factors]
    details["log_product"] = sum(map(math.log, [*sizes, *numbers])) if all([*sizes, *numbers]) else None
    details |= {"folded": network.folded, "diagonal": network.diagonals, "branches": network.branches}
    return Estimate(value, details=details | {"residual": max((n.residual for n in norms.layers), default=0.0)})
