"""`certify_around`: a certificate for the network that draws its weights around an existing minimum.

Q is shaped by the minimum's geometry, which the data may decide; P is not, and what Q may be chosen from is paid for
only where it is P that varies. Everything ends in the one pipeline of two kl inverses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from flatminima.certification.arguments import of_kind, real, reals
from flatminima.certification.around_setting import (
    AroundSetting,
    Asked,
    choose_posterior,
    on_test,
    refuse_others_minimum,
    test_minimum,
)
from flatminima.certification.certificate import Certificate
from flatminima.certification.conditions import conditions_of, enforce
from flatminima.certification.division.reading import confirm, read_samples
from flatminima.certification.division.split import Groups, Repetition, hold_apart, split
from flatminima.certification.gibbs.posteriors import CurvatureKind
from flatminima.certification.ledger import Account, with_others
from flatminima.certification.pipeline import Union
from flatminima.certification.prior import DEFAULT, Centre, Scales, subset_at
from flatminima.certification.provenance import Factory
from flatminima.core.ambient import neutral
from flatminima.core.minimum import Minimum
from flatminima.core.perturbation import Relative
from flatminima.core.samples import seed_number
from flatminima.errors import UsageError
from flatminima.training import TrainConfig


@neutral()
def certify_around(
    minimum: Minimum,
    posterior: str = "gaussian",
    *,
    prior: nn.Module | Factory | str,
    prior_data: Any = None,
    prior_training: TrainConfig | None = None,
    prior_fraction: float = 0.0,
    prior_seed: int = 0,
    stated: str = "",
    scales: Scales | float | Sequence[float] = DEFAULT,
    etas: Sequence[float] | None = None,
    delta: float = 0.05,
    delta_mc: float | None = None,
    draws: int = 2_000,
    batch_size: int = 64,
    p_min: float = 1e-5,
    curvature: CurvatureKind = "gauss_newton",
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
            `prior_training`, those that a function's network is trained on here, which states that they were drawn
            independently of the bound's. A text names samples not at hand.
        prior_training: how it is trained here.
        prior_fraction: instead of `prior_data`, share of the minimum's own samples in [0, 1) that is divided off here
            for the prior, by a hash of their contents; the others are the bound's. Nothing is left to state then.
        stated: where a prior that is handed in comes from, in the caller's words: "untrained", or what it was trained
            on. They are printed first.
        scales: standard deviations s of the prior, all fixed before; the choice among them is paid for.
        etas: to try; by default n times 1e-3 .. 10 (of "gaussian", r from 1 to 1/8).
        delta: failure probability of the whole statement, `delta_mc` of it for the draws (a fifth by default).
        draws: of the weights, at least; rounded up to whole passes over the samples.
        batch_size: samples a draw, where weights cannot be drawn for each example.
        p_min: clamp of the cross-entropy, whose bound is given beside that of the error.
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
        >>> import torch
        >>> x = torch.randn(64, 2); y = (x[:, 0] > 0).long()
        >>> net = nn.Linear(2, 2); _ = torch.nn.init.eye_(net.weight)
        >>> certificate = certify_around(Minimum(net, (x, y)), prior="zero", draws=64)
        >>> certificate.is_certificate, 0 <= certificate.empirical_risk <= certificate.risk_bound <= 1
        (True, True)
    """
    refuse_others_minimum(minimum)
    seed, prior_seed = seed_number(seed), seed_number(prior_seed, "prior_seed")
    prior_fraction = real("prior_fraction", prior_fraction, "0.5")
    if prior_training is not None:
        of_kind("prior_training", prior_training, TrainConfig)
    account = Account(delta, delta_mc, union, ledger)
    scales = scales if isinstance(scales, Scales) else Scales.of(reals("scales", scales, "0.1"))
    asked = Asked(
        posterior, scales, None if etas is None else reals("etas", etas, "1.0"), draws, batch_size, p_min,
        curvature, curvature_samples, kappa, rho, box, seed,
    )  # fmt: skip
    asked.check(minimum)
    test = None if test_data is None else test_minimum(minimum, test_data)
    samples = read_samples(minimum.samples)
    parted = split(samples, prior_fraction, seed, groups=groups, repetition=repetition) if prior_fraction else None
    if parted is not None and prior_data is not None:
        raise UsageError("got prior_fraction beside prior_data: the prior has a part of these samples, or others")
    if parted is not None and prior_training is not None:
        prior_data = subset_at(samples, parted.prior)
    centre = Centre.of(
        prior, prior_data, minimum, seed=prior_seed, stated=stated, training=prior_training, parted=parted is not None
    )
    division = parted or hold_apart(
        samples, centre.data, seed, groups=groups, prior_groups=prior_groups, repetition=repetition
    )
    setting = AroundSetting.of(minimum, samples, centre, division, asked)
    enforce(conditions_of(setting.findings, account.undivided), score)  # what can be refused is, before all the work
    shape = asked.shape(setting)
    choice = choose_posterior(setting, shape, account.undivided.samples)
    risk = setting.risk(choice)
    confirm(samples)
    details: dict[str, Any] = {"posterior": posterior, "eta": choice.eta, "seed": seed, "prior_seed": prior_seed}
    details |= {"fingerprint": samples.fingerprint, "left_out": len(division.left_out), "groups": division.groups}
    details |= shape.details
    details["options"] = asked.to_dict() | {
        "prior": "zero" if prior == "zero" else "function" if centre.untrained else "network",
        "prior_seed": prior_seed,
        "prior_fraction": prior_fraction,
        "loss": minimum.loss.name,
        "minimum_batch_size": minimum.batch_size,
        "repetition": repetition,
    }
    if test is not None:
        details["test"] = on_test(test, choice.posterior, p_min, seed)
    key = setting.key(shape, choice, risk, prior_seed)
    confidence = account.take(samples, key, f"{posterior}, {centre.text}")
    certificate = with_others(setting.certificate(risk, choice, confidence, score, details), samples, key)
    if output is not None:
        from flatminima.certification.record import save_around

        save_around(certificate, setting.minimum, centre, Path(output), source)
    return certificate
