"""PAC-Bayes bounds as training objectives, differentiable in the empirical risk and in KL(Q || P).

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
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from flatminima import bounds
from flatminima.errors import UnknownName

Objective = Callable[[Tensor, Tensor, int, float], Tensor]

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


def quadratic(risk: Tensor, kl: Tensor, n: int, delta: float) -> Tensor:
    """Rivasplata et al. (2019): (sqrt(risk + B / 2) + sqrt(B / 2))^2."""
    half = _complexity(kl, n, delta) / 2
    return ((risk + half).sqrt() + half.sqrt()).square()


def lambda_(risk: Tensor, kl: Tensor, n: int, delta: float) -> Tensor:
    """Thiemann et al. (2017) at lam = 2 / (sqrt(2 risk / B + 1) + 1), which the gradient does not see."""
    b = _complexity(kl, n, delta)
    lam = (2 / ((2 * risk / b + 1).sqrt() + 1)).detach()
    return (risk + b / lam) / (1 - lam / 2)


def kl_inverse(risk: Tensor, kl: Tensor, n: int, delta: float) -> Tensor:
    """Seeger's bound, kl^-1(risk, B)."""
    out: Tensor = _KLInverse.apply(risk.clamp(1e-12, _NEARLY_ONE), _complexity(kl, n, delta))  # type: ignore[no-untyped-call]
    return out


def _complexity(kl: Tensor, n: int, delta: float) -> Tensor:
    return (kl.clamp_min(0) + math.log(2 * math.sqrt(n) / delta)) / n  # rounding may leave KL a little below 0


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {"classic": classic, "kl": kl_inverse, "lambda": lambda_, "quadratic": quadratic}
)


def objective(name: str) -> Objective:
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
