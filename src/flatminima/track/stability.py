"""Thresholds at which an optimizer becomes unstable: its preconditioner, and the curvature that its rates bear.

A step w <- w - lr P^-1 m is stable along an eigenvector of P^-1 H up to c / lr, where c is 2 for gradient descent,
2 + 2 beta for momentum, (2 + 2 beta) / (1 + 2 beta) for Nesterov's, and (2 + 2 beta1) / (1 - beta1), 38 at the
defaults, for Adam, whose m is an average. Groups with rates of their own scale P. Sources: Cohen et al., arXiv
2103.00065 and 2207.14484; for SAM Long and Bartlett, arXiv 2309.12488.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.adagrad import Adagrad

from flatminima.errors import Undefined
from flatminima.optim import SAM
from flatminima.optim.wrapper import Wrapper

Group = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """Action of one group of an optimizer on its weights."""

    rate: float
    bears: float  # c of the module's docstring
    decay: float  # L2 penalty that is part of its gradient


@dataclass(frozen=True)
class Stability:
    """The matrix D H D whose largest eigenvalue says whether the optimizer's next steps are stable.

    Attributes:
        threshold: c / lr of the group whose lr / c is largest, in whose units eigenvalues are.
        thresholds: c / lr of each group of the optimizer, in its order; None: a rate of 0.
        scale (W,): D, positive; None: 1 everywhere, the Hessian itself.
        decay (W,): L2 penalties that the optimizer adds to the Hessian's diagonal; None: none.
    """

    threshold: float
    thresholds: tuple[float | None, ...]
    scale: Tensor | None
    decay: Tensor | None

    @property
    def plain(self) -> bool:
        """Whether D H D is the Hessian itself."""
        return self.scale is None and self.decay is None

    def product(self, hessian: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """v -> D (H + decay) D v."""

        def apply(vector: Tensor) -> Tensor:
            inner = vector if self.scale is None else vector * self.scale.to(vector)
            after = hessian(inner)
            if self.decay is not None:
                after = after + self.decay.to(after) * inner.to(after)
            return after if self.scale is None else after * self.scale.to(after)

        return apply


def base_of(optimizer: Any) -> Any:
    """The torch optimizer inside accelerate's, Lightning's and our own wrappers."""
    while True:
        inner = optimizer.base if isinstance(optimizer, Wrapper) else None
        for name in ("optimizer", "_optimizer"):
            inner = inner if inner is not None else getattr(optimizer, name, None)
        if not isinstance(inner, Optimizer) or inner is optimizer:
            return optimizer
        optimizer = inner


def own_of(optimizer: Any) -> Wrapper | None:
    """PertOPT or SAM inside other wrappers; None: there is none."""
    while optimizer is not None and not isinstance(optimizer, Wrapper):
        optimizer = getattr(optimizer, "optimizer", getattr(optimizer, "_optimizer", None))
    return optimizer


def stability(optimizer: Any, parameters: Sequence[nn.Parameter]) -> Stability:
    """Thresholds and preconditioner of an optimizer as it is now.

    Args:
        optimizer: torch's SGD, Adam, AdamW, RMSprop or Adagrad, or a wrapper of one. parameters: in the order of the
            flat vector; what the optimizer does not hold does not move.

    Raises:
        Undefined: another optimizer, a rate of 0 everywhere, no state yet, none of these parameters.
    """
    base = base_of(optimizer)
    rule = _rule(base)
    groups = [rule(group) for group in base.param_groups]
    moving = [g for g in groups if g.rate > 0]
    if not moving:
        raise Undefined("the learning rate is 0: nothing can become unstable", "rate_zero")
    reach = max(g.rate / g.bears for g in moving)
    owner = {id(p): i for i, group in enumerate(base.param_groups) for p in group["params"]}
    if not any(id(p) in owner for p in parameters):
        raise Undefined("the optimizer holds none of the model's parameters: was one of the two replaced?", "replaced")
    thresholds = tuple(g.bears / g.rate if g.rate > 0 else None for g in groups)
    if type(base) is SGD and all(id(p) in owner for p in parameters):
        own = {owner[id(p)] for p in parameters}
        if all(groups[i].rate / groups[i].bears == reach and not groups[i].decay for i in own):
            return Stability(1.0 / reach, thresholds, None, None)
    scales, decays = [], []
    for p in parameters:
        at = groups[owner[id(p)]] if id(p) in owner else Limits(0.0, 2.0, 0.0)
        factor = at.rate / at.bears / reach
        shape = _preconditioner(base, base.param_groups[owner[id(p)]], p) if id(p) in owner else None
        full = torch.full((p.numel(),), factor, dtype=torch.float32, device=p.device)
        scales.append(full if shape is None else full / shape.reshape(-1).float())
        decays.append(torch.full_like(full, at.decay))
    squares, decay = torch.cat(scales), torch.cat(decays)
    same = bool((squares == 1).all())
    return Stability(1.0 / reach, thresholds, None if same else squares.sqrt(), decay if bool(decay.any()) else None)


def sam_threshold(optimizer: Any, gradient_norm: float) -> float | None:
    """The curvature that SAM on gradient descent bears, below 2 / lr; None: another optimizer, or several groups.

    A step along an eigenvector sees the factor lambda (1 + rho lambda / ||g||), which must stay below 2 / lr.
    """
    own = own_of(optimizer)
    if not isinstance(own, SAM) or len(own.param_groups) != 1 or not gradient_norm > 0:
        return None
    group = own.param_groups[0]
    plain = type(own.base) is SGD and not group["momentum"] and not group["sam_adaptive"]
    rho, rate = float(group["sam_rho"]), float(group["lr"] or 0.0)  # Adafactor may have none
    if not plain or not rho > 0 or not rate > 0:
        return None
    x = gradient_norm / (2 * rho)
    return x * (math.sqrt(1 + 4 / (rate * x)) - 1)


def _rule(base: Any) -> Callable[[Group], Limits]:
    for kinds, rule in _RULES:
        if type(base) in kinds:
            return rule
    raise Undefined(
        f"no threshold of stability is known for {type(base).__name__}: SGD, Adam, AdamW, RMSprop, Adagrad have one",
        "optimizer_unknown",
    )


def _refuse_maximize(group: Group) -> None:
    if group.get("maximize"):
        raise Undefined(
            "the optimizer maximizes: the loss's largest eigenvalue is not what bounds its steps", "maximize"
        )


def _of_sgd(group: Group) -> Limits:
    _refuse_maximize(group)
    rate, beta = float(group["lr"]) * (1.0 - float(group["dampening"])), float(group["momentum"])
    if not beta:
        rate = float(group["lr"])
    bears = 2 + 2 * beta
    if group["nesterov"]:
        bears /= 1 + 2 * beta
    return Limits(rate, bears, float(group["weight_decay"]))


def _of_adam(group: Group) -> Limits:
    _refuse_maximize(group)
    beta = float(group["betas"][0])
    decay = 0.0 if group.get("decoupled_weight_decay") else float(group["weight_decay"])
    return Limits(float(group["lr"]), (2 + 2 * beta) / (1 - beta), decay)


def _of_adamw(group: Group) -> Limits:
    found = _of_adam(group)
    return Limits(found.rate, found.bears, 0.0)


def _of_rmsprop(group: Group) -> Limits:
    _refuse_maximize(group)
    return Limits(float(group["lr"]), 2 + 2 * float(group["momentum"]), float(group["weight_decay"]))


def _of_adagrad(group: Group) -> Limits:
    _refuse_maximize(group)
    return Limits(float(group["lr"]), 2.0, float(group["weight_decay"]))


_RULES: tuple[tuple[tuple[type, ...], Callable[[Group], Limits]], ...] = (
    ((SGD,), _of_sgd),
    ((Adam,), _of_adam),
    ((AdamW,), _of_adamw),
    ((RMSprop,), _of_rmsprop),
    ((Adagrad,), _of_adagrad),
)


def _preconditioner(base: Any, group: Group, p: Tensor) -> Any:
    """diag P in the parameter's shape; None: 1."""
    if type(base) is SGD:
        return None
    state = base.state.get(p, {})
    if not state:
        raise Undefined("the optimizer has no state yet: its preconditioner begins with the first step", "no_state")
    step = float(state["step"])
    if isinstance(base, Adam):
        beta1, beta2 = (float(b) for b in group["betas"])
        moment: Tensor = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        return ((moment / (1 - beta2**step)).sqrt() + group["eps"]) * (1 - beta1**step)
    if isinstance(base, RMSprop):
        moment = state["square_avg"]
        if group["centered"]:
            moment = moment - state["grad_avg"].square()
        return moment.clamp(min=0).sqrt() + group["eps"]
    return (state["sum"].sqrt() + group["eps"]) * (1 + (step - 1) * float(group["lr_decay"]))  # Adagrad
