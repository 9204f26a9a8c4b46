"""Wrong labels on purpose: noise, random labels, confusion sets. All are pure functions of their seed.

A random label is uniform over *all* classes, as in the papers, so one in `classes` of them is right by
chance; pass `exclude_old=True` for labels that are certainly wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flatminima.errors import DataError


def corrupt_labels(targets: Tensor, fraction: float, classes: int, seed: int, *, exclude_old: bool = False) -> Tensor:
    """Targets with round(fraction * n) of them, chosen at random, redrawn uniformly.

    Args:
        targets: shape (n,), int64.
        fraction: in [0, 1]; the samples redrawn at a smaller fraction are among those of a larger one, with
            the same new labels.
        classes: number of classes, at least 1 (2 with `exclude_old`).
        seed: decides which samples and which labels.
        exclude_old: draw from the other classes only, so that exactly the chosen labels differ.

    Returns:
        A new tensor, shape (n,), int64, on the targets' device.

    Raises:
        DataError: a fraction outside [0, 1], or labels outside the classes.

    Source: N17 section 4, fig. 1 (random labels); Zhang et al. 2017, section 2.
    """
    if not 0.0 <= fraction <= 1.0:
        raise DataError(f"fraction={fraction}: a share of the labels is between 0 and 1")
    _check(targets, classes, least=2 if exclude_old else 1)
    n = len(targets)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(n, generator=generator)[: round(fraction * n)].to(targets.device)
    # drawn for every sample, so that a sample's new label does not depend on the fraction
    if exclude_old:
        shift = torch.randint(1, classes, (n,), generator=generator).to(targets.device)
        drawn = (targets + shift) % classes
    else:
        drawn = torch.randint(classes, (n,), generator=generator).to(targets.device)
    result = targets.clone()
    result[chosen] = drawn[chosen]
    return result


def random_labels(targets: Tensor, classes: int, seed: int) -> Tensor:
    """Labels that know nothing of the inputs: each redrawn uniformly over the classes, (n,) int64."""
    return corrupt_labels(targets, 1.0, classes, seed)


def append_confusion(
    inputs: Tensor, targets: Tensor, pool: Tensor, size: int, classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Training data followed by a confusion set: `size` samples of a pool, with random labels.

    Minima of the enlarged set still fit the true part perfectly but generalize worse as the set grows. Sets
    are nested: with one seed, a larger one begins with the smaller one's samples and labels.

    Args:
        inputs: shape (n, ...), the true training inputs. targets: shape (n,), int64, their labels.
        pool: shape (m, ...), samples that are in neither the training nor the test set.
        size: 0 ... m.
        classes: number of classes, at least 1.
        seed: decides which samples and which labels.

    Returns:
        Inputs of shape (n + size, ...), targets of shape (n + size,); the first n are the true ones.

    Raises:
        DataError: a size the pool cannot give, or samples of another shape.

    Source: N17 fig. 3 (10,000 samples); J20 fig. 1 (0 ... 5,000 on 10,000).
    """
    if not 0 <= size <= len(pool):
        raise DataError(f"a confusion set of {size} cannot be drawn from a pool of {len(pool)} samples")
    if inputs.shape[1:] != pool.shape[1:] or inputs.dtype != pool.dtype:
        raise DataError(
            f"inputs are {tuple(inputs.shape[1:])} {inputs.dtype}, the pool "
            f"{tuple(pool.shape[1:])} {pool.dtype}: a confusion set needs the same kind of samples"
        )
    _check(targets, classes, least=1)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(pool), generator=generator)[:size].to(pool.device)
    labels = torch.randint(classes, (len(pool),), generator=generator)[:size].to(targets.device)
    return torch.cat([inputs, pool[rows].to(inputs.device)]), torch.cat([targets, labels])


def _check(targets: Tensor, classes: int, *, least: int) -> None:
    if classes < least:
        raise DataError(f"classes={classes}: at least {least} needed")
    if targets.ndim != 1 or targets.dtype != torch.int64:
        raise DataError(f"targets must be int64 of shape (n,); got {targets.dtype} {tuple(targets.shape)}")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        low, high = int(targets.min()), int(targets.max())
        raise DataError(f"targets run from {low} to {high}; with {classes} classes they are 0 to {classes - 1}")
