"""Cross-entropies scaled into [0, 1], which every certificate needs. Probabilities in, not logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flatminima.bounds._checks import Result, checked, plain


def bounded_cross_entropy(probability: ArrayLike, p_min: ArrayLike = 1e-5) -> Result:
    """Clamped cross-entropy, ln(1/max(p, p_min))/ln(1/p_min).

    Args:
        probability: probability p that the network gives to the true class, in [0, 1].
        p_min: clamp in (0, 1).

    Returns:
        Loss in [0, 1]: 0 at p = 1, 1 at p <= p_min.

    Raises:
        UsageError: an argument outside its range.

    Source: Dziugaite & Roy (2018), Perez-Ortiz et al. (2021); docs/reference/formulas.md, bounded-losses.

    >>> bounded_cross_entropy(0.0), bounded_cross_entropy(1.0), round(bounded_cross_entropy(0.1, 0.01), 12)
    (1.0, 0.0, 0.5)
    """
    probability, p_min = checked(probability=probability, p_min=p_min)
    return plain(np.clip(np.log(np.maximum(probability, p_min)) / np.log(p_min), 0.0, 1.0) + 0.0)


def smooth_cross_entropy(probability: ArrayLike, p_min: ArrayLike = 1e-5) -> Result:
    """Smooth bounded cross-entropy, -ln(p_min + (1 - p_min) p)/ln(1/p_min): for Hessians.

    Args:
        probability: probability p that the network gives to the true class, in [0, 1].
        p_min: floor in (0, 1).

    Returns:
        Loss in [0, 1], infinitely differentiable in p: 0 at p = 1, 1 at p = 0; at most the clamped one.

    Raises:
        UsageError: an argument outside its range.

    Source: docs/reference/formulas.md, bounded-losses.

    >>> smooth_cross_entropy(0.0), smooth_cross_entropy(1.0)
    (1.0, 0.0)
    """
    p, p_min = checked(probability=probability, p_min=p_min)
    return plain(np.clip(np.log(p_min + (1 - p_min) * p) / np.log(p_min), 0.0, 1.0) + 0.0)  # + 0.0: no -0.0
