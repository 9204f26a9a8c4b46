"""Input rules of the bounds: one table, so that a symbol obeys the same rule and message everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatminima.errors import NumericalError, UsageError

FloatArray: TypeAlias = NDArray[np.float64]
# float for plain numbers, float64 array for arrays; numpy's own stubs say Any for such functions
Result: TypeAlias = Any


class _Rule(NamedTuple):
    """The values allowed, in code and in words, and a remedy for the others."""

    holds: Callable[[FloatArray], NDArray[np.bool_]]
    expected: str
    remedy: str


def _count(at_least: int, remedy: str) -> _Rule:
    def holds(x: FloatArray) -> NDArray[np.bool_]:
        return np.asarray((x >= at_least) & (x < np.inf) & (x == np.floor(x)))

    return _Rule(holds, f"a whole number of at least {at_least}", remedy)


def _unit(x: FloatArray) -> NDArray[np.bool_]:
    return np.asarray((x >= 0) & (x <= 1))


def _inside_unit(x: FloatArray) -> NDArray[np.bool_]:
    return np.asarray((x > 0) & (x < 1))


def _positive(x: FloatArray) -> NDArray[np.bool_]:
    return np.asarray((x > 0) & (x < np.inf))


def _not_negative(x: FloatArray) -> NDArray[np.bool_]:
    return np.asarray((x >= 0) & (x < np.inf))


def _not_negative_or_inf(x: FloatArray) -> NDArray[np.bool_]:
    return np.asarray(x >= 0)


_POSITIVE, _FINITE, _NOT_NEGATIVE = "a positive finite number", "a finite number", "a finite number >= 0"
_FIXED = "choose it before seeing the data"
_CLAMP = "bounded_cross_entropy maps the cross-entropy into it"

_PARAMETERS = 1e13  # of a network, at most: what jia_su_kl sums has 9 sqrt(W) terms, 230 MB of them there

SYMBOLS: dict[str, _Rule] = {
    "active_frobenius": _Rule(_positive, _POSITIVE, "drop dead layers, or leave it out"),
    "alpha": _Rule(_positive, _POSITIVE, "N17 uses 5e-4"),
    "beta": _Rule(_positive, _POSITIVE, _FIXED),
    "c": _Rule(_not_negative_or_inf, "a number >= 0, inf allowed", "pass a complexity such as (kl + ln(1/delta))/n"),
    "c2": _Rule(_positive, _POSITIVE, "measure it with `conditions`"),
    "c3": _Rule(_positive, _POSITIVE, "measure it with `conditions`"),
    "delta": _Rule(_inside_unit, "a number in (0, 1)", "pass a failure probability such as 0.05"),
    "delta_mc": _Rule(_inside_unit, "a number in (0, 1)", "pass a failure probability such as 0.01"),
    "distance": _Rule(np.isfinite, _FINITE, "pass w - w0"),
    "distance_squared": _Rule(_not_negative, _NOT_NEGATIVE, "pass ||w - w0||^2"),
    "draws": _count(1, "count independent draws of the weights"),
    "eigenvalues": _Rule(np.isfinite, _FINITE, "look for NaN in the Gram matrix"),
    "empirical": _Rule(_unit, "a number in [0, 1]", "use the 0-1 loss; " + _CLAMP),
    "eta": _Rule(_positive, _POSITIVE, _FIXED),
    "exponents": _count(0, "count doublings of the smallest prior scale"),
    "fourth_moment": _Rule(_not_negative, _NOT_NEGATIVE, "pass E||u||^4"),
    "frobenius": _Rule(_positive, _POSITIVE, "pass ||W_i||_F of every layer; drop dead layers"),
    "hessian_diag": _Rule(np.isfinite, _FINITE, "look for NaN or Inf in the curvature"),
    "k": _count(0, "count errors on the held-out samples"),
    "kappa": _Rule(_positive, _POSITIVE, "use kappa = gamma |w| + eps with eps > 0"),
    "kl": _Rule(_not_negative_or_inf, "a number >= 0, inf allowed", "compute the divergence in float64"),
    "lam": _Rule(lambda x: np.asarray((x > 0) & (x < 2)), "a number in (0, 2)", "optimal_lambda gives the best one"),
    "lipschitz": _Rule(_positive, _POSITIVE, "pass the Lipschitz constant of the loss"),
    "logdet": _Rule(np.isfinite, _FINITE, "a singular Fisher matrix has no log-determinant"),
    "loss": _Rule(_not_negative, _NOT_NEGATIVE, "pass the mean cross-entropy in nats"),
    "mu": _Rule(np.isfinite, _FINITE, "pass the means of the Gaussians"),
    "mu0": _Rule(np.isfinite, _FINITE, "pass the means of the Gaussians"),
    "n": _count(1, "pass the number of samples"),
    "n_params": _Rule(
        lambda x: np.asarray((x >= 1) & (x <= _PARAMETERS) & (x == np.floor(x))),
        f"a whole number from 1 to {_PARAMETERS:g}",
        "pass the number of parameters",
    ),
    "norm_squared": _Rule(_not_negative, _NOT_NEGATIVE, "pass ||w||^2"),
    "output_norm": _Rule(_not_negative, _NOT_NEGATIVE, "pass the mean of ||f_w(x)||"),
    "p": _Rule(_unit, "a number in [0, 1]", "pass a probability"),
    "p_min": _Rule(_inside_unit, "a number in (0, 1)", "1e-5 is usual"),
    "precision": _Rule(_positive, _POSITIVE, _FIXED),
    "prior_sigma": _Rule(_positive, _POSITIVE, _FIXED),
    "prior_variance": _Rule(_positive, _POSITIVE, _FIXED),
    "probability": _Rule(_unit, "a number in [0, 1]", "pass the probability given to the true class, not a logit"),
    "q": _Rule(_unit, "a number in [0, 1]", "pass a probability or an empirical risk"),
    "rho": _Rule(_not_negative, _NOT_NEGATIVE, "pass a Lipschitz constant of the Hessian"),
    "risk": _Rule(_unit, "a number in [0, 1]", "use the 0-1 loss; " + _CLAMP),
    "scale": _Rule(_positive, _POSITIVE, _FIXED),
    "second_moment": _Rule(_not_negative, _NOT_NEGATIVE, "pass E||u||^2"),
    "sharpness": _Rule(np.isfinite, _FINITE, "pass E L(w + u) - L(w)"),
    "sigma": _Rule(_positive, _POSITIVE, "noise scales are positive; drop frozen parameters"),
    "sigma0": _Rule(_positive, _POSITIVE, "noise scales are positive; drop frozen parameters"),
    "smoothness": _Rule(_positive, _POSITIVE, "measure it with `conditions`"),
    "tau": _Rule(_positive, _POSITIVE, _FIXED),
    "third_moment": _Rule(_not_negative, _NOT_NEGATIVE, "pass E||u||^3"),
    "top_eigenvalue": _Rule(np.isfinite, _FINITE, "pass the largest eigenvalue of the Hessian"),
    "volume": _Rule(_positive, _POSITIVE, "pass the volume of the neighbourhood M(w0)"),
    "weights": _Rule(np.isfinite, _FINITE, "look for NaN or Inf in the weights"),
    "widths": _count(1, "pass h_0, ..., h_d, the input dimension first"),
}
_AT_LEAST = {
    2: _count(2, "this bound divides by n - 1"),
    8: _count(8, "with fewer samples use hoeffding or holdout_binomial"),
}


def check(name: str, value: ArrayLike, rule: _Rule) -> FloatArray:
    """`value` as float64, or a UsageError about its first entry that breaks `rule`."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"got {name} = {str(value)[:40]!r}; expected numbers: pass a float or an array") from None
    good = rule.holds(array)
    if not np.all(good):
        where = tuple(int(i) for i in np.argwhere(~good)[0])
        label = name + (f"[{', '.join(map(str, where))}]" if where else "")
        raise UsageError(f"got {label} = {float(array[where])!r}; expected {rule.expected}: {rule.remedy}")
    return array


def checked(n_min: int = 1, like: FloatArray | None = None, **values: ArrayLike) -> list[FloatArray]:
    """Each value as float64 by the rule of its name; together, and with the leading axes of `like`, they broadcast."""
    arrays = []
    for name, value in values.items():
        rule = _AT_LEAST[n_min] if name == "n" and n_min > 1 else SYMBOLS[name]
        arrays.append(check(name, value, rule))
    named = dict(zip(values, arrays, strict=True))
    together(named if like is None else named | {"parameters without their last axis": like[..., 0]})
    return arrays


def vectors(**values: ArrayLike) -> list[FloatArray]:
    """Like `checked`, broadcast to one shape whose last axis runs over the parameters."""
    arrays = checked(1, None, **values)
    shape = np.broadcast_shapes((1,), *(a.shape for a in arrays))
    if shape[-1] == 0:
        raise UsageError(f"got 0 parameters in {', '.join(values)}; expected at least 1: pass one entry a parameter")
    return [np.broadcast_to(a, shape) for a in arrays]


def together(named: dict[str, FloatArray]) -> None:
    """A UsageError that lists the arrays' shapes if they do not broadcast."""
    try:
        np.broadcast_shapes(*(a.shape for a in named.values()))
    except ValueError:
        shapes = ", ".join(f"{name} {a.shape}" for name, a in named.items())
        raise UsageError(f"got shapes {shapes}; expected shapes that broadcast: make them equal") from None


def choice(name: str, value: str, known: tuple[str, ...]) -> str:
    """`value` if known, else a UsageError."""
    if value not in known:
        raise UsageError(f"got {name} = {value!r}; expected one of {', '.join(known)}: pick one of them")
    return value


def plain(value: FloatArray | np.floating[Any]) -> Result:
    """A Python float for a number, the array otherwise.

    Raises:
        NumericalError: the arguments, finite each, lead to no number: a NaN compares as neither too large nor small.
    """
    if np.isnan(value).any():
        raise NumericalError("got arguments whose squares or ratios float64 does not hold; rescale them, or the model")
    return float(value) if np.ndim(value) == 0 else np.asarray(value, dtype=np.float64)
