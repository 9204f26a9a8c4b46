"""The power law in the tail of the weights' spectra (Martin & Mahoney 2021; the fit of Clauset et al. 2009)."""

from __future__ import annotations

import math

from flatminima.core.statistic import Statistics
from flatminima.errors import Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.measures._measure import measure
from flatminima.statistics import WeightSpectra, fit_power_law


@measure
def power_law_exponent(minimum: Statistics, *, min_eigenvalues: int = 10) -> Estimate:
    """Mean over layers of alpha, where the eigenvalues of W^T W above x_min have density ``~ x^-alpha``.

    alpha is the maximum-likelihood estimate ``1 + n / sum ln(x_i / x_min)`` over the n eigenvalues from x_min on, and
    x_min the eigenvalue at which the Kolmogorov-Smirnov distance of tail and fit is smallest. The distance is that of
    the programs `powerlaw` and `weightwatcher`, which look at the lower side of each step only.

    Args:
        minimum: a Minimum; only its weights are looked at.
        min_eigenvalues: layers with fewer are left out; at least 2.

    Returns:
        Estimate, exact (a function of the weights); details: layers (alpha by parameter), fits (x_min, tail n,
        distance, error (alpha - 1) / sqrt(n) of the fit), skipped. Undefined: no layer has enough eigenvalues that
        differ.

    Raises:
        UsageError: min_eigenvalues below 2.

    Source:
        Martin, Peng & Mahoney 2021, Nature Communications 12:4122 (WeightWatcher's alpha, all layers alike);
        Clauset, Shalizi & Newman 2009, eq. 3.1 and 3.9.
    """
    if not min_eigenvalues >= 2:
        raise UsageError(f"got min_eigenvalues={min_eigenvalues!r}; a tail needs at least 2")
    spectra = minimum[WeightSpectra()]
    fits, skipped = {}, []
    for name, values in spectra.items():
        found = fit_power_law(values.numpy()) if len(values) >= min_eigenvalues else None
        if found is None:
            skipped.append(name)
        else:
            fits[name] = found
    if not fits:
        raise Undefined(f"no layer has {min_eigenvalues} eigenvalues that differ: there is no spectrum to fit")
    alphas = {name: f.alpha for name, f in fits.items()}
    details = {"layers": alphas, "fits": {name: vars(f) for name, f in fits.items()}, "skipped": skipped}
    return Estimate(math.fsum(alphas.values()) / len(alphas), details=details)
