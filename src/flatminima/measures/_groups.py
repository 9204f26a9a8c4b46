"""A mean over groups of samples, with one standard error for the draw of the samples and of each group's probes.

Groups partition s of n samples; y_g is group g's mean, W_g the variance that its probes give it. Then

    stderr^2 = (1 - s/n) B / G + (s/n) mean(W) / G,     B the variance between the y_g:

B holds both the samples' and the probes' variance; over all the data (s = n) the samples' own cancels (Cochran 1977,
sampling without replacement, sec. 2.6 and 10.4).
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from flatminima.estimate import Estimate
from flatminima.measures._layers import of_moments
from flatminima.statistics import GroupTraces, LossRises, ProbedHessian, Worst


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


def of_rises(found: LossRises) -> Estimate:
    """Mean rise over draws; no standard error is below the rounding of the losses whose difference it is."""
    mean = Estimate.mean(found.values, error_of="draws" if found.whole else "both")
    if mean.stderr is None:
        return mean
    return replace(mean, stderr=math.hypot(mean.stderr, found.resolution))


def traces_of_layers(found: ProbedHessian) -> dict[str, Estimate]:
    """`of_repeats` of each parameter's block, by name."""
    if found.layers is None:
        return {}
    parts = zip(found.names, found.layers, strict=True)
    return {name: of_repeats(traces, found.sizes, found.population) for name, traces in parts}


def groups_of_layers(found: GroupTraces) -> dict[str, Estimate]:
    """`mean_of_groups` of each parameter's block, by name."""
    if found.moments is not None:
        return of_moments(found.moments, found.population)
    if found.layers is None:
        return {}
    spread = [None] * len(found.names) if found.layer_variances is None else list(found.layer_variances)
    parts = zip(found.names, found.layers, spread, strict=True)
    return {name: mean_of_groups(values, found.sizes, found.population, own) for name, values, own in parts}


def error_of(found: Estimate, population: int, exact: bool = False) -> str:
    """Over what a mean of groups of samples errs: probes (unless exact), and the samples where some are left out."""
    whole = found.details.get("samples") == population
    return ("exact" if whole else "data") if exact else ("draws" if whole else "both")


def of_search(found: Worst) -> Estimate:
    """The rise of the loss that a search found, at least 0, with its standard error.

    Of all the data: nothing was drawn, and the standard error is the rounding of the loss. Of two halves of a draw of
    samples, f_ab the value at half a's point over half b: the mean of the four, and

        stderr^2 = (1 - s/n) B / G + (f_a - f_b)^2 / 4,     f_a the mean over b,

    B the variance between the G parts of the samples, the second term for the points, each of which is a draw of the
    search. details: samples; and of a draw in_sample and held_out, the means of the f_aa and of the f_ab, a != b.
    """
    rounding = found.resolution
    if found.rises is None or found.sizes is None:
        details = {"samples": found.population, "error_of": "rounding"}
        return Estimate(found.highest - found.loss, rounding, details)
    sizes = found.sizes.double()
    parts = mean_of_groups(found.rises.mean(0).flatten(), found.sizes.flatten(), found.population, sizes.flatten() * 0)
    if parts.value is None or parts.stderr is None:
        return parts
    means = (found.rises * sizes).sum(2) / sizes.sum(1)  # (points, halves)
    weights = sizes.sum(1) / sizes.sum()
    apart = float((means[0] - means[1]) @ weights) / 2
    stderr = math.hypot(parts.stderr, apart, rounding)
    own = float(means.diagonal() @ weights)
    details = {**parts.details, "in_sample": own, "held_out": float(means.flip(0).diagonal() @ weights)}
    return Estimate(max(parts.value, 0.0), stderr, details | {"error_of": "data"})
