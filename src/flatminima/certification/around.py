"""`certify_around`: a certificate for the network that draws its weights around an existing minimum.

Q is shaped by the minimum's geometry, which the data may decide; P is not, and what Q may be chosen from is paid for
only where it is P that varies. Everything ends in the one pipeline of two kl inverses.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima import bounds
from flatminima.certification.certificate import Certificate, printable
from flatminima.certification.conditions import (
    Condition,
    Findings,
    conditions,
    enforce,
    fixed_condition,
    independence,
)
from flatminima.certification.families import Curvature, Family, family
from flatminima.certification.learned import share_of
from flatminima.certification.logits import class_labels
from flatminima.certification.overlap import refuse_overlap
from flatminima.certification.pipeline import Confidence, Counted, Union, assemble
from flatminima.certification.posteriors import DiagonalGaussian, Posterior
from flatminima.certification.prior import DEFAULT, Centre, Scales, subset
from flatminima.certification.provenance import Factory, refuse_changed
from flatminima.certification.reading import confirm, read
from flatminima.certification.risk import GibbsRisk, blocks_of, by_batch, constant_errors, errors_at, risk_of
from flatminima.certification.split import FEWEST, Division, Groups, Repetition, hold_apart
from flatminima.core.ambient import neutral
from flatminima.core.minimum import Minimum
from flatminima.core.perturbation import Relative, mix
from flatminima.core.samples import as_samples
from flatminima.errors import UsageError
from flatminima.io import run_key
from flatminima.training import TrainConfig

_PILOT_DRAWS, _PILOT_SAMPLES = 32, 32  # of each posterior that is tried, before one is frozen
_TEST_DRAWS = 500
_P_MIN = 1e-5


@dataclass(frozen=True)
class _Choice:
    """A posterior that was picked, and the scale of the prior that it is against."""

    posterior: Posterior
    eta: float
    penalty: float


@neutral()
def certify_around(
    minimum: Minimum,
    posterior: str = "gaussian",
    *,
    prior: nn.Module | Factory | str,
    prior_data: Any = None,
    prior_training: TrainConfig | None = None,
    prior_seed: int = 0,
    stated: str = "",
    scales: Scales | float | Sequence[float] = DEFAULT,
    etas: Sequence[float] | None = None,
    delta: float = 0.05,
    delta_mc: float | None = None,
    draws: int = 2_000,
    batch_size: int = 64,
    p_min: float = 1e-5,
    curvature: Curvature = "gauss_newton",
    curvature_samples: int | None = None,
    kappa: Relative | None = None,
    rho: float = 0.0,
    box: float = math.inf,
    union: Union | None = None,
    ledger: str | Path | None = None,
    test_data: Any = None,
    groups: Groups | None = None,
    prior_groups: Groups | None = None,
    repetition: Repetition = "tested",
    output: str | Path | None = None,
    source: Mapping[str, Any] | None = None,
    score: bool = False,
    seed: int = 0,
) -> Certificate:
    """Bound the error of the network with weights w + u, u from a posterior around the minimum's w.

    R = kl^-1(kl^-1(p, ln(k/delta_mc)/draws), (KL(Q||P) + ln(1/p_j) + ln(2 sqrt(n) k/(delta - delta_mc)))/n), p the
    error of fresh draws on the n samples, p_j the share of the prior's scale, and k the certificates of the union.

    Args:
        minimum: classifier and the n samples of the bound. The classifier may have been trained on them and on others.
        posterior: its shape, with sigma or eta chosen on the samples, which costs nothing.
            "gaussian"            N(w, (r s)^2 I)
            "diagonal_laplace"    N(w, diag (eta h_i + 1/s^2)^-1)
            "fisher_laplace"      N(w, (eta F + I/s^2)^-1), F from `curvature_samples` samples, not only its diagonal
            "uniform"             U(w_i +- sigma_i), Wang et al.'s sigma; the prior is a box of half-width `scales`
            "truncated_gaussian"  Wang et al.'s, cut at kappa_i
        prior: network at its centre: a function that makes one, called here under `prior_seed` (and as `seed=`, where
            it takes one); "zero"; or a network that is handed in, about which something must be stated.
        prior_data: samples that a prior handed in was trained on, none of them the bound's, which states it; or, with
            `prior_training`, those that a function's network is trained on here. A text names samples not at hand.
        prior_training: how it is trained here.
        stated: where a prior that is handed in comes from, in the caller's words: "untrained", or what it was trained
            on. They are printed first.
        scales: standard deviations s of the prior, all fixed before; the choice among them is paid for.
        etas: to try; by default n times 1e-3 .. 10 (of "gaussian", r from 1 to 1/8).
        delta: failure probability of the whole statement, `delta_mc` of it for the draws (a fifth by default).
        draws: of the weights, at least; rounded up to whole passes over the samples.
        batch_size: samples a draw, where weights cannot be drawn for each example.
        p_min: clamp of the cross-entropy, whose bound stands beside that of the error.
        curvature: "gauss_newton" or "fisher" (empirical; it vanishes where all labels are fitted).
        curvature_samples: drawn for it; None for all, of fisher_laplace for 100.
        kappa, rho, box: of "uniform" and "truncated_gaussian", see `families.family`.
        union: other centres and other certificates that this one could have been; delta is divided by their product.
        ledger: file that counts the certificates of these samples, across commands.
        test_data: only to report the error on it in `details`; refused where it is the bound's.
        groups: an identifier a sample, of what was drawn independently (a patient, a document); n counts groups then.
        prior_groups: the same of `prior_data`, where groups are given; none of the bound's may be among them.
        repetition: "tested", whether independent draws explain rows that repeat; or "independent", the caller's word
            that every repeated row was drawn anew.
        output: folder for certificate.json and weights.safetensors; `source`: of model and data, recorded beside them.
        score: give the number also where a condition fails; the result then is no certificate.
        seed: of the draws and of the curvature's samples.

    Returns:
        Certificate, the hold-out bound of the prior's own network beside it.

    Raises:
        UsageError: an argument out of range, outputs or targets that are no classifier's, a condition that fails, or a
            posterior that leaves the prior's box whatever its scale.

    Source: docs/certificates.md; Langford & Caruana (2002), Maurer (2004), W1 Lemmas 3 and 4.

    Examples:
        >>> x = torch.randn(64, 2); y = (x[:, 0] > 0).long()
        >>> net = nn.Linear(2, 2); _ = torch.nn.init.eye_(net.weight)
        >>> certificate = certify_around(Minimum(net, (x, y)), prior="zero", draws=64)
        >>> certificate.is_certificate, 0 <= certificate.empirical_risk <= certificate.risk_bound <= 1
        (True, True)
    """
    undivided = Confidence(delta, delta_mc, union or Union())
    _check(minimum, draws, batch_size, p_min, box)
    test = None if test_data is None else _test_minimum(minimum, test_data)
    centre = Centre.of(prior, prior_data, minimum, seed=prior_seed, stated=stated, training=prior_training)
    whole = minimum.samples.fingerprint
    samples = read(minimum.samples)
    division = hold_apart(samples, centre.data, seed, groups=groups, prior_groups=prior_groups, repetition=repetition)
    minimum = centre.minimum_of(minimum, division.bound)
    grid = Scales.of(scales)
    wrong = errors_at(minimum, centre.weights)
    setting = _Setting(minimum, centre, division, wrong, len(grid.values), p_min)
    enforce(conditions(setting.findings, undivided), score)  # what can be refused is, before anything is computed
    shape = family(
        posterior,
        minimum,
        minimum.parameters.flat(torch.float64).cpu() - centre.weights,
        curvature=curvature,
        curvature_samples=curvature_samples,
        kappa=kappa,
        rho=rho,
        box=box,
        seed=seed,
    )
    choice = _choose(minimum, shape, grid, tuple(etas or shape.etas), undivided.samples, p_min, seed)
    mark = _digest(torch.cat([minimum.parameters.flat(torch.float64).cpu(), centre.weights]))
    drawn = mix(seed, 1 + int(mark, 16) % 2**48)  # other draws for other weights: none can be fitted to them
    risk = risk_of(minimum, choice.posterior, draws=draws, batch_size=batch_size, p_min=p_min, seed=drawn)
    refuse_changed(wrong, errors_at(minimum, centre.weights))
    confirm(samples)
    details: dict[str, Any] = {"posterior": posterior, "eta": choice.eta, "seed": seed, "prior_seed": prior_seed}
    details |= {"fingerprint": whole, "left_out": len(division.left_out), "groups": division.groups} | shape.details
    details["options"] = {
        "posterior": posterior,
        "prior": "zero" if prior == "zero" else "function" if centre.untrained else "network",
        "prior_seed": prior_seed,
        "scales": grid.values,
        "shares": grid.shares,
        "etas": None if etas is None else tuple(etas),
        "draws": draws,
        "batch_size": batch_size,
        "p_min": p_min,
        "curvature": curvature,
        "curvature_samples": curvature_samples,
        "kappa": None if kappa is None else vars(kappa),
        "rho": rho,
        "box": None if math.isinf(box) else box,
        "loss": minimum.loss.name,
        "minimum_batch_size": minimum.batch_size,
        "repetition": repetition,
    }
    if test is not None:
        details["test"] = _on_test(test, choice.posterior, p_min, seed)
    made = (posterior, dict(shape.details), choice.eta, choice.posterior.scale, draws, batch_size, seed, prior_seed)
    key = run_key((made, centre.text, mark, risk.error, risk.cross_entropy, choice.posterior.kl, len(minimum.samples)))
    declared = None if union is None else union.k
    what = f"{posterior}, {centre.text}"
    confidence = share_of(delta, delta_mc, undivided.union, declared, whole, ledger, key, what)
    made_by = f"{posterior} around an existing minimum"
    certificate = setting.certificate(risk, choice, confidence, score, made_by, details)
    if output is not None:
        from flatminima.certification.record import save_around

        save_around(certificate, minimum, centre, Path(output), source)
    return certificate


@neutral()
def certify_gaussian(
    model: nn.Module,
    prior: Tensor,
    bound_data: tuple[Tensor, Tensor],
    *,
    sigma: float,
    prior_data: tuple[Tensor, Tensor] | None,
    prior_text: str,
    delta: float = 0.05,
    delta_mc: float | None = None,
    draws: int = 2_000,
    batch_size: int = 64,
    union: Union | None = None,
    seed: int = 0,
) -> Certificate:
    """Bound the 0-1 error of the network that draws its weights from N(w, sigma^2 I), w the model's.

    P = N(w_prior, sigma^2 I): KL = ||w - w_prior||^2 / (2 sigma^2). One draw serves a batch. Since the prior's weights
    are handed in as numbers, the result is conditional: on what `prior_text` states.

    Args:
        model: classifier in eval mode, its weights the posterior's mean.
        prior: (W,) weights of the prior's mean, made without the bound's samples.
        bound_data: (x, y), the samples of the bound; the posterior may have been trained on them.
        sigma: standard deviation of prior and posterior, fixed without the bound's samples, or one of `union`.
        prior_data: what the prior was trained on; None for a prior from its seed alone.
        prior_text: where the prior comes from, in the caller's words, which are printed first.
        delta: failure probability of the whole statement, `delta_mc` of it for the draws (a fifth by default).
        draws: of the weights, at least; rounded up to whole passes over the samples.
        batch_size: samples a draw at most; the largest divisor of n up to it is used.
        union: of what this is one.
        seed: of the draws, made after the posterior was frozen.

    Returns:
        Certificate of the stochastic network, the hold-out bound of the prior's mean network beside it.

    Raises:
        UsageError: delta, sigma or draws out of range, fewer than 8 samples, weights of the wrong length, no words.
        DataError: samples of the bound among the prior's.

    Source: Langford & Caruana (2002), Maurer (2004), Dziugaite & Roy (2017), Perez-Ortiz et al. (2021).
    """
    confidence = Confidence(delta, delta_mc, union or Union())
    words = printable(prior_text)
    if not words:
        raise UsageError("got no prior_text: state in words where the prior's weights come from")
    if not (math.isfinite(sigma) and sigma > 0):
        raise UsageError(f"got sigma={sigma!r}; the Gaussian's standard deviation must be positive")
    samples = as_samples(bound_data)
    minimum = Minimum(model, samples)
    _check(minimum, draws, batch_size, _P_MIN, math.inf)
    weights = minimum.parameters.flat(torch.float64).cpu()
    if prior.shape != weights.shape or not bool(torch.isfinite(prior).all()):
        raise UsageError(f"got a prior of shape {tuple(prior.shape)}; expected {weights.numel()} finite weights, flat")
    others = None if prior_data is None or len(prior_data[1]) == 0 else as_samples(prior_data)
    if others is not None:
        remedy = "train the prior on samples that the bound does not use"
        refuse_overlap(samples, others, "also the prior's", remedy)
    centre = Centre(prior.double().cpu(), words, False, f"the prior's weights are {words}", others, ())
    division = hold_apart(samples, None, seed)
    if len(division.left_out):
        minimum = Minimum(model, subset(samples, division.bound))
    setting = _Setting(minimum, centre, division, errors_at(minimum, prior), 1, _P_MIN)
    q = DiagonalGaussian(weights - centre.weights, sigma, torch.full((len(minimum.parameters),), sigma))
    risk = by_batch(minimum, q, blocks_of(len(minimum.samples), draws, batch_size), p_min=_P_MIN, seed=seed)
    details = {"fingerprint": samples.fingerprint, "seed": seed}
    return setting.certificate(risk, _Choice(q, 1.0, 0.0), confidence, False, "given", details)


def gibbs_error(minimum: Minimum, sigma: float, draws: int, batch_size: int, seed: int) -> tuple[float, int]:
    """Monte-Carlo mean of the 0-1 error under N(w, sigma^2 I), fresh weights for every batch, and how many draws."""
    w = len(minimum.parameters)
    q = DiagonalGaussian(torch.zeros(w, dtype=torch.float64), sigma, torch.full((w,), sigma))
    risk = by_batch(minimum, q, blocks_of(len(minimum.samples), draws, batch_size), p_min=_P_MIN, seed=seed)
    return risk.error, risk.draws


@dataclass(frozen=True, eq=False)
class _Setting:
    """A minimum and the prior of its certificate, with what was found out about them."""

    minimum: Minimum
    centre: Centre
    division: Division
    wrong: Tensor  # of the bound's samples, by the centre's network
    scales: int
    p_min: float

    @cached_property
    def findings(self) -> Findings:
        n, centre = len(self.minimum.samples), self.centre
        return Findings(
            prior=centre.condition(self.minimum, self.division, self.wrong),
            n=n,
            of=n + len(self.division.left_out),
            independent=independence(self.division, refused=False),
            fixed=self._fixed(),
            hyper=f"{self.scales} scales of the prior, paid for",
            p_min=self.p_min,
        )

    def _fixed(self) -> Condition:
        centre = self.centre
        if centre.differing:
            return fixed_condition(
                False,
                f"{', '.join(centre.differing[:3])} differ from the prior's network",
                remedy="copy them from the prior's network, where the prior's own samples have made them",
            )
        evidence = "deterministic in eval mode; buffers and frozen parameters are the prior network's"
        return fixed_condition(True if centre.known else None, evidence, stated=centre.stated)

    def certificate(
        self,
        risk: GibbsRisk,
        choice: _Choice,
        confidence: Confidence,
        score: bool,
        objective: str,
        details: dict[str, Any],
    ) -> Certificate:
        n, q = len(self.minimum.samples), choice.posterior
        counted = Counted(
            risk=risk,
            kl=q.kl,
            penalty=choice.penalty + self.division.nats,
            n=n,
            holdout_errors=int(self.wrong.sum()),
            constant_errors=int(constant_errors(self.minimum).sum()),
            sigma=q.scale,
            p_min=self.p_min,
            left_out=len(self.division.left_out),
        )
        listed = enforce(conditions(self.findings, confidence), score)
        return assemble(counted, confidence, listed, prior=self.centre.text, objective=objective, details=details)


def _choose(
    minimum: Minimum, shape: Family, grid: Scales, etas: tuple[float, ...], delta: float, p_min: float, seed: int
) -> _Choice:
    """The scale and eta with the least bound in a pilot; draws of their own, so that the final ones are fresh.

    Raises:
        UsageError: every posterior leaves the prior's support.
    """
    n = len(minimum.samples)
    tried = [_Choice(shape.at(s, eta), eta, grid.penalty(s)) for s in grid.values for eta in etas]
    finite = [(c.posterior.kl + c.penalty, i) for i, c in enumerate(tried) if c.posterior.kl < math.inf]
    if not finite:
        reach = float(tried[0].posterior.distance.abs().max())
        raise UsageError(
            f"KL is infinite: the minimum lies up to {reach:.3g} from the prior's centre in a weight, and its noise "
            f"leaves the prior's box of half-width {max(grid.values):g}; fix wider scales (or a wider box) in advance"
        )
    if len(finite) == 1:
        return tried[finite[0][1]]
    order = minimum.samples.order(seed)
    positions = torch.arange(_PILOT_DRAWS * _PILOT_SAMPLES) % n
    blocks = list(order[positions].split(_PILOT_SAMPLES))
    best, least = tried[finite[0][1]], math.inf
    for kl, i in sorted(finite):
        if float(bounds.pac_bayes_kl(0.0, kl, n, delta)) >= least:
            break  # without a single error it would not be better
        pilot = by_batch(minimum, tried[i].posterior, blocks, p_min=p_min, seed=mix(seed, 0), task="pilot")
        bound = float(bounds.pac_bayes_kl(pilot.error, kl, n, delta))
        if bound < least:
            best, least = tried[i], bound
    return best


def _test_minimum(minimum: Minimum, test_data: Any) -> Minimum:
    others = as_samples(test_data)
    refuse_overlap(minimum.samples, others, "also in the test data", "give two different splits")
    return minimum.replace(model=copy.deepcopy(minimum.model).eval(), data=others)


def _on_test(test: Minimum, posterior: Posterior, p_min: float, seed: int) -> dict[str, float]:
    """What the stochastic network, and the mean network, do on samples that nothing was made from."""
    n = len(test.samples)
    risk = risk_of(test, posterior, draws=_TEST_DRAWS, batch_size=_PILOT_SAMPLES, p_min=p_min, seed=mix(seed, 2))
    mean = int(errors_at(test, test.parameters.flat()).sum())
    return {"n": n, "error": risk.error, "mean_network_error": mean / n}


def _digest(weights: Tensor) -> str:
    return hashlib.blake2b(weights.detach().double().cpu().numpy().tobytes(), digest_size=8).hexdigest()


def _check(minimum: Minimum, draws: int, batch_size: int, p_min: float, box: float) -> None:
    n = len(minimum.samples)
    if n < FEWEST:
        raise UsageError(f"got {n} samples for the bound; the PAC-Bayes-kl bound needs at least {FEWEST}")
    with minimum.open(), torch.no_grad():
        for part in torch.arange(n).split(minimum.batch_size):
            targets = minimum.samples.take(part)[1]
            if int(part[0]) == 0:
                output = minimum.forward(minimum.batch(part[:1]).inputs)
            class_labels(targets.to(output.device), output, minimum.loss, int(part[0]))
    if draws < 1 or batch_size < 1:
        raise UsageError(f"got draws={draws!r}, batch_size={batch_size!r}; at least one each is needed")
    if not 0 < p_min < 1:
        raise UsageError(f"got p_min={p_min!r}; expected a clamp in (0, 1), e.g. 1e-5")
    if not box > 0:
        raise UsageError(f"got box={box!r}; the prior's half-width must be positive, or inf")
