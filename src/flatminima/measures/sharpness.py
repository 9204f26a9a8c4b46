"""How much the loss rises when the weights are shaken (Neyshabur et al. 2017, sec. 2.2)."""

from __future__ import annotations

from flatminima.errors import UsageError
from flatminima.estimate import Estimate
from flatminima.measures._measure import measure, seed_of
from flatminima.perturbation import Gaussian, Perturbation, Relative, Uniform, describe
from flatminima.statistic import Statistics
from flatminima.statistics import PerturbedLoss


@measure
def expected_sharpness(
    minimum: Statistics,
    *,
    alpha: float = 1e-3,
    perturbation: Perturbation | None = None,
    uniform: bool = False,
    draws: int = 100,
    samples: int = 512,
    antithetic: bool = False,
    seed: int | None = None,
) -> Estimate:
    """``E_u L(w + u) - L(w)``, u_i ~ N(0, sigma_i^2), sigma_i = alpha (10 |w_i| + 1) (N17, fig. 2).

    Each draw is paired with the unperturbed loss of the same samples.

    Args:
        minimum: a Minimum.
        alpha: scale of the noise.
        perturbation: another distribution of u, in place of alpha.
        uniform: u_i ~ U(-sigma_i, sigma_i) instead.
        draws: of u (the paper: 1,000).
        samples: of the data each draw sees (the paper: 64).
        antithetic: use +u and -u.
        seed: of draws and samples; None: the Minimum's.

    Returns:
        Estimate; stderr over draws (of u and of the samples). Undefined: the perturbed loss overflowed.

    Raises:
        UsageError: alpha or counts outside their range, two distributions of u.

    Source:
        Neyshabur et al., arXiv 1706.08947, sec. 2.2; sigma_i from the caption of fig. 2.
    """
    if perturbation is not None and uniform:
        raise UsageError("got both perturbation and uniform=True; give one of them")
    kind = Uniform if uniform else Gaussian
    noise = perturbation or kind(Relative(alpha, slope=10.0, offset=1.0))
    found = minimum[PerturbedLoss(noise, draws, samples, antithetic, seed_of(minimum, seed))]
    overflowed = int((~found.isfinite()).sum())
    if overflowed:
        return Estimate.missing(f"the loss overflowed in {overflowed} of {draws} draws: use less noise")
    return Estimate.mean(found, **describe(noise))
