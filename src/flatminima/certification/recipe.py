"""The making of a certificate's prior and posterior, as one value that JSON can hold, and the objectives it may name.

PAC-Bayes bounds as training objectives, differentiable in the empirical risk and in KL(Q || P), with
B = (KL + ln(2 sqrt(n) / delta)) / n:

    classic    risk + sqrt(B / 2)
    quadratic  (sqrt(risk + B / 2) + sqrt(B / 2))^2
    lambda     risk / (1 - lam / 2) + B / (lam (1 - lam / 2)), lam at its optimum, held fixed for the gradient
    kl         kl^-1(risk, B), by implicit differentiation

Any of them may choose Q; what is reported afterwards is always the kl bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from flatminima import bounds
from flatminima.catalog.choices import KEPT_PRECISIONS, PRIOR_AUGMENTATIONS, RANDOM_LAYERS
from flatminima.certification.arguments import of_kind, real, whole
from flatminima.errors import UnknownName, UsageError
from flatminima.training import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """The making of prior and posterior; where it is fixed before the samples are seen, it can only make a bound loose.

    Args:
        prior_fraction: share of the samples in [0, 1) that train the prior; 0 for a prior from its seed alone.
        prior: how the prior's mean is trained.
        augment: of the prior's samples: "none", "shift1" or "shift2" pixels. The bound's samples never are.
        layers: "all" parameters are random, or the "head": the last linear layer, in its principal basis.
        sigma: standard deviation of the prior, fixed here, before the samples are seen.
        fit_sigma: choose the prior's sigma with the posterior instead, on a grid, at ln(pi^2 j^2 / 6) nats; `sigma`
            is then where the posterior starts.
        objective: of the posterior: "kl", "quadratic", "lambda" or "classic".
        epochs, lr, batch_size: of the posterior; 0 epochs certify the prior itself, KL = 0.
        nats: of cross-entropy that count as one error in the objective; None for ln(1 / p_min). Fewer weigh the errors
            more; the kl objective has no slope where the surrogate exceeds 1, the others have.
        passes: over the bound's samples to estimate the Gibbs risk, each with fresh draws.
        p_min: clamp of the cross-entropy.
        keep: precision that P and Q are rounded to before anything is counted, and kept in: "float32", or "float16" for
            files of half the size.
    """

    prior_fraction: float = 0.5
    prior: TrainConfig = field(
        default_factory=lambda: TrainConfig(lr=0.05, epochs=10, schedule="cosine", nesterov=True, weight_decay=5e-4)
    )
    augment: str = "none"
    layers: str = "all"
    sigma: float = 0.01
    fit_sigma: bool = False
    objective: str = "kl"
    epochs: int = 1
    lr: float = 0.01
    batch_size: int = 250
    nats: float | None = None
    passes: int = 10
    p_min: float = 1e-5
    keep: str = "float32"

    def __post_init__(self) -> None:
        for name in ("prior_fraction", "sigma", "lr", "p_min"):
            object.__setattr__(self, name, real(name, getattr(self, name), f"{getattr(type(self), name):g}"))
        if self.nats is not None:
            object.__setattr__(self, "nats", real("nats", self.nats, "1.4"))
        for name, least in (("epochs", 0), ("batch_size", 1), ("passes", 1)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        of_kind("prior", self.prior, TrainConfig)
        for name in ("epochs", "batch_size"):
            whole(f"prior.{name}", getattr(self.prior, name), 1)
        objective(self.objective)
        for kind, value, known in (
            ("augment", self.augment, PRIOR_AUGMENTATIONS), ("layers", self.layers, RANDOM_LAYERS),
            ("keep", self.keep, KEPT_PRECISIONS),
        ):  # fmt: skip
            if value not in known:
                raise UnknownName(kind, value, known)
        if not 0 <= self.prior_fraction < 1:
            raise UsageError(f"got prior_fraction={self.prior_fraction!r}; expected a share in [0, 1)")
        if self.prior_fraction == 0 and self.augment != "none":
            raise UsageError(
                f"got augment={self.augment!r} without a prior's part: the bound's samples are never augmented, "
                "or they are not independent; use augment='none' or a prior_fraction above 0"
            )
        if not 0 < self.p_min < 1:
            raise UsageError(
                f"got p_min={self.p_min!r}: the cross-entropy is unbounded without a clamp in (0, 1), and only "
                "a loss in [0, 1] can be certified"
            )
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(f"got sigma={self.sigma!r}; the prior's standard deviation must be positive")

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`."""
        return cls(**values | {"prior": TrainConfig(**values["prior"])})


_Objective = Callable[[Tensor, Tensor, int, float], Tensor]

_NEARLY_ONE = 1 - 1e-6  # a surrogate may exceed 1, where the kl bound has no slope


class _KLInverse(torch.autograd.Function):
    """kl^-1(q, c) and its derivatives by the implicit function theorem (Reeb et al. 2018)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, c: Tensor) -> Tensor:
        ctx.slopes = bounds.kl_inverse_derivatives(float(q), float(c))
        return q.new_tensor(bounds.kl_inverse(float(q), float(c)))

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor]:
        by_q, by_c = ctx.slopes
        return grad[0] * by_q, grad[0] * by_c


def classic(risk: Tensor, kl: Tensor, n: int, delta: float) -> Tensor:
    """McAllester's bound, risk + sqrt(B / 2)."""
    return risk + (_complexity(kl, n, delta) / 2).sqrt()


def quadratic_objective(risk: Tensor, kl: Tensor, n: int, delta: float) -> Tensor:
    """Rivasplata et al. (2019): (sqrt(risk + B / 2) + sqrt(B / 2))^2."""
    half = _complexity(kl, n, delta) / 2
    return ((risk + half).sqrt() + half.sqrt()).square()


def lambda_(risk: Tensor, kl: Tensor, n: int, delta: float) -> Tensor:
    """Thiemann et al. (2017) at lam = 2 / (sqrt(2 risk / B + 1) + 1), which the gradient does not see."""
    b = _complexity(kl, n, delta)
    lam = (2 / ((2 * risk / b + 1).sqrt() + 1)).detach()
    return (risk + b / lam) / (1 - lam / 2)


def _kl_inverse(risk: Tensor, kl: Tensor, n: int, delta: float) -> Tensor:
    """Seeger's bound, kl^-1(risk, B)."""
    out: Tensor = _KLInverse.apply(risk.clamp(1e-12, _NEARLY_ONE), _complexity(kl, n, delta))  # type: ignore[no-untyped-call]
    return out


def _complexity(kl: Tensor, n: int, delta: float) -> Tensor:
    return (kl.clamp_min(0) + math.log(2 * math.sqrt(n) / delta)) / n  # rounding may leave KL a little below 0


OBJECTIVES: Mapping[str, _Objective] = MappingProxyType(
    {"classic": classic, "kl": _kl_inverse, "lambda": lambda_, "quadratic": quadratic_objective}
)


def objective(name: str) -> _Objective:
    """The objective called `name`: (risk, kl, n, delta) -> scalar.

    Args of an objective: risk >= 0 and kl >= 0 in nats, scalar tensors; n samples; delta in (0, 1).

    Raises:
        UnknownName: suggests the nearest.

    Source: Perez-Ortiz et al. (2021), sec. 5; docs/reference/formulas.md, pac-bayes-kl.

    Examples:
        >>> round(float(objective("quadratic")(torch.tensor(0.02), torch.tensor(500.0), 30_000, 0.025)), 4)
        0.0681
    """
    if name not in OBJECTIVES:
        raise UnknownName("objective", name, OBJECTIVES)
    return OBJECTIVES[name]
