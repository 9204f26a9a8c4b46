"""Activations in the algebra of paths: piecewise linear, with no slope beyond their largest.

The definition: an activation of slopes at most L is L times one that is 1-Lipschitz, plus its value at 0. Paths go
through with the factor L; the value at 0 is an edge from a constant 1. So |output| is at most the sum over paths for
inputs of at most 1. ReLU, leaky ReLU, ReLU6, hard tanh, soft shrinkage have L = 1 and are 0 at 0: nothing changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatminima.errors import Undefined
from flatminima.statistics.network_graph import Node
from flatminima.statistics.path_algebra import PathAlgebra, PathRule
from flatminima.statistics.path_scaling import Args, Keywords, multiplied


def _same(a: PathAlgebra, x: Tensor) -> Tensor:
    """Slopes of at most 1 and 0 at 0; no longer the bare result of a linear map."""
    return a.know(x.clone(), Node("same", (a.node(x),)))  # type: ignore[no-any-return]


def _offset(a: PathAlgebra, x: Tensor, value: Tensor) -> Tensor:
    """Slopes of at most 1, and a value at 0."""
    return a.know(x + a.power(value), Node("same", (a.node(x),)))  # type: ignore[no-any-return]


def _of_one(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    return _same(a, args[0] if args else kw["input"])


def _nothing(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    """Dropout in eval mode."""
    subject: Tensor = args[0] if args else kw["input"]
    return subject


def _steepest(a: PathAlgebra, x: Tensor, slope: Tensor) -> Tensor:
    """max(1, |slope|) of leaky activations, () or one a channel."""
    steep = slope.detach().double().abs().clamp_min(1.0)
    if bool((steep == 1).all()):
        return _same(a, x)
    if steep.numel() > 1:
        most = float(steep.max())
        shape = [1] * x.dim()
        shape[1] = -1
        a.factors.append(("prelu", most))
        out = x * a.power(steep).view(shape)
        return a.know(out, Node("same", (a.node(x),), None, most, most))  # type: ignore[no-any-return]
    return multiplied(a, "leaky_relu", _same(a, x), float(steep))


def _leaky_relu(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    def leaky(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
        return _steepest(a, input, torch.tensor(float(negative_slope), dtype=torch.float64))

    return leaky(*args, **kw)


def _rrelu(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    def rrelu(
        input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *_: Any, **__: Any
    ) -> Any:
        if training:
            raise Undefined("'rrelu' in training mode draws its slopes")
        return _steepest(a, input, torch.tensor((lower + upper) / 2, dtype=torch.float64))

    return rrelu(*args, **kw)  # type: ignore[no-any-return]


def _prelu(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    x, slope = [*args, *(kw[k] for k in ("input", "weight") if k in kw)]
    if a.is_known(slope):
        raise Undefined("'prelu' with slopes made from the input is not an operation of a ReLU network")
    a.use(slope)
    return _steepest(a, x, slope)


def _clamp(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    """Between constants, which may be tensors; hard tanh's are -1 and 1."""
    x, *rest = [*args, *(kw[k] for k in ("input",) if k in kw)]
    given = dict(zip(("max",) if name == "clamp_max" else ("min", "max"), rest, strict=False)) | kw
    if name == "relu6":
        given = {"min": 0.0, "max": 6.0}
    if name == "hardtanh":
        given = {
            "min": given.get("min_val", given.get("min", -1.0)),
            "max": given.get("max_val", given.get("max", 1.0)),
        }
    low, high = given.get("min"), given.get("max")
    if a.is_known(low) or a.is_known(high):
        raise Undefined(f"{name!r} between bounds made from the input is not an operation of a ReLU network")
    a.use(low)
    a.use(high)
    value = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    if low is not None:
        value = torch.maximum(value, torch.as_tensor(low).detach().to(value))
    if high is not None:
        value = torch.minimum(value, torch.as_tensor(high).detach().to(value))
    return _offset(a, x, value) if bool(value.any()) else _same(a, x)


def _threshold(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
        if threshold != value:
            raise Undefined(f"'threshold' that jumps from {value:g} to {threshold:g} has no Lipschitz constant")
        return _clamp(a, "clamp", None, (input, value), {})

    return threshold(*args, **kw)


def _hardsigmoid(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    """Slope 1/6, and 1/2 at 0."""
    inner = multiplied(a, name, _of_one(a, name, func, args, kw), 1 / 6)
    return _offset(a, inner, torch.tensor(0.5))


def _larger(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Any:
    """The larger of two: paths through both; of an activation and a constant: a clamp."""
    x, y = [*args, *(kw[k] for k in ("input", "other") if k in kw)]
    if a.is_known(x) and a.is_known(y):
        return a.know(x + y, Node("cat", (a.node(x), a.node(y))))
    subject, level = (x, y) if a.is_known(x) else (y, x)
    a.use(level)
    if torch.broadcast_shapes(subject.shape, level.shape) != subject.shape:
        raise Undefined(f"{name!r} with a constant that is larger than the activation is not a clamp")
    value = getattr(torch, name)(torch.zeros_like(level).double(), level.detach().double())
    return _offset(a, subject, value)


def _where(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Any:
    condition, x, y = args
    parts = [v if a.is_known(v) else a.power(v) for v in (x, y)]
    for v in (x, y):
        if not a.is_known(v):
            a.use(v)
    return a.know(torch.where(condition, *parts), Node("cat", tuple(a.node(v) for v in (x, y) if a.is_known(v))))


def _masked_fill(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Any:
    x, mask, value = [*args, *(kw[k] for k in ("mask", "value") if k in kw)]
    if a.is_known(value) or not a.is_known(x):
        raise Undefined("'masked_fill' with a value made from the input is not an operation of a ReLU network")
    a.use(value)
    return a.know(x.masked_fill(mask, float(a.power(value))), Node("same", (a.node(x),)))


_ALIKE = ("relu", "abs", "absolute", "softshrink")
_CLAMPS = ("clamp", "clamp_min", "clamp_max", "clip", "hardtanh", "relu6")
_DROPOUTS = (
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
)

ACTIVATIONS: dict[str, PathRule] = {
    **dict.fromkeys(_ALIKE, _of_one),
    **dict.fromkeys(_CLAMPS, _clamp),
    **dict.fromkeys(_DROPOUTS, _nothing),
    **dict.fromkeys(("threshold", "_threshold"), _threshold),
    **dict.fromkeys(("maximum", "minimum"), _larger),
    "leaky_relu": _leaky_relu,
    "rrelu": _rrelu,
    "prelu": _prelu,
    "hardsigmoid": _hardsigmoid,
    "where": _where,
    "masked_fill": _masked_fill,
}
