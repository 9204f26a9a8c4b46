"""Linear maps in the algebra of paths: dense layers, convolutions and their transposes, products with a parameter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flatminima.errors import Undefined
from flatminima.statistics.network_graph import LinearLayer, Node, SampleOperator
from flatminima.statistics.path_algebra import Linear, PathAlgebra, PathRule

Arrange = Callable[[Tensor], Tensor]


def affine(
    algebra: PathAlgebra, kind: str, apply: Callable[[Tensor], Tensor], x: Any, weight: Any, bias: Any,
    channel: int | None, arrange: Arrange, operator: SampleOperator | None = None,
) -> Tensor:  # fmt: skip
    """A layer: paths through |w|^p, and from a constant 1 through |b|^p."""
    if algebra.is_known(weight) or algebra.is_known(bias) or not algebra.is_known(x):
        raise Undefined(f"{kind!r} with weights made from the input is not an operation of a ReLU network")
    origin = algebra.use(weight)
    out = apply(algebra.power(weight))
    matrix = arrange(weight.detach().double()).cpu()
    view = None if origin.parametrized else origin.view
    layer = LinearLayer(
        origin.name(kind), matrix, operator=operator, units=out.numel(), arrange=arrange, view=view,
        parameter=origin.parameter,
    )  # fmt: skip
    algebra.layers.append(layer)
    source, axis = algebra.node(x), None if channel is None else channel % out.dim()
    values = None if bias is None else bias.detach().double()
    if bias is not None:
        algebra.use(bias)
    made = Linear(out, values, len(algebra.layers) - 1, axis, source)
    return algebra.know(with_bias(algebra, made), Node("same", (source,), layer), made)  # type: ignore[no-any-return]


def with_bias(algebra: PathAlgebra, linear: Linear) -> Tensor:
    """The path sums of a linear map with its bias."""
    if linear.bias is None:
        return linear.without_bias.clone()
    return linear.without_bias + _along(algebra.power(linear.bias), linear)


def _along(values: Tensor, linear: Linear) -> Tensor:
    shape = [1] * linear.without_bias.dim()
    if linear.channel is not None:
        shape[linear.channel] = -1
    return values.view(shape)


def _linear(a: PathAlgebra, name: str, func: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> Tensor:
    def rule(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.dim() == 1:
            return affine(a, "linear", lambda w: F.linear(input, w), input, weight, bias, None, lambda w: w[None])
        return affine(a, "linear", lambda w: F.linear(input, w), input, weight, bias, -1, lambda w: w)

    return rule(*args, **kw)


def _convolution(function: Any, dims: int) -> PathRule:
    def rule(a: PathAlgebra, name: str, func: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> Tensor:
        def convolve(input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
            kernel, space = tuple(weight.shape), tuple(input.shape[-dims - 1 :])

            def act(matrix: Tensor, x: Tensor) -> Tensor:
                return function(x, matrix.view(kernel), None, *rest, **options)  # type: ignore[no-any-return]

            return affine(
                a, "convolution", lambda w: function(input, w, None, *rest, **options), input, weight, bias,
                -dims - 1, lambda w: w.flatten(1), SampleOperator(act, (1, *space)),
            )  # fmt: skip

        return convolve(*args, **kw)

    return rule


def _transposed(function: Any, dims: int) -> PathRule:
    def rule(a: PathAlgebra, name: str, func: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> Tensor:
        def convolve(
            input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
            output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
        ) -> Tensor:  # fmt: skip
            channels, outputs, *size = weight.shape  # kernels are stored (in, out / groups, *size)
            parts, space = (groups, channels // groups, outputs, *size), tuple(input.shape[-dims - 1 :])
            options = (stride, padding, output_padding, groups, dilation)

            def arrange(w: Tensor) -> Tensor:
                return w.reshape(parts).transpose(1, 2).reshape(groups * outputs, -1)

            def act(matrix: Tensor, x: Tensor) -> Tensor:
                kernel = matrix.view(groups, outputs, channels // groups, *size).transpose(1, 2)
                return function(x, kernel.reshape(weight.shape), None, *options)  # type: ignore[no-any-return]

            return affine(
                a, "transposed convolution", lambda w: function(input, w, None, *options), input, weight, bias,
                -dims - 1, arrange, SampleOperator(act, (1, *space)),
            )  # fmt: skip

        return convolve(*args, **kw)

    return rule


# -- products --------------------------------------------------------------------------------------------------------


def _matmul(a: PathAlgebra, name: str, func: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> Tensor:
    left, right = [*args, *(kw[k] for k in ("input", "other", "mat2") if k in kw)]
    if name == "__rmatmul__":
        left, right = right, left
    if a.is_known(left) and a.is_known(right):
        raise Undefined(f"{name!r} of two activations is not an operation of a ReLU network")
    if a.is_known(left) and right.dim() == 2:
        return affine(a, name, lambda w: left @ w, left, right, None, -1, lambda w: w.T)
    if a.is_known(left) and right.dim() == 1:
        return affine(a, name, lambda w: left @ w, left, right, None, None, lambda w: w.unsqueeze(0))
    letters = "".join(chr(ord("a") + i) for i in range(max(left.dim(), right.dim())))
    if left.dim() < 2 or right.dim() < 2:
        raise Undefined(f"{name!r} of a vector with an activation is not an operation of a ReLU network")
    batch = letters[:-2]
    first, second = batch[len(batch) - left.dim() + 2 :] + "yz", batch[len(batch) - right.dim() + 2 :] + "zx"
    return einsum(a, name, f"{first},{second}->{batch}yx", left, right)


def _addmm(a: PathAlgebra, name: str, func: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> Tensor:
    added, left, right = args
    if kw or a.is_known(added) or added.dim() != 1 or not a.is_known(left):
        raise Undefined(f"{name!r} of anything but a bias, an activation and weights is not read")
    return affine(a, name, lambda w: left @ w, left, right, added, -1, lambda w: w.T)


def _einsum(a: PathAlgebra, name: str, func: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> Tensor:
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) > 2:
        raise Undefined("'einsum' of more than two operands, or not written as a string, is not read")
    if len(operands) == 1:
        node = a.stretched(lambda x: torch.einsum(equation, x), operands[0])
        return a.know(torch.einsum(equation, operands[0]), node)  # type: ignore[no-any-return]
    return einsum(a, name, equation, *operands)


def _tensordot(a: PathAlgebra, name: str, func: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> Tensor:
    left, right, *rest = args
    dims = rest[0] if rest else kw.get("dims", 2)
    if isinstance(dims, int):
        dims = (list(range(left.dim() - dims, left.dim())), list(range(dims)))
    first = [chr(ord("a") + i) for i in range(left.dim())]
    second = [chr(ord("A") + i) for i in range(right.dim())]
    for i, j in zip(*dims, strict=True):
        second[j] = first[i]
    kept = [c for c in first if c not in second] + [c for c in second if c not in first]
    return einsum(a, name, f"{''.join(first)},{''.join(second)}->{''.join(kept)}", left, right)


def einsum(a: PathAlgebra, name: str, equation: str, left: Tensor, right: Tensor) -> Tensor:
    """A product of an activation with weights, each pair of entries multiplied once."""
    if a.is_known(left) and a.is_known(right):
        raise Undefined(f"{name!r} of two activations is not an operation of a ReLU network")
    terms, out = _labels(equation, left.dim(), right.dim())
    x, weight, (inner, own) = (left, right, terms) if a.is_known(left) else (right, left, terms[::-1])
    if len(set(inner)) < len(inner) or len(set(own)) < len(own) or not set(own) <= set(inner) | set(out):
        raise Undefined(f"{name!r} with the equation {equation!r} is not read: a label is repeated or alone")
    blocks = [c for c in own if c in inner and c in out]
    outputs = [c for c in own if c not in inner]
    contracted = [c for c in own if c in inner and c not in out]
    order = blocks + outputs + contracted
    shape = dict(zip(own, weight.shape, strict=True))
    rows = math.prod(shape[c] for c in blocks + outputs)
    ordered = [shape[c] for c in order]

    def arrange(w: Tensor) -> Tensor:
        return w.permute([own.index(c) for c in order]).reshape(rows, -1)

    def act(matrix: Tensor, sample: Tensor) -> Tensor:
        return torch.einsum(f"{inner},{''.join(order)}->{out}", sample, matrix.reshape(ordered))

    operator = None
    if blocks or any(c not in own and c not in out for c in inner):
        if out[:1] != inner[:1] or inner[:1] in own:
            raise Undefined(f"{name!r} with the equation {equation!r} is not read: its first label is not the sample")
        operator = SampleOperator(act, (1, *x.shape[1:]))
    channel = out.index(outputs[0]) if len(outputs) == 1 and not blocks else None
    return affine(a, name, lambda w: torch.einsum(f"{inner},{own}->{out}", x, w), x, weight, None, channel, arrange,
                  operator)  # fmt: skip


def _labels(equation: str, left: int, right: int) -> tuple[tuple[str, str], str]:
    """Labels of both operands and of the result, with the dots written out."""
    sides, arrow, out = equation.replace(" ", "").partition("->")
    first, second = sides.split(",")
    spare = [chr(c) for c in range(ord("A"), ord("Z") + 1) if chr(c) not in equation]
    widest = max(left - len(first) + 3 if "..." in first else 0, right - len(second) + 3 if "..." in second else 0)
    dots = "".join(spare[:widest])

    def written(term: str, dim: int) -> str:
        count = dim - len(term) + 3
        return term.replace("...", dots[len(dots) - count :] if count else "")

    terms = (written(first, left), written(second, right))
    if arrow:
        return terms, out.replace("...", dots)
    counts = Counter("".join(terms))
    return terms, dots + "".join(sorted(c for c in counts if counts[c] == 1 and c not in dots))


LINEAR: dict[str, PathRule] = {
    "linear": _linear,
    "conv1d": _convolution(F.conv1d, 1),
    "conv2d": _convolution(F.conv2d, 2),
    "conv3d": _convolution(F.conv3d, 3),
    "conv_transpose1d": _transposed(F.conv_transpose1d, 1),
    "conv_transpose2d": _transposed(F.conv_transpose2d, 2),
    "conv_transpose3d": _transposed(F.conv_transpose3d, 3),
    "matmul": _matmul,
    "__matmul__": _matmul,
    "__rmatmul__": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _addmm,
    "einsum": _einsum,
    "tensordot": _tensordot,
}
