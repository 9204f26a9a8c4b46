"""The minimum, the prior and the options of `certify_around`, and the posterior that they choose."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flatminima import bounds
from flatminima.certification.arguments import of_kind, real, whole
from flatminima.certification.certificate import Certificate
from flatminima.certification.conditions import (
    Condition,
    Findings,
    conditions_of,
    enforce,
    fixed_condition,
    independence,
)
from flatminima.certification.division.reading import Unchanging
from flatminima.certification.division.repeats import refuse_overlap
from flatminima.certification.division.split import FEWEST, Division
from flatminima.certification.gibbs.outputs import class_labels
from flatminima.certification.gibbs.posteriors import CurvatureKind, Family, Posterior, family
from flatminima.certification.gibbs.risk import GibbsRisk, by_batch, constant_errors, errors_at, risk_of
from flatminima.certification.pipeline import Confidence, Counted, assemble
from flatminima.certification.prior import Centre, Scales, subset_at
from flatminima.certification.provenance import refuse_changed
from flatminima.core.minimum import Minimum
from flatminima.core.parameters import copied
from flatminima.core.perturbation import Relative, mix
from flatminima.core.samples import Samples, TensorSamples, as_samples
from flatminima.errors import UsageError
from flatminima.io import run_key

_PILOT_DRAWS, _PILOT_SAMPLES = 32, 32  # of each posterior that is tried, before one is frozen
_TEST_DRAWS = 500


def refuse_others_minimum(minimum: Any) -> None:
    """Refuse what is no Minimum, or one of a subclass.

    Raises:
        UsageError: naming its class.
    """
    if type(minimum) is not Minimum:
        raise UsageError(
            f"got a {type(minimum).__name__}; a certificate needs a Minimum itself, whose forward pass and samples "
            "are no one else's"
        )


@dataclass(frozen=True)
class PosteriorChoice:
    """A posterior that was picked, and the scale of the prior that it is against."""

    posterior: Posterior
    eta: float
    penalty: float


@dataclass(frozen=True)
class Asked:
    """Options of the posterior and of its draws; the names are those of `certify_around`."""

    posterior: str
    scales: Scales
    etas: tuple[float, ...] | None
    draws: int
    batch_size: int
    p_min: float
    curvature: CurvatureKind
    curvature_samples: int | None
    kappa: Relative | None
    rho: float
    box: float
    seed: int

    def __post_init__(self) -> None:
        counts = ("draws", "batch_size", *(() if self.curvature_samples is None else ("curvature_samples",)))
        for name in counts:
            object.__setattr__(self, name, whole(name, getattr(self, name), 1))
        for name, example in (("p_min", "1e-5"), ("rho", "0.0"), ("box", "1.0")):
            object.__setattr__(self, name, real(name, getattr(self, name), example))
        if self.kappa is not None:
            of_kind("kappa", self.kappa, Relative)

    def check(self, minimum: Minimum) -> None:
        """Refuse what can be refused before anything is computed.

        Raises:
            UsageError: naming the argument, or what is no classifier's.
        """
        n = len(minimum.samples)
        if n < FEWEST:
            raise UsageError(f"got {n} samples for the bound; the PAC-Bayes-kl bound needs at least {FEWEST}")
        with minimum.open(), torch.no_grad():
            for part in torch.arange(n).split(minimum.batch_size):
                targets = minimum.samples.take(part)[1]
                if int(part[0]) == 0:
                    output = minimum.forward(minimum.batch(part[:1]).inputs)
                class_labels(targets.to(output.device), output, minimum.loss, int(part[0]))
        if not 0 < self.p_min < 1:
            raise UsageError(f"got p_min={self.p_min!r}; expected a clamp in (0, 1), e.g. 1e-5")
        if not self.box > 0:
            raise UsageError(f"got box={self.box!r}; the prior's half-width must be positive, or inf")

    def shape(self, setting: AroundSetting) -> Family:
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
class AroundSetting:
    """A minimum on the bound's samples and the prior of its certificate, with what was found out about them.

    Attributes:
        wrong: (n,) which of the bound's samples the network at the prior's centre errs on.
    """

    minimum: Minimum
    centre: Centre
    division: Division
    wrong: Tensor
    asked: Asked

    @classmethod
    def of(cls, minimum: Minimum, samples: Samples, centre: Centre, division: Division, asked: Asked) -> AroundSetting:
        """The minimum in the network that was made here, where one was, on samples that stay what was divided."""
        own = minimum.samples
        bound: Samples = Unchanging(samples, division.bound)
        if type(own) is TensorSamples:
            whole = len(division.bound) == len(own)
            bound = (
                TensorSamples(own.inputs, own.targets, own.flat_entries)
                if whole
                else subset_at(samples, division.bound)
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

    def risk(self, choice: PosteriorChoice) -> GibbsRisk:
        """Gibbs risk of the frozen posterior, by its own draws: other weights get others, to which none are fitted.

        Raises:
            ModelError: a network that gives other answers than before, with the same weights.
        """
        asked, seed = self.asked, mix(self.asked.seed, 1 + int(self.mark, 16) % 2**48)
        many = {"draws": asked.draws, "batch_size": asked.batch_size}
        risk = risk_of(self.minimum, choice.posterior, p_min=asked.p_min, seed=seed, **many)
        refuse_changed(self.wrong, errors_at(self.minimum, self.centre.weights))
        return risk

    def key(self, shape: Family, choice: PosteriorChoice, risk: GibbsRisk, prior_seed: int) -> str:
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
        choice: PosteriorChoice,
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
        listed = enforce(conditions_of(self.findings, confidence), score)
        objective = f"{details['posterior']} around an existing minimum"
        return assemble(counted, confidence, listed, prior=self.centre.text, objective=objective, details=details)


def choose_posterior(setting: AroundSetting, shape: Family, delta: float) -> PosteriorChoice:
    """The scale and eta with the least bound in a pilot; draws of their own, so that the final ones are fresh.

    Raises:
        UsageError: every posterior leaves the prior's support.
    """
    minimum, asked, grid = setting.minimum, setting.asked, setting.asked.scales
    n = len(minimum.samples)
    tried = [
        PosteriorChoice(shape.at(s, eta), eta, grid.penalty(s)) for s in grid.values for eta in asked.etas or shape.etas
    ]
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


def test_minimum(minimum: Minimum, test_data: Any) -> Minimum:
    others = as_samples(test_data)
    refuse_overlap(minimum.samples, others, "also in the test data", "give two different splits")
    return minimum.replace(model=copied(minimum.model).eval(), data=others)


def on_test(test: Minimum, posterior: Posterior, p_min: float, seed: int) -> dict[str, float]:
    """Results of the stochastic and the mean network on samples that nothing was made from."""
    n = len(test.samples)
    risk = risk_of(test, posterior, draws=_TEST_DRAWS, batch_size=_PILOT_SAMPLES, p_min=p_min, seed=mix(seed, 2))
    mean = int(errors_at(test, test.parameters.flat()).sum())
    return {"n": n, "error": risk.error, "mean_network_error": mean / n}
