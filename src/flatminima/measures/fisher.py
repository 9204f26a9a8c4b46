"""The Fisher family: four measures of one Gram matrix (Jia & Su 2020).

The surprise: the authors' code sums ln of the singular values of J, half of the log-determinant here; evaluates
BatchNorm in training mode; and rescales logits when it compares regularised minima. None of that is done here.
"""

from __future__ import annotations

import math

import torch

from flatminima.estimate import Estimate
from flatminima.measures._measure import measure, seed_of
from flatminima.statistic import Statistics
from flatminima.statistics import Gram, InFloat64, Outputs

_FLOAT32_CONDITION = 1e5  # row-normalised; above it float32 products lose the small eigenvalues
_POOL = 100  # disjoint subsets
_EPS = torch.finfo(torch.float64).eps


@measure
def fisher_logdet(minimum: Statistics, *, subset: int = 100, trials: int = _POOL, seed: int | None = None) -> Estimate:
    """Log-determinant of the empirical Fisher on random subsets (Jia & Su 2020, eq. 4 and 5).

    ``(1/T) sum_t ln det(J_t J_t^T)``, the rows of J_t (N', W) the gradients of N' samples' losses at their labels.
    Subsets are disjoint, which makes the spread over choices of subset some 400 times smaller than independent ones.

    Args:
        minimum: a Minimum.
        subset: N'. Values for different N' are not comparable (erratum J-c).
        trials: T at most; fewer where the data has fewer than T N' samples.
        seed: of the subsets; None: the Minimum's.

    Returns:
        Estimate in nats; stderr over subsets (for the distribution that the data came from; another choice of subsets
        of the same data moves the value far less); details: condition (worst, row-normalised), effective_rank (mean),
        train_loss (the value follows it when labels are fitted without smoothing, erratum J-e), parameters,
        log_det_fisher (the full matrix's estimate (W/N') value - W ln W, an upper bound in expectation).
        Undefined: fewer parameters than N', a zero gradient, a matrix that is singular to float64's precision.

    Raises:
        DataError: fewer samples than `subset`.

    Source:
        Jia & Su, arXiv 1911.08192, eq. 4 and 5, App. C for `log_det_fisher`.

    Example:
        >>> import torch
        >>> from flatminima import Minimum, measures
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.zeros_(net.weight)
        >>> m = Minimum(net, (torch.eye(2), torch.tensor([0, 1])))
        >>> round(float(measures.fisher_logdet(m, subset=2)), 6) == round(2 * math.log(0.5), 6)
        True
    """
    key = Gram(subset, trials, seed_of(minimum, seed))
    gram, outputs = minimum[key, Outputs()]
    found = gram.log_determinants()
    precise = False
    if not bool(found.positive.all()) or float(found.condition.max()) > _FLOAT32_CONDITION:
        found = minimum[InFloat64(key)].log_determinants()
        precise = True
    # rounding can leave a tiny positive pivot where two rows agree: what is left is noise, not a determinant
    if not bool(found.positive.all()) or float(found.condition.max()) * subset * _EPS > 1:
        rank = float(found.effective_rank.min())
        return Estimate.missing(
            f"the Gram matrix is singular (effective rank {rank:.1f} of {subset}): duplicate samples?"
        )
    estimate = Estimate.mean(found.values, subset=subset, trials=gram.trials)
    w = gram.parameters
    return estimate.with_details(
        condition=float(found.condition.max()),
        effective_rank=float(found.effective_rank.mean()),
        float64=precise,
        train_loss=float(outputs.losses.mean()),
        parameters=w,
        log_det_fisher=w / subset * float(estimate) - w * math.log(w),
    )


@measure
def fisher_trace(minimum: Statistics, *, subset: int = 100, trials: int = _POOL, seed: int | None = None) -> Estimate:
    """Trace of the empirical Fisher, ``tr F = (1/n) sum_i ||g_i||^2`` (Jia & Su 2020, sec. 6).

    Args:
        minimum: a Minimum.
        subset, trials, seed: of the Gram matrix that it shares; n = subset x trials samples.

    Returns:
        Estimate; stderr over samples.

    Raises:
        DataError: fewer samples than `subset`.

    Source:
        Jia & Su, arXiv 1911.08192, sec. 6; the trace of eq. 2 at hard labels.
    """
    return Estimate.mean(minimum[Gram(subset, trials, seed_of(minimum, seed))].squared_norms())


@measure
def fisher_frobenius(
    minimum: Statistics, *, subset: int = 100, trials: int = _POOL, seed: int | None = None
) -> Estimate:
    """Frobenius norm of the empirical Fisher of N' samples, squared: ``||xi_t||_F^2 / N'^2`` (Jia & Su, App. D).

    Exact for each subset. The paper's estimator averages ||g||^4 instead, about N' times too large (erratum J-h);
    it is in the details as ``paper``.

    Args:
        minimum: a Minimum.
        subset, trials, seed: of the Gram matrix. Values for different `subset` are not comparable.

    Returns:
        Estimate; mean and stderr over subsets.

    Raises:
        DataError: fewer samples than `subset`.

    Source:
        Jia & Su, arXiv 1911.08192, sec. 7.1 and App. D.
    """
    gram = minimum[Gram(subset, trials, seed_of(minimum, seed))]
    squared = gram.matrices().square().sum((1, 2)) / subset**2
    return Estimate.mean(squared, subset=subset, paper=float(gram.squared_norms().square().mean()))


@measure
def fisher_spectral_radius(
    minimum: Statistics, *, subset: int = 100, trials: int = _POOL, seed: int | None = None
) -> Estimate:
    """Largest eigenvalue of the empirical Fisher of N' samples, ``lambda_max(xi_t) / N'`` (Jia & Su, App. D).

    Args:
        minimum: a Minimum.
        subset, trials, seed: of the Gram matrix. Values for different `subset` are not comparable.

    Returns:
        Estimate; mean and stderr over subsets; details: ``paper``, the mean without the division by N'.

    Raises:
        DataError: fewer samples than `subset`.

    Source:
        Jia & Su, arXiv 1911.08192, sec. 7.1 and App. D.
    """
    matrices = minimum[Gram(subset, trials, seed_of(minimum, seed))].matrices()
    overflowed = int((~matrices.isfinite()).any(2).any(1).sum())
    if overflowed:  # the solver would not converge
        return Estimate.missing(f"{overflowed} of {len(matrices)} Gram matrices are not finite")
    top = torch.linalg.eigvalsh(matrices)[:, -1].clamp_min(0)
    return Estimate.mean(top / subset, subset=subset, paper=float(top.mean()))
