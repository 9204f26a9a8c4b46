"""A mean over groups of samples, with one standard error for the draw of the samples and of each group's probes.

Groups partition s of n samples; y_g is group g's mean, W_g the variance that its probes give it. Then

    stderr^2 = (1 - s/n) B / G + (s/n) mean(W) / G,     B the variance between the y_g:

B holds both the samples' and the probes' variance; over all the data (s = n) the samples' own cancels (Cochran 1977,
sampling without replacement, sec. 2.6 and 10.4).
"""

from __future__ import annotations

from torch import Tensor

from flatminima.estimate import Estimate


def mean_of_groups(values: Tensor, sizes: Tensor, population: int, variances: Tensor | None) -> Estimate:
    """Mean weighted by sizes; no standard error where one draw cannot show it.

    details: samples, groups, and n, whose n - 1 are the degrees of freedom of `Estimate.interval`.

    Args:
        values (G,): of each group.
        sizes (G,): its samples.
        population: samples there are.
        variances (G,): of each value, given its samples; None: unknown (the groups' spread then counts alone, which is
            too large where most of the data was looked at).

    Examples:
        >>> import torch
        >>> print(mean_of_groups(torch.tensor([1.0, 3.0]), torch.tensor([5, 5]), 1_000_000, None))
        2 +- 1
    """
    values, weights = values.double(), sizes.double() / float(sizes.sum())
    groups, share = len(values), float(sizes.sum()) / population
    mean = Estimate.mean(values)  # refuses what is not finite
    if mean.value is None:
        return mean
    value = float(weights @ values)
    between = None
    if groups > 1:
        between = float((weights**2) @ (values - value) ** 2) * groups / (groups - 1)
    within = None if variances is None else float((weights**2) @ variances.double())
    square = _combined(between, within, share)
    details = {"samples": int(sizes.sum()), "groups": groups, "n": groups}
    return Estimate(value, None if square is None else square**0.5, details)


def _combined(between: float | None, within: float | None, share: float) -> float | None:
    if within is None:
        return between
    if between is None:
        return within if share == 1 else None
    return (1 - share) * between + share * within


def of_repeats(traces: Tensor, sizes: Tensor, population: int) -> Estimate:
    """`mean_of_groups` of independent repeats (G, R) in each group."""
    groups, repeats = traces.shape
    variances = traces.var(1) / repeats if repeats > 1 else None
    found = mean_of_groups(traces.mean(1), sizes, population, variances)
    if repeats == 1 or int(sizes.sum()) < population or found.value is None:
        return found
    return found.with_details(n=groups * (repeats - 1) + 1)  # of all the data, only probes vary
