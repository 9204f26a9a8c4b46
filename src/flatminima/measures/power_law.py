"""The power law in the tail of the weights' spectra (Martin & Mahoney 2021; the fit of Clauset et al. 2009)."""

from __future__ import annotations

import math

from torch import Tensor

from flatminima.core.statistic import Statistics
from flatminima.errors import Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.measures._measure import catalogued_measure
from flatminima.statistics import PowerLaw, WeightSpectra, fit_power_law


@catalogued_measure
def power_law_exponent(minimum: Statistics, *, min_eigenvalues: int = 10, max_error: float = 1 / 3) -> Estimate:
    """Mean over layers of alpha, where the eigenvalues of W^T W above x_min have density ``~ x^-alpha``.

    alpha is the maximum-likelihood estimate ``1 + n / sum ln(x_i / x_min)`` over the n eigenvalues from x_min on, and
    x_min the eigenvalue at which the Kolmogorov-Smirnov distance of tail and fit is smallest. The distance is that of
    the programs `powerlaw` and `weightwatcher`, which look at the lower side of each step only.

    Note: x_min may leave a tail of three values, whose alpha is anything (69 +- 39 in a small CNN). A layer
    counts only where alpha is known: its relative error, standard error / (alpha - 1) = 1 / sqrt(n), is at most
    `max_error`. The rule asks for the length of the tail alone, so that it prefers neither large nor small exponents.

    Args:
        minimum: a Minimum; only its weights are looked at.
        min_eigenvalues: layers with fewer are left out; at least 2.
        max_error: relative error of a fit that counts, positive; 1/3 asks for 9 values in the tail, math.inf takes all
            layers, as WeightWatcher does.

    Returns:
        Estimate, exact (a function of the weights); details: layers (alpha by parameter), error (the fits' standard
        error of the mean), fits (x_min, tail n, distance, error (alpha - 1) / sqrt(n) of every fit), refused (layers
        left out for their error, with the relative error), skipped (for too few eigenvalues). Undefined: no layer has
        enough eigenvalues that differ, or a fit with an error that small.

    Raises:
        UsageError: min_eigenvalues below 2, max_error not positive.

    Source:
        Martin, Peng & Mahoney 2021, Nature Communications 12:4122 (WeightWatcher's alpha, all layers alike);
        Clauset, Shalizi & Newman 2009, eq. 3.1, 3.2 and 3.9.
    """
    if not min_eigenvalues >= 2:
        raise UsageError(f"got min_eigenvalues={min_eigenvalues!r}; a tail needs at least 2")
    if not max_error > 0:
        raise UsageError(f"got max_error={max_error!r}; a relative error is positive (math.inf takes every fit)")
    fits, skipped = _fits(minimum[WeightSpectra()], min_eigenvalues)
    if not fits:
        raise Undefined(f"no layer has {min_eigenvalues} eigenvalues that differ: there is no spectrum to fit")
    # 1 / sqrt(9) and 1/3 may differ in the last digit
    refused = {name: f.relative_error for name, f in fits.items() if f.relative_error > max_error * (1 + 1e-12)}
    kept = [f for name, f in fits.items() if name not in refused]
    if not kept:
        best = min(fits.values(), key=lambda f: f.relative_error)
        raise Undefined(
            f"no layer's exponent is known to a relative error of {max_error:.2g} (the best, {best.alpha:.3g} +- "
            f"{best.error:.2g}, is fitted to {best.tail} values): max_error= takes more"
        )
    details = {
        "layers": {name: f.alpha for name, f in fits.items() if name not in refused},
        "error": math.hypot(*(f.error for f in kept)) / len(kept),
        "fits": {name: vars(f) for name, f in fits.items()},
        "refused": refused,
        "skipped": skipped,
    }
    return Estimate(math.fsum(f.alpha for f in kept) / len(kept), details=details)


def _fits(spectra: dict[str, Tensor], least: int) -> tuple[dict[str, PowerLaw], list[str]]:
    """The fit of each layer, and the layers with too few eigenvalues for one."""
    fits, skipped = {}, []
    for name, values in spectra.items():
        found = fit_power_law(values.numpy()) if len(values) >= least else None
        if found is None:
            skipped.append(name)
        else:
            fits[name] = found
    return fits, skipped
