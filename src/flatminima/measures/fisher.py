"""The Fisher family: measures of one Gram matrix, and of the full matrix where it fits (Jia & Su 2020).

Note: the authors' code sums ln of the singular values of J, half of the log-determinant here; evaluates
BatchNorm in training mode; and rescales logits when it compares regularised minima. The first is never done here, the
others are the options ``batchnorm="batch"`` and ``logit_norm=25``.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from flatminima.core.statistic import Statistic, Statistics
from flatminima.errors import UsageError
from flatminima.estimate import Estimate
from flatminima.measures._layers import of_moments, with_layers
from flatminima.measures._measure import at_least_one, catalogued_measure, seed_of, until, with_note
from flatminima.measures._subset import SUBSET, of_subset
from flatminima.statistics import (
    FisherParts,
    Gram,
    GramMatrices,
    InFloat64,
    Outputs,
    ParameterCount,
    RescaledLogits,
    SampleCount,
    TrainingGram,
)
from flatminima.statistics.hessian import group_edges
from flatminima.statistics.outputs import OutputSummary

BatchNorm = Literal["running", "batch"]

_FLOAT32_CONDITION = 1e5  # row-normalised; above it float32 products lose the small eigenvalues
_POOL = 100  # disjoint subsets
AUTHORS_CHUNK = 10  # samples that share batch statistics, InfoMCR's chunk_size
_EPS = torch.finfo(torch.float64).eps
_GROUPS = 10  # of a draw for the full matrix, whose spread is the standard error
_ENTRIES = 50_000_000  # of their matrices together, 400 MB


@catalogued_measure
def fisher_logdet(
    minimum: Statistics,
    *,
    subset: int | None = None,
    trials: int = _POOL,
    logit_norm: float | None = None,
    batchnorm: BatchNorm = "running",
    chunk: int = AUTHORS_CHUNK,
    rtol: float | None = None,
    seed: int | None = None,
) -> Estimate:
    """Log-determinant of the empirical Fisher on random subsets (Jia & Su 2020, eq. 4 and 5).

    ``(1/T) sum_t ln det(J_t J_t^T)``, the rows of J_t (N', W) the gradients of N' samples' losses at their labels.
    Subsets are disjoint, which makes the spread over choices of subset some 400 times smaller than independent ones.

    Args:
        minimum: a Minimum.
        subset: N'; None: 100, or all the samples where there are fewer. Values for different N' are not comparable
            (erratum J-c).
        trials: T at most; fewer where the data has fewer than T N' samples.
        logit_norm: every logit vector rescaled to this norm first (the authors' code, Table 2: 25); None: as it is.
        batchnorm: "running" statistics, or those of each "batch" of `chunk` samples in training mode (the authors'
            code; undefined without BatchNorm). A score of those batches, not of the network.
        chunk: for batchnorm="batch", a divisor of `subset`, or at least as many: the whole subset. It takes `chunk`
            backward passes over the samples.
        rtol: raise T until the 95% interval is value (1 +- rtol).
        seed: of the subsets; None: the Minimum's.

    Returns:
        Estimate in nats; stderr over subsets (for the distribution that the data came from; another choice of subsets
        of the same data moves the value far less); details: condition (worst, row-normalised), effective_rank (mean),
        train_loss (the value follows it when labels are fitted without smoothing, erratum J-e), parameters,
        log_det_fisher (the full matrix's estimate (W/N') value - W ln W, an upper bound in expectation), trials,
        singular (subsets left out, because copies of a sample or a zero gradient made their determinant 0: the value is
        the mean over those that have one). Undefined: fewer parameters than N'; fewer than half of the subsets have a
        determinant to float64's precision.

    Raises:
        DataError: fewer samples than the `subset` that was given.
        UsageError: an option outside its range.

    Source:
        Jia & Su, arXiv 1911.08192, eq. 4 and 5, App. C for `log_det_fisher`.

    Examples:
        >>> import torch
        >>> from flatminima import Minimum, measures
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.zeros_(net.weight)
        >>> m = Minimum(net, (torch.eye(2), torch.tensor([0, 1])))
        >>> round(float(measures.fisher_logdet(m, subset=2)), 6) == round(2 * math.log(0.5), 6)
        True
    """
    key = partial(_key, minimum, subset, seed=seed, logit_norm=logit_norm, batchnorm=batchnorm, chunk=chunk)
    return until(rtol, trials, lambda k: _logdet(minimum, subset, key(k), key(k, precise=True)))


def _logdet(
    minimum: Statistics, asked: int | None, key: Statistic[GramMatrices], precise: Statistic[GramMatrices]
) -> Estimate:
    found_both: tuple[GramMatrices, OutputSummary] = minimum[key, Outputs()]
    gram, outputs = found_both
    told = of_subset(gram, asked)
    found = gram.log_determinants()
    doubled = not bool(found.positive.all()) or float(found.condition.max()) > _FLOAT32_CONDITION
    if doubled:
        found = minimum[precise].log_determinants()
    singular = found.singular()
    left = ~singular
    out, trials = int(singular.sum()), gram.trials
    if 2 * out > trials:
        rank = float(found.effective_rank[singular].min())
        which = "the Gram matrix is singular" if trials == 1 else f"{out} of {trials} Gram matrices are singular"
        return Estimate.missing(f"{which} (effective rank {rank:.1f} of {gram.subset}): duplicate samples?")
    estimate = Estimate.mean(found.values[left], **told, trials=trials - out, singular=out)
    if out:
        estimate = with_note(estimate, f"{out} of {trials} subsets are singular and left out")
    w = gram.parameters
    return estimate.with_details(
        condition=float(found.condition[left].max()),
        effective_rank=float(found.effective_rank[left].mean()),
        float64=doubled,
        train_loss=float(outputs.losses.mean()),
        parameters=w,
        log_det_fisher=w / gram.subset * float(estimate) - w * math.log(w),
    )


def _key(
    minimum: Statistics,
    subset: int | None,
    trials: int,
    seed: int | None,
    logit_norm: float | None,
    batchnorm: str,
    chunk: int,
    precise: bool = False,
) -> Statistic[GramMatrices]:
    """The Gram matrices that were asked for; `precise`: in float64, where they are not already."""
    if batchnorm not in ("running", "batch"):
        raise UsageError(f"got batchnorm={batchnorm!r}; expected 'running' or 'batch'")
    found, size = seed_of(minimum, seed), SUBSET if subset is None else subset
    key: Statistic[GramMatrices] = Gram(size, trials, found)
    if batchnorm == "batch":
        key = TrainingGram(size, trials, found, chunk)
    elif precise:
        key = InFloat64(Gram(size, trials, found))
    return key if logit_norm is None else RescaledLogits(key, logit_norm)


@catalogued_measure
def fisher_logdet_full(
    minimum: Statistics, *, samples: int | None = None, pseudo: bool = False, seed: int | None = None
) -> Estimate:
    """``ln det I(w)``, I the Fisher matrix of the model's own distribution (Jia & Su 2020, eq. 2 and 3). Exact.

    ``I = (1/n) sum_x sum_i f_i grad(-ln f_i) grad(-ln f_i)^T``: the labels are the network's own (y = f), as the paper
    assumes; where they are, I is the Hessian of the loss. For other convex losses I is the Gauss-Newton matrix.

    Note: the paper assumes det I != 0, but it is 0 for every network that ends in a linear layer and a softmax
    (a vector added to all rows of the last layer changes nothing: h + 1 directions without curvature), for every ReLU
    network (one direction a hidden unit), and ahead of every BatchNorm (erratum J-a). `pseudo` leaves those out.

    Args:
        minimum: a Minimum of at most 5,000 parameters; computed in float64.
        samples: how many, drawn by seed; None: all.
        pseudo: take the product of the eigenvalues above rounding only.
        seed: of the draw; None: the Minimum's.

    Returns:
        Estimate in nats; exact where all the data was looked at. From part of it the jackknife over up to 10 groups of
        the samples takes out the bias (a determinant of few samples is too small) and gives the stderr; none, and no
        correction, where the rank itself depends on which samples are there. details: null (directions without
        curvature), rank, per_direction, trace, effective_rank, trace_bound (r (ln tr I - ln r), r the rank: an upper
        bound of ln det, sec. 6), samples, error_of, uncorrected (of the samples themselves).
        Undefined: too many parameters; a singular matrix, if not `pseudo`; no curvature at all.

    Raises:
        UsageError: no samples.

    Source:
        Jia & Su, arXiv 1911.08192, eq. 2 and 3, Assumption 1.
    """
    at_least_one(samples=samples)
    n, w = minimum[SampleCount(), ParameterCount()]
    looked = n if samples is None else min(samples, n)
    groups = 1 if looked == n else max(2, min(_GROUPS, _ENTRIES // max(w * w, 1)))
    parts = minimum[InFloat64(FisherParts(samples, seed_of(minimum, seed), groups))]
    sizes = torch.tensor(group_edges(looked, groups)).diff().double()
    curved = _curved(torch.einsum("g,gij->ij", sizes / looked, parts))
    rank = len(curved)
    if rank == 0 or (rank < w and not pseudo):
        return Estimate.missing(
            f"the Fisher matrix is singular: {w - rank} of {w} directions have no curvature "
            "(the softmax's shift, ReLU units' rescaling, too few samples); pseudo=True leaves them out",
            null=w - rank,
        )
    trace = float(curved.sum())
    details: dict[str, Any] = {
        "null": w - rank,
        "rank": rank,
        "per_direction": float(curved.log().mean()),
        "trace": trace,
        "effective_rank": float(torch.special.entr(curved / trace).sum().exp()),
        "trace_bound": rank * (math.log(trace) - math.log(rank)),
        "parameters": w,
        "samples": looked,
    }
    value = float(curved.log().sum())
    if looked == n:
        return Estimate(value, details=details | {"error_of": "exact"})
    details |= {"uncorrected": value, "error_of": "data"}
    corrected = _jackknife(value, rank, parts, sizes, looked / n)
    if corrected is None:
        return Estimate(value, details=details | {"note": f"its rank, {rank}, depends on which samples are there"})
    return Estimate(corrected[0], corrected[1], details | {"n": len(sizes)})


def _curved(matrix: Tensor) -> Tensor:
    """Eigenvalues above rounding."""
    values: Tensor = torch.linalg.eigvalsh(matrix)
    return values[values > max(float(values[-1]), 0.0) * len(values) * _EPS]


def _jackknife(value: float, rank: int, parts: Tensor, sizes: Tensor, share: float) -> tuple[float, float] | None:
    """ln det without its bias and its standard error, for the share of the data looked at; None: the rank varies."""
    count, total = len(sizes), torch.einsum("g,gij->ij", sizes, parts)
    if count < 2:
        return None
    without = []
    for part, size in zip(parts, sizes, strict=True):
        left = _curved((total - size * part) / float(sizes.sum() - size))
        if len(left) != rank:
            return None
        without.append(float(left.log().sum()))
    each = torch.tensor(without, dtype=torch.float64)
    bias = (count - 1) * (float(each.mean()) - value)
    error = math.sqrt((1 - share) * (count - 1) / count * float((each - each.mean()).square().sum()))
    return value - (1 - share) * bias, error


@catalogued_measure
def fisher_trace(
    minimum: Statistics,
    *,
    subset: int | None = None,
    trials: int = _POOL,
    logit_norm: float | None = None,
    batchnorm: BatchNorm = "running",
    chunk: int = AUTHORS_CHUNK,
    rtol: float | None = None,
    seed: int | None = None,
) -> Estimate:
    """Trace of the empirical Fisher, ``tr F = (1/n) sum_i ||g_i||^2`` (Jia & Su 2020, sec. 6).

    Args:
        minimum: a Minimum.
        subset, trials, seed: of the Gram matrix that it shares; n = subset x trials samples.
        logit_norm, batchnorm, chunk: as for `fisher_logdet`.
        rtol: raise `trials` until the 95% interval is value (1 +- rtol).

    Returns:
        Estimate; stderr over samples; details: n, subset, layers and layer_stderrs (the trace of each parameter's
        block, by name; they add up to the value).

    Raises:
        DataError: fewer samples than the `subset` that was given.
        UsageError: an option outside its range.

    Source:
        Jia & Su, arXiv 1911.08192, sec. 6; the trace of eq. 2 at hard labels.
    """

    def estimate(trials: int) -> Estimate:
        gram = minimum[_key(minimum, subset, trials, seed, logit_norm, batchnorm, chunk)]
        found = Estimate.mean(gram.squared_norms(), **of_subset(gram, subset))
        parts = of_moments(gram.layers)
        if logit_norm is not None:  # the network is inside of another there
            parts = {name.removeprefix("model."): part for name, part in parts.items()}
        return with_layers(found, parts)

    return until(rtol, trials, estimate)


@catalogued_measure
def fisher_frobenius(
    minimum: Statistics,
    *,
    subset: int | None = None,
    trials: int = _POOL,
    logit_norm: float | None = None,
    batchnorm: BatchNorm = "running",
    chunk: int = AUTHORS_CHUNK,
    rtol: float | None = None,
    seed: int | None = None,
) -> Estimate:
    """Frobenius norm of the empirical Fisher of N' samples, squared: ``||xi_t||_F^2 / N'^2`` (Jia & Su, App. D).

    Exact for each subset. The paper's estimator averages ||g||^4 instead, about N' times too large (erratum J-h);
    it is in the details as ``paper``.

    Args:
        minimum: a Minimum.
        subset, trials, seed: of the Gram matrix. Values for different `subset` are not comparable.
        logit_norm, batchnorm, chunk: as for `fisher_logdet`.
        rtol: raise `trials` until the 95% interval is value (1 +- rtol).

    Returns:
        Estimate; mean and stderr over subsets.

    Raises:
        DataError: fewer samples than the `subset` that was given.
        UsageError: an option outside its range.

    Source:
        Jia & Su, arXiv 1911.08192, sec. 7.1 and App. D.
    """

    def estimate(trials: int) -> Estimate:
        gram = minimum[_key(minimum, subset, trials, seed, logit_norm, batchnorm, chunk)]
        squared = gram.matrices().square().sum((1, 2)) / gram.subset**2
        paper = float(gram.squared_norms().square().mean())
        return Estimate.mean(squared, **of_subset(gram, subset), paper=paper)

    return until(rtol, trials, estimate)


@catalogued_measure
def fisher_spectral_radius(
    minimum: Statistics,
    *,
    subset: int | None = None,
    trials: int = _POOL,
    logit_norm: float | None = None,
    batchnorm: BatchNorm = "running",
    chunk: int = AUTHORS_CHUNK,
    rtol: float | None = None,
    seed: int | None = None,
) -> Estimate:
    """Largest eigenvalue of the empirical Fisher of N' samples, ``lambda_max(xi_t) / N'`` (Jia & Su, App. D).

    Args:
        minimum: a Minimum.
        subset, trials, seed: of the Gram matrix. Values for different `subset` are not comparable.
        logit_norm, batchnorm, chunk: as for `fisher_logdet`.
        rtol: raise `trials` until the 95% interval is value (1 +- rtol).

    Returns:
        Estimate; mean and stderr over subsets; details: ``paper``, the mean without the division by N'.

    Raises:
        DataError: fewer samples than the `subset` that was given.
        UsageError: an option outside its range.

    Source:
        Jia & Su, arXiv 1911.08192, sec. 7.1 and App. D.
    """

    def estimate(trials: int) -> Estimate:
        gram = minimum[_key(minimum, subset, trials, seed, logit_norm, batchnorm, chunk)]
        told, matrices = of_subset(gram, subset), gram.matrices()
        overflowed = int((~matrices.isfinite()).any(2).any(1).sum())
        if overflowed:  # the solver would not converge
            return Estimate.missing(f"{overflowed} of {len(matrices)} Gram matrices are not finite")
        top = torch.linalg.eigvalsh(matrices)[:, -1].clamp_min(0)
        return Estimate.mean(top / gram.subset, **told, paper=float(top.mean()))

    return until(rtol, trials, estimate)
