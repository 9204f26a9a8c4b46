"""Optimizers and the three methods by name, with options checked against what each takes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from flatminima.catalog import OPTIMIZERS
from flatminima.catalog.choices import METHODS
from flatminima.errors import ModelError, UnknownName, UsageError
from flatminima.optim import FisherTrace, PertOPT
from flatminima.training.objective import Called
from flatminima.training.steps import BackwardFunction

_GIVEN = ("self", "base", "model", "steps_per_epoch", "closure")  # not the user's to give


@dataclass(frozen=True)
class Method:
    """Parts of a method that a training loop needs.

    Args:
        optimizer: to step with. backward: in place of the loss's own, or None.
        modules: whose state belongs to a checkpoint, beside the optimizer's.
        diagnostics: numbers worth a look after each epoch.
    """

    optimizer: torch.optim.Optimizer
    backward: BackwardFunction | None = None
    modules: dict[str, Any] = field(default_factory=dict)
    diagnostics: Callable[[], dict[str, float]] = dict


def base_optimizer(
    name: str, parameters: Iterable[Tensor], lr: float, options: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """A torch optimizer by name.

    Args:
        name: a class of `torch.optim` in any case ("adamw"), or an import string, package.module:Class.
        options: its keyword arguments.

    Raises:
        UnknownName, UsageError: no such optimizer, or options that it does not take.

    Examples:
        >>> base_optimizer("sgd", [torch.nn.Parameter(torch.ones(2))], 0.1, {"momentum": 0.9}).defaults["momentum"]
        0.9
    """
    kind = _imported(name) if ":" in name else _known().get(name.lower())
    if kind is None:
        raise UnknownName("optimizer", name, _known())
    options = dict(options or {})
    _check_options(kind, options, f"optimizer {name}")
    try:
        optimizer: torch.optim.Optimizer = kind(list(parameters), lr=lr, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"optimizer {name} refused its options: {error}") from None
    return optimizer


def method(
    name: str,
    model: nn.Module,
    base: torch.optim.Optimizer,
    options: Mapping[str, Any] | None = None,
    *,
    steps_per_epoch: int,
    seed: int = 0,
) -> Method:
    """ "plain", or one of PertOPT, SAM and FisherTrace around a base optimizer.

    Args:
        options: keyword arguments of the class, but for those that are given here.

    Raises:
        UnknownName, UsageError: no such method, or options that it does not take.
    """
    if name not in METHODS:
        raise UnknownName("method", name, METHODS)
    options = dict(options or {})
    if name == "plain":
        if options:
            raise UsageError(f"got options {', '.join(options)} for the method 'plain', which has none")
        return Method(base)
    row = OPTIMIZERS[name]
    kind = row.load()
    _check_options(kind, options, f"method {name}")
    takes = inspect.signature(kind).parameters
    if "seed" in takes:
        options.setdefault("seed", seed)
    if row.kind == "backward":
        stand_in = kind(Called(model), **options)
        return Method(base, stand_in.backward, {name: stand_in}, lambda: _diagnostics(stand_in))
    context = {"model": model, "steps_per_epoch": steps_per_epoch}
    wrapper = kind(base, **{key: value for key, value in context.items() if key in takes}, **options)
    return Method(wrapper, diagnostics=lambda: _diagnostics(wrapper))


def set_dropout(model: nn.Module, rate: float) -> None:
    """Give every dropout layer of the model this rate, in [0, 1).

    Raises:
        UsageError: a rate out of range. ModelError: the model has no dropout layer.
    """
    if not 0 <= rate < 1:
        raise UsageError(f"got dropout={rate}; a rate lies in [0, 1)")
    layers = [module for module in model.modules() if isinstance(module, _DropoutNd)]
    if not layers:
        raise ModelError(f"{type(model).__name__} has no dropout layer whose rate could be set: make it with one")
    for layer in layers:
        layer.p = rate


def _diagnostics(used: Any) -> dict[str, float]:
    """Numbers of the optimizers that have any."""
    if isinstance(used, PertOPT):
        found = used.diagnostics()
        return {
            "kappa_bound": found.kappa_bound,
            "curvature_bound": found.curvature_bound,
            "gated": found.gated,
            "relative_noise": found.relative_noise,
        }
    if isinstance(used, FisherTrace) and used.last is not None:
        return {"trace": used.last.trace, "penalty": used.beta * used.last.value}
    return {}


def _known() -> dict[str, Any]:
    found = {n: c for n, c in vars(torch.optim).items() if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer)}
    return {n.lower(): c for n, c in found.items() if c is not torch.optim.Optimizer}


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"cannot import the optimizer {target!r}: {error}") from None
    if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)):
        raise UsageError(f"{target} is no subclass of torch.optim.Optimizer")
    return kind


def _check_options(kind: Any, options: Mapping[str, Any], what: str) -> None:
    parameters = inspect.signature(kind).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    takes = [p.name for p in parameters if p.name not in (*_GIVEN, "params", "lr")]
    for option in options:
        if option not in takes:
            raise UnknownName(f"option of {what}", option, takes, f"it takes {', '.join(takes)}")
