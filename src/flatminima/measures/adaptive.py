"""Adaptive sharpness: the rise of the loss under changes in proportion to each weight (Kwon et al. 2021)."""

from __future__ import annotations

from typing import Any, Literal

from flatminima.core.perturbation import Gaussian, Relative
from flatminima.core.statistic import Statistics
from flatminima.errors import UsageError
from flatminima.estimate import Estimate
from flatminima.measures._groups import of_rises, of_search
from flatminima.measures._measure import at_least_one, catalogued_measure, seed_of, until
from flatminima.statistics import AdaptiveWorstLoss, PerturbedLoss

Case = Literal["worst", "average"]
_EVERYTHING = 1 << 62  # samples: a block is at most the data
# Kwon et al.'s radius for CIFAR-10; of the scales in Andriushchenko et al. those in the middle
_RADIUS = {("worst", "2"): 0.5, ("worst", "inf"): 0.002, ("average", "2"): 0.05}


@catalogued_measure
def adaptive_sharpness(
    minimum: Statistics,
    *,
    case: Case = "worst",
    norm: Literal["2", "inf"] = "2",
    rho: float | None = None,
    eta: float = 0.0,
    steps: int = 10,
    samples: int | None = 300,
    draws: int = 100,
    rtol: float | None = None,
    seed: int | None = None,
) -> Estimate:
    """``max L(w + nu) - L(w)`` over ``||nu / (|w| + eta)||_p <= rho``, element by element; or its average under noise.

    Rescaling the weights of a ReLU network, whole layers or single units, changes nothing for eta = 0.

    Args:
        minimum: a Minimum.
        case: "worst", or "average": ``E L(w + u) - L(w)`` for u_i ~ N(0, rho^2 (|w_i| + eta)^2).
        norm: p of the worst case, "2" or "inf".
        rho: radius; None: 0.5 for "2" (Kwon et al.), 0.002 for "inf", 0.05 for the average.
        eta: added to |w_i|; 0.01 in the optimizer ASAM, where weights of 0 must move.
        steps: gradients of the search, at most.
        samples: of the data, drawn by seed, at least 2 for the worst case (for the average: that each draw looks at);
            None: all.
        draws: of the noise, for the average.
        rtol: raise `draws` until the average's 95% interval is value (1 +- rtol).
        seed: of samples and draws; None: the Minimum's.

    Returns:
        Estimate. The worst case is what a search finds on all the data, a lower bound of the maximum and at least 0;
        from `samples` of them an estimate of that, stderr over samples, as for `sharpness`; details: loss, highest,
        gradients, samples, in_sample, held_out. The average has a stderr over draws; details: n.
        Undefined: the loss overflows within the ball.

    Raises:
        UsageError: an option outside its range, an unknown case or norm, norm="inf" of an average.

    Source:
        Kwon, Kim, Park & Choi 2021, ICML, arXiv 2102.11600, definition 2 (their step is the first of the search);
        Andriushchenko et al. 2023, ICML, arXiv 2302.07011, eq. 1 and 2, without their rescaled logits.
    """
    at_least_one(steps=steps, samples=samples, draws=draws)
    if case not in ("worst", "average"):
        raise UsageError(f"got case={case!r}; expected 'worst' or 'average'")
    if norm not in ("2", "inf") or (case == "average" and norm != "2"):
        raise UsageError(f"got norm={norm!r}; expected '2' or 'inf', and for case='average' the default")
    radius = _RADIUS[case, norm] if rho is None else rho
    seed = seed_of(minimum, seed)
    details: dict[str, Any] = {"case": case, "rho": radius, "eta": eta}
    if case == "worst":
        found = minimum[AdaptiveWorstLoss(radius, norm, eta, steps, samples, seed)]
        details |= {"norm": norm, "loss": found.loss, "highest": found.highest, "gradients": found.gradients}
        return of_search(found).with_details(**details)
    noise = Gaussian(Relative(radius, 1.0, eta))

    def average(draws: int) -> Estimate:
        rises = minimum[PerturbedLoss(noise, draws, samples or _EVERYTHING, False, seed)]
        overflowed = int((~rises.values.isfinite()).sum())
        if overflowed:
            return Estimate.missing(f"the loss overflowed in {overflowed} of {draws} draws: use a smaller rho")
        return of_rises(rises).with_details(**details)

    return until(rtol, draws, average)
