"""Factors, offsets and sums in the algebra of paths, and BatchNorm, which is a factor and an offset a channel.

What multiplies or shifts the result of a linear map is folded into it. A number that follows none is a factor of the
network; an offset is an edge from a constant 1; a vector of factors that follows no linear map is a diagonal layer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flatminima.errors import Undefined
from flatminima.statistics.network_graph import LinearLayer, Node
from flatminima.statistics.path_algebra import Linear, PathAlgebra, PathRule
from flatminima.statistics.path_linear import with_bias

Number = float | int
Args = tuple[Any, ...]
Keywords = dict[str, Any]


def _number(a: PathAlgebra, value: Any) -> float | None:
    """A constant that is one number, also where the network repeats it."""
    if isinstance(value, Number):
        return float(value)
    first = value.detach().reshape(-1)[:1]
    repeated = a.constants.made(value) and not a.constants.of(value).uses and bool((value == first).all())
    return float(first) if value.numel() == 1 or (value.numel() and repeated) else None


def _values(value: Any, like: Tensor) -> Tensor:
    """A constant in float64 where the activation lies."""
    if isinstance(value, Tensor):
        return value.detach().to(like)
    return torch.tensor(float(value), dtype=torch.float64, device=like.device)


def _as_large(a: PathAlgebra, x: Tensor, values: Tensor) -> Tensor:
    """The activation x, repeated where a constant is larger."""
    shape = torch.broadcast_shapes(x.shape, values.shape)
    if shape == x.shape:
        return x
    return a.know(x.expand(shape), a.stretched(lambda t: t.expand(shape), x))  # type: ignore[no-any-return]


def multiplied(a: PathAlgebra, name: str, x: Tensor, factor: Any) -> Tensor:
    """The activation x times a constant."""
    origin = a.use(factor)
    one, values = _number(a, factor), _values(factor, x)
    x = _as_large(a, x, values)
    linear = a.linear(x)
    along = None if linear is None else _channel_values(values if one is None else _values(one, x), x, linear)
    if linear is not None and along is not None:
        return _folded(a, linear, along, None)
    out = x * a.power(values if one is None else one)
    if one is not None:
        if abs(one) != 1:
            a.factors.append((origin.name(name), one))
        return a.know(out, Node("same", (a.node(x),), None, abs(one), abs(one)))  # type: ignore[no-any-return]
    view = None if origin.parametrized else origin.view
    layer = LinearLayer(
        origin.name(name), values.reshape(1, -1).cpu(), True, units=out.numel(), view=view,
        arrange=lambda w: w.reshape(1, -1),
        parameter=origin.parameter,
    )  # fmt: skip
    a.layers.append(layer)
    return a.know(out, Node("same", (a.node(x),), layer))  # type: ignore[no-any-return]


def _channel_values(values: Tensor, x: Tensor, linear: Linear) -> Tensor | None:
    """Constants along the linear map's outputs, () or (channels,); None where they vary along other dimensions too."""
    if values.numel() == 1:
        return values.reshape(())
    if linear.channel is None or values.dim() > x.dim():
        return None
    shape = (1,) * (x.dim() - values.dim()) + tuple(values.shape)
    if any(size != 1 for i, size in enumerate(shape) if i != linear.channel):
        return None
    return values.reshape(-1)


def _folded(a: PathAlgebra, linear: Linear, factor: Tensor, shift: Tensor | None) -> Tensor:
    """The linear map whose outputs are multiplied, and then shifted, along its channels."""
    layer = a.layers[linear.layer]
    rows = factor.double().cpu().expand(len(layer.matrix))
    scale = rows if layer.scale is None else layer.scale * rows
    a.layers[linear.layer] = layer = replace(layer, matrix=layer.matrix * rows.unsqueeze(1), scale=scale)
    along = factor.double().to(linear.without_bias.device)
    bias = shift if linear.bias is None else along * linear.bias + (0.0 if shift is None else shift)
    shape = [1] * linear.without_bias.dim()
    if along.dim() and linear.channel is not None:
        shape[linear.channel] = -1
    made = Linear(
        linear.without_bias * a.power(along).view(shape if along.dim() else ()), bias, linear.layer, linear.channel,
        linear.source,
    )  # fmt: skip
    return a.know(with_bias(a, made), Node("same", (linear.source,), layer), made)  # type: ignore[no-any-return]


def shifted(a: PathAlgebra, x: Tensor, offset: Any, factor: float = 1.0) -> Tensor:
    """The activation x plus a constant times `factor`: edges from a constant 1."""
    a.use(offset)
    values = factor * _values(offset, x)
    x = _as_large(a, x, values)
    node, linear = a.node(x), a.linear(x)
    along = None if linear is None else _channel_values(values, x, linear)
    if linear is not None and along is not None and (along.dim() or linear.channel is not None):
        bias = along if linear.bias is None else linear.bias + along
        if not bias.dim():
            bias = bias.expand(linear.without_bias.shape[linear.channel or 0])
        made = replace(linear, bias=bias)
        return a.know(with_bias(a, made), node, made)  # type: ignore[no-any-return]
    return a.know(x + a.power(values), node)  # type: ignore[no-any-return]


def _mul(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    left, right = [*args, *(kw[k] for k in ("input", "other") if k in kw)]
    if a.is_known(left) and a.is_known(right):
        raise Undefined(f"{name!r} of two activations is not an operation of a ReLU network")
    return multiplied(a, name, left, right) if a.is_known(left) else multiplied(a, name, right, left)


def _div(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    left, right = [*args, *(kw[k] for k in ("input", "other") if k in kw)]
    if a.is_known(right) or kw.get("rounding_mode") is not None:
        raise Undefined(f"{name!r} by an activation, or rounded, is not an operation of a ReLU network")
    inverse = a.constants.run("reciprocal", torch.reciprocal, (right,), {}) if isinstance(right, Tensor) else 1 / right
    return multiplied(a, name, left, inverse)


def _neg(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    return multiplied(a, name, args[0], -1.0)


def _sum(a: PathAlgebra, left: Any, right: Any, factor: float) -> Tensor:
    """left + factor * right."""
    if not a.is_known(right):
        return shifted(a, left, right, factor)
    if not a.is_known(left):
        return shifted(a, multiplied(a, "mul", right, factor) if factor != 1 else right, left)
    if abs(factor) != 1:
        right = multiplied(a, "mul", right, factor)
    return a.know(left + right, Node("add", (a.node(left), a.node(right))))  # type: ignore[no-any-return]


def _add(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    left, right = [*args, *(kw[k] for k in ("input", "other") if k in kw)]
    return _sum(a, left, right, _alpha(a, kw))


def _sub(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    left, right = [*args, *(kw[k] for k in ("input", "other") if k in kw)]
    if name in ("__rsub__", "rsub"):
        left, right = right, left
    return _sum(a, left, right, -_alpha(a, kw))


def _alpha(a: PathAlgebra, kw: Keywords) -> float:
    alpha = kw.get("alpha", 1)
    if isinstance(alpha, Tensor):
        raise Undefined("a sum whose second term is multiplied by a tensor `alpha` is not read")
    return float(alpha)


def _batch_norm(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    def norm(
        input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if training or running_mean is None or running_var is None:
            raise Undefined("BatchNorm without running statistics depends on the batch")
        mean, var = running_mean.double(), running_var.double()
        origin = a.use(weight)
        a.use(bias)
        deviation = (var + eps).rsqrt()
        scale = deviation * (1.0 if weight is None else weight.detach().double())
        shift = -scale * mean + (0.0 if bias is None else bias.detach().double())
        linear = a.linear(input)
        if linear is not None and linear.channel == 1:
            a.folded += 1
            return _folded(a, linear, scale, shift)
        layer = LinearLayer(
            origin.name("batch_norm"), scale.cpu().unsqueeze(0), True, scale=deviation.cpu(), units=input.numel(),
            parameter=origin.parameter, arrange=lambda w: w.reshape(1, -1),
        )  # fmt: skip
        a.layers.append(layer)
        shape = (1, -1) + (1,) * (input.dim() - 2)
        out = input * a.power(scale).view(shape) + a.power(shift).view(shape)
        return a.know(out, Node("same", (a.node(input),), layer))  # type: ignore[no-any-return]

    return norm(*args, **kw)


SCALING: dict[str, PathRule] = {
    "batch_norm": _batch_norm,
    "neg": _neg,
    "__neg__": _neg,
    "negative": _neg,
    **dict.fromkeys(("mul", "__mul__", "__rmul__", "multiply"), _mul),
    **dict.fromkeys(("div", "__truediv__", "true_divide", "divide"), _div),
    **dict.fromkeys(("add", "__add__", "__radd__"), _add),
    **dict.fromkeys(("sub", "__sub__", "__rsub__", "rsub", "subtract"), _sub),
}
