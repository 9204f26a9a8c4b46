"""pacGen: curvature, its Lipschitz constant and the scale of the weights in one number (Wang et al. 2018, sec. 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from flatminima.bounds import uniform_sigma
from flatminima.core.perturbation import OneCoordinate, Perturbation, Relative, TruncatedGaussian, Uniform
from flatminima.core.statistic import Fold, Statistic, Statistics
from flatminima.errors import Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.measures._measure import at_least_one, catalogued_measure, output_size_of, seed_of, until, with_note
from flatminima.statistics import (
    At,
    BatchGradientSquares,
    Change,
    DiagonalChange,
    DrawnGaussNewtonDiagonal,
    FisherDiagonal,
    FlatWeights,
    GaussNewtonDiagonal,
    HessianDiagonal,
    HessianProbes,
    PiecewiseLinearDiagonal,
    ProbedHessian,
    Redrawn,
    SampleCount,
    SketchedDiagonal,
    Weights,
)
from flatminima.statistics.redrawn import draws as is_drawn

Diagonal = Literal["gauss_newton", "exact", "piecewise_linear", "hutchinson", "xdiag", "fisher", "batch_gradient"]
Rho = Literal["norm", "paper", "coordinate", "zero"]
Noise = Literal["uniform", "gaussian"]

_BLOCK = 1 << 22  # weights at a time
_EXACT = 100  # entries of an output up to which every Gauss-Newton column is sent back
_DRAWN = 4  # random combinations of them above
_COORDINATES = 1_000  # parameters up to which rho is taken coordinate by coordinate


@catalogued_measure
def pacgen(
    minimum: Statistics,
    *,
    gamma: float = 0.1,
    epsilon: float = 0.1,
    diagonal: Diagonal = "gauss_newton",
    rho: Rho | float = "norm",
    noise: Noise = "uniform",
    rho_scale: float = 1.0,
    draws: int = 2,
    variant: Literal["paper", "lemma3"] = "paper",
    eta: float | None = None,
    samples: int | None = 300,
    probes: int = 10,
    columns: int | None = None,
    batch: int = 128,
    rtol: float | None = None,
    seed: int | None = None,
) -> Estimate:
    """``Psi = sum_i ln((|w_i| + kappa_i) max(sqrt(max(h_i + rho sqrt(m) kappa_i, 0)), 1 / kappa_i))``.

    kappa_i = gamma |w_i| + epsilon, h the Hessian's diagonal, m the number of parameters. A score: rho is estimated
    from below and the prior's width depends on the weights. Each term is at least ln(1 + |w_i| / kappa_i).
    With rho "zero" and epsilon 0 it does not change when a ReLU network's layers are rescaled (W1 sec. 5).

    Args:
        minimum: a Minimum.
        gamma, epsilon: of the neighbourhood; not both 0.
        diagonal: h_i. "gauss_newton" (exact for piecewise-linear networks, C backward passes, or `columns` of them,
            unbiased, where an output has more than 100 entries), "piecewise_linear"
            (that, refused otherwise), "exact" (small networks), "hutchinson" (`probes` products), "xdiag" (2 `probes`
            products, at least 6; closer where few eigenvalues are large), "fisher" (per-sample squared gradients),
            "batch_gradient" (the paper's squared gradients of mini-batches of `batch`: about Fisher / batch,
            confounded with it, erratum W-n).
        rho: "norm": max_i |h_i(w+u) - h_i(w)| / ||u||_2, a lower bound of the Lipschitz constant (default); "paper":
            max_i |dh_i| / |u_i|, which one tiny |u_i| makes arbitrarily large (erratum W-m); "coordinate": the same,
            one coordinate moved at a time: a lower bound again, m diagonals a draw (at most 1,000 parameters); "zero";
            or a number.
        noise: of u: "uniform" on +-kappa, or "gaussian", truncated at kappa (sigma = kappa / 2).
        rho_scale: u is drawn at rho_scale * kappa, in (0, 1].
        draws: of u, and of the samples and probes of h where these are drawn, each with its own rho; Psi is their mean.
        variant: "paper", or "lemma3": eta (h/3 + rho sqrt(m) kappa / 9) in place of h + rho sqrt(m) kappa (W-j).
        eta: of variant "lemma3".
        samples: of the data for h, drawn by seed; None: all.
        probes, batch: of the estimators.
        columns: random combinations of a sample's Gauss-Newton columns that stand for all of them; None: 4 where an
            output has more than 100 entries (tokens times words), else all columns.
        rtol: raise `draws` until the 95% interval is value (1 +- rtol).
        seed: of samples, probes and u; None: the Minimum's.

    Returns:
        Estimate in nats, stderr over draws (none where kappa decides every term, because then no draw matters, or where
        nothing is drawn); it adds over parameters, so compare networks of equal m or details["per_parameter"].
        details: rho (largest), rho_draws, parameters, error_of, curvature_bound (share of terms where curvature
        decides), negative_curvature (share of h below 0), layers, columns (drawn; None: all), note.
        Undefined: rho is to be drawn and no weight can move (all are 0, and so is epsilon), or the Hessian's diagonal
        is undefined.

    Raises:
        UsageError: an option outside its range.

    Source:
        Wang et al., arXiv 1809.07402, sec. 6 (the AISTATS 2020 version: sec. 7).
    """
    _check(gamma, epsilon, rho, noise, rho_scale, draws, variant, eta)
    at_least_one(samples=samples, probes=probes, batch=batch, columns=columns)
    seed = seed_of(minimum, seed)
    fold: Statistic[Any] = _diagonal_fold(diagonal, samples, probes, batch, seed)
    if diagonal == "gauss_newton":
        fold = _gauss_newton(minimum, samples, columns, seed)
    kappa_scale = Relative(rho_scale, slope=gamma, offset=epsilon)
    around: Perturbation = Uniform(kappa_scale)
    if noise == "gaussian":
        around = TruncatedGaussian(Relative(rho_scale / 2, slope=gamma, offset=epsilon), bound=2.0)

    def estimate(draws: int) -> Estimate:
        found = _curvature(minimum, fold, around, seed, draws, rho)
        return _with_columns(_psi(found, gamma, epsilon, variant, eta), fold).with_details(diagonal=diagonal)

    return until(rtol, draws, estimate)


@catalogued_measure
def sharpness_divergence(
    minimum: Statistics,
    *,
    eta: float | None = None,
    gamma: float = 0.1,
    epsilon: float = 0.1,
    delta: float = 0.05,
    diagonal: Diagonal = "gauss_newton",
    rho: Rho | float = "norm",
    draws: int = 2,
    samples: int | None = 300,
    seed: int | None = None,
) -> Estimate:
    """Cost of uniform noise of the best widths: sharpness + divergence (Wang et al. 2020, sec. 5.2).

    sharpness  = ``sum_i (h_i / 6 + rho sqrt(m) kappa_i / 18) sigma_i^2``, an upper bound of E_u L(w + u) - L(w) as far
    as h and rho are right (erratum W-b);
    divergence = ``(sum_i ln(tau_i / sigma_i) + ln(1 / delta)) / eta + eta / (8 n)``;
    sigma_i minimises their sum within kappa_i = gamma |w_i| + epsilon, and tau_i = |w_i| + kappa_i. A score: tau
    depends on the weights, and rho is estimated from below.

    Args:
        minimum: a Minimum.
        eta: temperature: a larger one weighs sharpness more; None: sqrt(m n), as in their Theorem 2.
        gamma, epsilon: of the neighbourhood; not both 0.
        delta: in (0, 1).
        diagonal, rho, draws, samples, seed: as for `pacgen`.

    Returns:
        Estimate of the sum in units of the loss, stderr over draws as for `pacgen`; details: sharpness, divergence,
        eta, kl (sum_i ln(tau_i / sigma_i)), rho, clipped (share of sigma_i that kappa_i bounds).
        Undefined: as for `pacgen`, and where a weight and epsilon are both 0.

    Raises:
        UsageError: an option outside its range.

    Source:
        Wang et al., AISTATS 2020, sec. 5.2 with eq. 7 and 10 (arXiv 1809.07402, eq. 7 and 9).
    """
    _check(gamma, epsilon, rho, "uniform", 1.0, draws, "paper", None)
    at_least_one(samples=samples)
    if not 0 < delta < 1 or (eta is not None and not 0 < eta < math.inf):
        raise UsageError(f"got delta={delta!r}, eta={eta!r}; delta in (0, 1), eta positive and finite")
    seed = seed_of(minimum, seed)
    fold: Statistic[Any] = _diagonal_fold(diagonal, samples, 10, 128, seed)
    if diagonal == "gauss_newton":
        fold = _gauss_newton(minimum, samples, None, seed)
    around = Uniform(Relative(1.0, slope=gamma, offset=epsilon))
    found = _curvature(minimum, fold, around, seed, draws, rho)
    w, n = found.weights.values, found.population
    kappa = gamma * w.abs() + epsilon
    if bool((kappa == 0).any()):
        raise Undefined("a weight is 0 and so is epsilon: its noise has no width, and the divergence is infinite")
    m = len(w)
    temperature = math.sqrt(m * n) if eta is None else eta
    overflowed = sum(not bool(h.isfinite().all()) for h, _ in found.draws)
    if overflowed:
        raise Undefined(f"{overflowed} of {len(found.draws)} curvatures are not finite")
    splits = [_split(w, h.double(), kappa, r, temperature, delta, n) for h, r in found.draws]
    estimate = Estimate.mean(torch.tensor([s["sharpness"] + s["divergence"] for s in splits], dtype=torch.float64))
    mean = {key: sum(s[key] for s in splits) / len(splits) for key in splits[0]}
    details = {"eta": temperature, "rho": max(r for _, r in found.draws), "parameters": m, "error_of": found.error_of}
    return _with_columns(estimate.with_details(**mean, **details), fold)


def _split(w: Tensor, h: Tensor, kappa: Tensor, rho: float, eta: float, delta: float, n: int) -> dict[str, float]:
    sigma = torch.from_numpy(np.asarray(uniform_sigma(h.numpy(), rho, kappa.numpy(), eta)))
    rise = (h / 6 + rho * math.sqrt(len(w)) * kappa / 18) * sigma.square()
    kl = float(((w.abs() + kappa) / sigma).log().sum())
    divergence = (kl - math.log(delta)) / eta + eta / (8 * n)
    clipped = float((sigma >= kappa).double().mean())
    return {"sharpness": float(rise.sum()), "divergence": divergence, "kl": kl, "clipped": clipped}


@dataclass(frozen=True)
class _Curved:
    """Weights, h (W,) and rho of each draw, and over what they were drawn."""

    weights: FlatWeights
    population: int
    draws: list[tuple[Tensor, float]]
    error_of: str


def _psi(found: _Curved, gamma: float, epsilon: float, variant: str, eta: float | None) -> Estimate:
    names, sizes, w = found.weights.names, list(found.weights.sizes), found.weights.values
    m, count = w.numel(), len(found.draws)
    totals, bound, negative = torch.zeros(count, dtype=torch.float64), 0.0, 0.0
    layers = dict.fromkeys(names, 0.0)
    for k, (h, r) in enumerate(found.draws):
        negative += float((h < 0).sum()) / (m * count)
        for name, own, curved in zip(names, w.split(sizes), h.split(sizes), strict=True):
            for block, h_block in zip(own.split(_BLOCK), curved.split(_BLOCK), strict=True):
                # a block: large models have no room for seven vectors more
                terms, share = _terms(block, h_block.double(), gamma, epsilon, r * math.sqrt(m), variant, eta)
                part = float(terms.sum())
                totals[k] += part
                layers[name] += part / count
                bound += share * len(terms) / (m * count)
    estimate = Estimate.mean(totals)
    if estimate.value is None:
        return estimate
    if not bound:
        estimate = replace(estimate, stderr=None)
    rhos = [r for _, r in found.draws]
    return estimate.with_details(
        rho=max(rhos),
        rho_draws=rhos,
        parameters=m,
        per_parameter=float(estimate) / m,
        curvature_bound=bound,
        negative_curvature=negative,
        layers=layers,
        error_of=found.error_of if bound else "exact",
    )


def _curvature(
    minimum: Statistics, fold: Statistic[Any], around: Perturbation, seed: int, draws: int, rho: Rho | float
) -> _Curved:
    """h of `draws` draws of its samples, each with a rho at a draw of u of its own; fewer where all are the same."""
    diagonals: list[Statistic[Any]] = [fold, *(Redrawn(fold, k) for k in range(1, draws))]
    changes: list[Statistic[Any]] = []
    if rho in ("norm", "paper"):
        changes = [Change(h, around, seed, k) for k, h in enumerate(diagonals)]
    weights, n, *rest = _all(minimum, (Weights(), SampleCount(), *diagonals, *changes))
    sampled, moved = is_drawn(fold, n), rho in ("norm", "paper", "coordinate")
    values, found = rest[:draws], rest[draws:]
    if rho == "coordinate":
        rhos = _one_by_one(minimum, diagonals, values, weights, around, seed)
    elif changes:
        rhos = [_slope(change, rho) for change in found]
    else:
        rhos = [0.0 if isinstance(rho, str) else float(rho)] * (draws if sampled else 1)
    kind = {(True, True): "both", (True, False): "data", (False, True): "draws", (False, False): "exact"}
    return _Curved(weights, n, list(zip(values, rhos, strict=False)), kind[sampled, moved])


def _one_by_one(
    minimum: Statistics,
    diagonals: list[Statistic[Any]],
    values: list[Tensor],
    weights: FlatWeights,
    around: Perturbation,
    seed: int,
) -> list[float]:
    """rho of each draw, one coordinate moved at a time."""
    m = len(weights.values)
    if m > _COORDINATES:
        raise Undefined(f"rho coordinate by coordinate needs {m} diagonals (limit {_COORDINATES}); use rho='norm'")
    single = [OneCoordinate(around.scale, i) for i in range(m)]
    moved = _all(minimum, tuple(At(fold, u, seed, k) for k, fold in enumerate(diagonals) for u in single))
    rhos = []
    for k, h in enumerate(values):
        steps = torch.tensor([float(u.draw(weights.values, seed, k)[u.coordinate]) for u in single])
        there = torch.stack([moved[k * m + i][i] for i in range(m)])
        rhos.append(_slope(DiagonalChange.of(h, there, steps), "paper"))
    return rhos


def _terms(
    w: Tensor, h: Tensor, gamma: float, epsilon: float, root_m_rho: float, variant: str, eta: float | None
) -> tuple[Tensor, float]:
    """The terms of some weights and the share of them in which curvature, not kappa, decides."""
    kappa = gamma * w.abs() + epsilon
    lipschitz = root_m_rho * kappa
    curvature = h + lipschitz if variant == "paper" else float(eta or 0.0) * (h / 3 + lipschitz / 9)
    width = w.abs() + kappa
    curved = width * curvature.clamp_min(0).sqrt()
    # w = 0 and epsilon = 0: the limit of (|w| + kappa) / kappa, so that dead weights and fresh biases have a term
    flat = torch.where(kappa > 0, width / kappa, 1 + 1 / gamma if gamma else 1.0)
    return torch.maximum(curved, flat).log(), float((curved > flat).double().mean())


def _diagonal_fold(
    kind: str, samples: int | None, probes: int, batch: int, seed: int
) -> Fold[object, Tensor] | Fold[object, ProbedHessian]:
    folds = {
        "gauss_newton": GaussNewtonDiagonal(samples, seed),
        "fisher": FisherDiagonal(samples, seed),
        "exact": HessianDiagonal(),
        "hutchinson": HessianProbes(probes, samples, seed),
        "piecewise_linear": PiecewiseLinearDiagonal(samples, seed),
        "xdiag": SketchedDiagonal(max(2 * probes, 6), samples, seed),
        "batch_gradient": BatchGradientSquares(batch, seed),
    }
    if kind not in folds:
        raise UsageError(f"got diagonal={kind!r}; expected one of {', '.join(sorted(folds))}")
    return folds[kind]  # type: ignore[return-value]


def _gauss_newton(
    minimum: Statistics, samples: int | None, columns: int | None, seed: int
) -> GaussNewtonDiagonal | DrawnGaussNewtonDiagonal:
    """The Gauss-Newton diagonal from all columns of the loss's factor, or from a few random combinations of them."""
    if columns is None and output_size_of(minimum) <= _EXACT:
        return GaussNewtonDiagonal(samples, seed)
    return DrawnGaussNewtonDiagonal(samples, seed, _DRAWN if columns is None else columns)


def _with_columns(estimate: Estimate, fold: Statistic[Any]) -> Estimate:
    """What a reader must know of drawn columns."""
    if not isinstance(fold, DrawnGaussNewtonDiagonal):
        return estimate.with_details(columns=None)
    found = estimate.with_details(columns=fold.columns)
    return with_note(found, f"curvature from {fold.columns} random columns a sample")


def _all(minimum: Statistics, keys: tuple[Statistic[Any], ...]) -> list[Any]:
    """Their values, in one request; of Hutchinson's probes the diagonal."""
    values: Any = minimum[keys]  # type: ignore[index]
    return [value.diagonal if isinstance(value, ProbedHessian) else value for value in values]


def _slope(change: DiagonalChange, rho: Rho | float) -> float:
    if change.steepest is None:
        raise Undefined("no weight can move: all are 0 and epsilon is 0, so rho cannot be drawn")
    if rho == "norm":
        return max(change.highest, -change.lowest) / change.length
    return change.steepest


def _check(
    gamma: float,
    epsilon: float,
    rho: Rho | float,
    noise: str,
    rho_scale: float,
    draws: int,
    variant: str,
    eta: float | None,
) -> None:
    if not (gamma >= 0 and epsilon >= 0 and gamma + epsilon > 0 and math.isfinite(gamma + epsilon)):
        raise UsageError(f"got gamma={gamma!r}, epsilon={epsilon!r}; both finite and >= 0, not both 0")
    number = isinstance(rho, int | float)
    if (number and not 0 <= float(rho) < math.inf) or (not number and rho not in get_args(Rho)):
        raise UsageError(f"got rho={rho!r}; expected 'norm', 'paper', 'coordinate', 'zero' or a number >= 0")
    if noise not in ("uniform", "gaussian"):
        raise UsageError(f"got noise={noise!r}; expected 'uniform' or 'gaussian'")
    if not 0 < rho_scale <= 1 or draws < 1:
        raise UsageError(f"got rho_scale={rho_scale!r}, draws={draws}; rho_scale in (0, 1], draws at least 1")
    if variant not in ("paper", "lemma3") or (variant == "lemma3") != (eta is not None):
        raise UsageError(f"got variant={variant!r}, eta={eta!r}; 'lemma3' takes an eta, 'paper' none")
    if eta is not None and not 0 < eta < math.inf:
        raise UsageError(f"got eta={eta!r}; it must be positive and finite")
