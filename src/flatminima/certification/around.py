"""`certify_around`: a certificate for the network that draws its weights around an existing minimum.

Q is shaped by the minimum's geometry, which the data may decide; P is not, and what Q may be chosen from is paid for
only where it is P that varies. Everything ends in the one pipeline of two kl inverses.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatminima import bounds
from flatminima.certification.certificate import Certificate
from flatminima.certification.conditions import (
    Condition,
    Findings,
    conditions,
    enforce,
    fixed_condition,
    independence,
)
from flatminima.certification.division.reading import Unchanging, confirm, read
from flatminima.certification.division.repeats import refuse_overlap
from flatminima.certification.division.split import FEWEST, Division, Groups, Repetition, hold_apart, split
from flatminima.certification.gibbs.outputs import class_labels
from flatminima.certification.gibbs.posteriors import Curvature, Family, Posterior, family
from flatminima.certification.gibbs.risk import GibbsRisk, by_batch, constant_errors, errors_at, risk_of
from flatminima.certification.ledger import Account, with_others
from flatminima.certification.pipeline import Confidence, Counted, Union, assemble
from flatminima.certification.prior import DEFAULT, Centre, Scales, subset
from flatminima.certification.provenance import Factory, refuse_changed
from flatminima.core.ambient import neutral
from flatminima.core.minimum import Minimum
from flatminima.core.parameters import copied
from flatminima.core.perturbation import Relative, mix
from flatminima.core.samples import Samples, TensorSamples, as_samples
from flatminima.errors import UsageError
from flatminima.io import run_key
from flatminima.training import TrainConfig

_PILOT_DRAWS, _PILOT_SAMPLES = 32, 32  # of each posterior that is tried, before one is frozen
_TEST_DRAWS = 500


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
    account = Account(delta, delta_mc, union, ledger)
    asked = _Asked(
        posterior, Scales.of(scales), None if etas is None else tuple(etas), draws, batch_size, p_min,
        curvature, curvature_samples, kappa, rho, box, seed,
    )  # fmt: skip
    asked.check(minimum)
    test = None if test_data is None else _test_minimum(minimum, test_data)
    samples = read(minimum.samples)
    parted = split(samples, prior_fraction, seed, groups=groups, repetition=repetition) if prior_fraction else None
    if parted is not None and prior_data is not None:
        raise UsageError("got prior_fraction beside prior_data: the prior has a part of these samples, or others")
    if parted is not None and prior_training is not None:
        prior_data = subset(samples, parted.prior)
    centre = Centre.of(
        prior, prior_data, minimum, seed=prior_seed, stated=stated, training=prior_training, parted=parted is not None
    )
    division = parted or hold_apart(
        samples, centre.data, seed, groups=groups, prior_groups=prior_groups, repetition=repetition
    )
    setting = _Setting.of(minimum, samples, centre, division, asked)
    enforce(conditions(setting.findings, account.undivided), score)  # what can be refused is, before all the work
    shape = asked.shape(setting)
    choice = _choose(setting, shape, account.undivided.samples)
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
        details["test"] = _on_test(test, choice.posterior, p_min, seed)
    key = setting.key(shape, choice, risk, prior_seed)
    confidence = account.take(samples, key, f"{posterior}, {centre.text}")
    certificate = with_others(setting.certificate(risk, choice, confidence, score, details), samples, key)
    if output is not None:
        from flatminima.certification.record import save_around

        save_around(certificate, setting.minimum, centre, Path(output), source)
    return certificate


@dataclass(frozen=True)
class _Asked:
    """What is asked of the posterior and of its draws; the names are those of `certify_around`."""

    posterior: str
    scales: Scales
    etas: tuple[float, ...] | None
    draws: int
    batch_size: int
    p_min: float
    curvature: Curvature
    curvature_samples: int | None
    kappa: Relative | None
    rho: float
    box: float
    seed: int

    def check(self, minimum: Minimum) -> None:
        """Refuse what can be refused before anything is computed.

        Raises:
            UsageError: naming the argument, or what is no classifier's.
        """
        if type(minimum) is not Minimum:
            raise UsageError(
                f"got a {type(minimum).__name__}; a certificate needs a Minimum itself, whose forward pass and samples "
                "are no one else's"
            )
        n = len(minimum.samples)
        if n < FEWEST:
            raise UsageError(f"got {n} samples for the bound; the PAC-Bayes-kl bound needs at least {FEWEST}")
        with minimum.open(), torch.no_grad():
            for part in torch.arange(n).split(minimum.batch_size):
                targets = minimum.samples.take(part)[1]
                if int(part[0]) == 0:
                    output = minimum.forward(minimum.batch(part[:1]).inputs)
                class_labels(targets.to(output.device), output, minimum.loss, int(part[0]))
        if self.draws < 1 or self.batch_size < 1:
            raise UsageError(f"got draws={self.draws!r}, batch_size={self.batch_size!r}; at least one each is needed")
        if not 0 < self.p_min < 1:
            raise UsageError(f"got p_min={self.p_min!r}; expected a clamp in (0, 1), e.g. 1e-5")
        if not self.box > 0:
            raise UsageError(f"got box={self.box!r}; the prior's half-width must be positive, or inf")

    def shape(self, setting: _Setting) -> Family:
        """The family of posteriors at the minimum."""
        return family(
            self.posterior,
            setting.minimum,
            setting.distance,
            curvature=self.curvature,
            curvature_samples=self.curvature_samples,
            kappa=self.kappa,
            rho=self.rho,
            box=self.box,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, without the seed."""
        out: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("scales", "seed")}
        out |= {"scales": self.scales.values, "shares": self.scales.shares}
        out["kappa"] = None if self.kappa is None else vars(self.kappa)
        out["box"] = None if math.isinf(self.box) else self.box
        return out


@dataclass(frozen=True, eq=False)
class _Setting:
    """A minimum on the bound's samples and the prior of its certificate, with what was found out about them.

    Attributes:
        wrong: (n,) which of the bound's samples the network at the prior's centre errs on.
    """

    minimum: Minimum
    centre: Centre
    division: Division
    wrong: Tensor
    asked: _Asked

    @classmethod
    def of(cls, minimum: Minimum, samples: Samples, centre: Centre, division: Division, asked: _Asked) -> _Setting:
        """The minimum in the network that was made here, where one was, on samples that stay what was divided."""
        own = minimum.samples
        bound: Samples = Unchanging(samples, division.bound)
        if type(own) is TensorSamples:
            whole = len(division.bound) == len(own)
            bound = (
                TensorSamples(own.inputs, own.targets, own.flat_entries) if whole else subset(samples, division.bound)
            )
        again = centre.minimum_of(minimum, bound)
        return cls(again, centre, division, errors_at(again, centre.weights), asked)

    @property
    def weights(self) -> Tensor:
        """(W,) float64 of the minimum."""
        return self.minimum.parameters.flat(torch.float64).cpu()

    @property
    def distance(self) -> Tensor:
        """(W,) of the minimum from the prior's centre."""
        return self.weights - self.centre.weights

    @property
    def mark(self) -> str:
        """Hash of both."""
        both = torch.cat([self.weights, self.centre.weights])
        return hashlib.blake2b(both.numpy().tobytes(), digest_size=8).hexdigest()

    def risk(self, choice: _Choice) -> GibbsRisk:
        """Of the frozen posterior, by draws of its own: other ones for other weights, so that none are fitted to them.

        Raises:
            ModelError: a network that gives other answers than before, with the same weights.
        """
        asked, seed = self.asked, mix(self.asked.seed, 1 + int(self.mark, 16) % 2**48)
        many = {"draws": asked.draws, "batch_size": asked.batch_size}
        risk = risk_of(self.minimum, choice.posterior, p_min=asked.p_min, seed=seed, **many)
        refuse_changed(self.wrong, errors_at(self.minimum, self.centre.weights))
        return risk

    def key(self, shape: Family, choice: _Choice, risk: GibbsRisk, prior_seed: int) -> str:
        """Hash of what determines the certificate."""
        asked, n, kl = self.asked, len(self.minimum.samples), choice.posterior.kl
        made = (asked.posterior, dict(shape.details), choice.eta, choice.posterior.scale, asked.draws,
                asked.batch_size, asked.seed, prior_seed)  # fmt: skip
        return run_key((made, self.centre.text, self.mark, risk.error, risk.cross_entropy, kl, n))

    @cached_property
    def findings(self) -> Findings:
        n, centre = len(self.minimum.samples), self.centre
        return Findings(
            prior=centre.condition(self.minimum, self.division, self.wrong),
            n=n,
            of=n + len(self.division.left_out),
            independent=independence(self.division, refused=False),
            fixed=self._fixed(),
            hyper=f"{len(self.asked.scales.values)} scales of the prior, paid for",
            p_min=self.asked.p_min,
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
            p_min=self.asked.p_min,
            left_out=len(self.division.left_out),
        )
        listed = enforce(conditions(self.findings, confidence), score)
        objective = f"{details['posterior']} around an existing minimum"
        return assemble(counted, confidence, listed, prior=self.centre.text, objective=objective, details=details)


def _choose(setting: _Setting, shape: Family, delta: float) -> _Choice:
    """The scale and eta with the least bound in a pilot; draws of their own, so that the final ones are fresh.

    Raises:
        UsageError: every posterior leaves the prior's support.
    """
    minimum, asked, grid = setting.minimum, setting.asked, setting.asked.scales
    n = len(minimum.samples)
    tried = [_Choice(shape.at(s, eta), eta, grid.penalty(s)) for s in grid.values for eta in asked.etas or shape.etas]
    finite = [(c.posterior.kl + c.penalty, i) for i, c in enumerate(tried) if c.posterior.kl < math.inf]
    if not finite:
        reach = float(tried[0].posterior.distance.abs().max())
        raise UsageError(
            f"KL is infinite: the minimum lies up to {reach:.3g} from the prior's centre in a weight, and its noise "
            f"leaves the prior's box of half-width {max(grid.values):g}; fix wider scales (or a wider box) in advance"
        )
    if len(finite) == 1:
        return tried[finite[0][1]]
    order = minimum.samples.order(asked.seed)
    positions = torch.arange(_PILOT_DRAWS * _PILOT_SAMPLES) % n
    blocks = list(order[positions].split(_PILOT_SAMPLES))
    best, least = tried[finite[0][1]], math.inf
    for kl, i in sorted(finite):
        if float(bounds.pac_bayes_kl(0.0, kl, n, delta)) >= least:
            break  # without a single error it would not be better
        drawn = mix(asked.seed, 0)
        pilot = by_batch(minimum, tried[i].posterior, blocks, p_min=asked.p_min, seed=drawn, task="pilot")
        bound = float(bounds.pac_bayes_kl(pilot.error, kl, n, delta))
        if bound < least:
            best, least = tried[i], bound
    return best


def _test_minimum(minimum: Minimum, test_data: Any) -> Minimum:
    others = as_samples(test_data)
    refuse_overlap(minimum.samples, others, "also in the test data", "give two different splits")
    return minimum.replace(model=copied(minimum.model).eval(), data=others)


def _on_test(test: Minimum, posterior: Posterior, p_min: float, seed: int) -> dict[str, float]:
    """What the stochastic network, and the mean network, do on samples that nothing was made from."""
    n = len(test.samples)
    risk = risk_of(test, posterior, draws=_TEST_DRAWS, batch_size=_PILOT_SAMPLES, p_min=p_min, seed=mix(seed, 2))
    mean = int(errors_at(test, test.parameters.flat()).sum())
    return {"n": n, "error": risk.error, "mean_network_error": mean / n}
