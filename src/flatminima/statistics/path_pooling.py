"""Pooling and interpolation in the algebra of paths: linear layers without weights of their own.

Averaging k values has weights 1/k, of which p-th powers are taken; the largest of k values counts every path through
its window. Interpolation is a product of one matrix a dimension.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flatminima.errors import Undefined
from flatminima.statistics.network_graph import Node
from flatminima.statistics.path_activations import _larger
from flatminima.statistics.path_algebra import PathAlgebra, PathRule
from flatminima.statistics.path_scaling import Args, Keywords


def _averaged(a: PathAlgebra, out: Tensor, elements: float | Tensor) -> Tensor:
    return out * elements ** (1.0 - a.p)  # k paths of weight 1/k each: k (1/k)^p times their mean


def _avg_pool(function: Any, dims: int) -> PathRule:
    """Each window with its own divisor: padding and overhang may or may not count."""

    def rule(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
        input, *rest = [*args, *([kw["input"]] if "input" in kw else [])]
        kw = {k: v for k, v in kw.items() if k != "input"}
        ones = torch.ones_like(input[..., :1, :] if dims == 1 else input.flatten(0, -dims - 1)[:1])
        names = ("kernel_size", "stride", "padding", "ceil_mode")
        given = dict(zip(names, rest, strict=False)) | {k: v for k, v in kw.items() if k in names}
        inside = _summed(dims, ones, **given)
        out = _averaged(a, function(input, *rest, **kw), inside / function(ones, *rest, **kw))
        return a.know(out, a.stretched(lambda x: function(x, *rest, **kw), input))  # type: ignore[no-any-return]

    return rule


def _adaptive_avg(function: Any, dims: int) -> PathRule:
    def rule(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
        input, size = [*args, *(kw[k] for k in ("input", "output_size") if k in kw)]
        out: Tensor = function(input, size)
        counts = _counts(input.shape[-dims:], out.shape[-dims:]).to(out)
        node = a.stretched(lambda x: function(x, size), input)
        return a.know(_averaged(a, out, counts), node)  # type: ignore[no-any-return]

    return rule


def _counts(inputs: Any, outputs: Any) -> Tensor:
    """Values in each window of adaptive pooling, which starts at floor(i n / m) and ends at ceil((i + 1) n / m)."""
    counts = torch.ones(())
    for n, m in zip(inputs, outputs, strict=True):
        one = torch.tensor([-(-(i + 1) * n // m) - i * n // m for i in range(m)])
        counts = counts.unsqueeze(-1) * one
    return counts


def _mean(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    input, *rest = [*args, *([kw["input"]] if "input" in kw else [])]
    kw = {k: v for k, v in kw.items() if k not in ("input", "dtype")}
    out = input.mean(*rest, **kw)
    node = a.stretched(lambda x: x.mean(*rest, **kw), input)
    return a.know(_averaged(a, out, input.numel() / out.numel()), node)  # type: ignore[no-any-return]


# -- the largest -----------------------------------------------------------------------------------------------------


def _largest(a: PathAlgebra, x: Tensor, sums: Any) -> Tensor:
    """A value stretches a change as often as there are windows around it, each window by at most 1."""
    a.max_pooled = True
    windows = a.stretched(sums, x)
    node = replace(windows, stretch_2=windows.stretch_2 / math.sqrt(windows.stretch_inf or 1.0), stretch_inf=1.0)
    return a.know(sums(x), node)  # type: ignore[no-any-return]


def _max_pool(dims: int) -> PathRule:
    def rule(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
        def pool(
            input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
            ceil_mode: bool = False, return_indices: bool = False,
        ) -> Tensor:  # fmt: skip
            if return_indices:
                raise Undefined("max-pooling with indices is not an operation of a ReLU network")
            spread = _sizes(dilation, dims)
            return _largest(a, input, lambda x: _summed(dims, x, kernel_size, stride, padding, ceil_mode, spread))

        return pool(*args, **kw)

    return rule


def _adaptive_max(function: Any, dims: int) -> PathRule:
    def rule(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
        def pool(input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
            if return_indices:
                raise Undefined("max-pooling with indices is not an operation of a ReLU network")

            def sums(x: Tensor) -> Tensor:
                out: Tensor = function(x, output_size)
                return out * _counts(x.shape[-dims:], out.shape[-dims:]).to(out)

            return _largest(a, input, sums)

        return pool(*args, **kw)

    return rule


def _amax(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    def largest(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
        every = tuple(range(input.dim()))
        dims = (every if dim == () else tuple(dim)) if isinstance(dim, tuple | list) else (dim,)
        return _largest(a, input, lambda x: x.sum(dims, keepdim=keepdim))

    return largest(*args, **kw)


def _max(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Any:
    """Of one tensor along a dimension, or of two tensors."""
    given = [*args[1:], *(kw[k] for k in ("other",) if k in kw)]
    if given and isinstance(given[0], Tensor):
        return _larger(a, "maximum" if name == "max" else "minimum", func, (args[0], given[0]), {})
    dims = [*given[:1], *(kw[k] for k in ("dim",) if k in kw)]
    if not dims:
        return _amax(a, name, func, args[:1], {})
    keep = bool(given[1]) if len(given) > 1 else bool(kw.get("keepdim", False))
    values = _amax(a, name, func, args[:1], {"dim": dims[0], "keepdim": keep})
    return getattr(torch.return_types, name)((values, None))  # which one was the largest depends on the input


def _summed(
    dims: int, input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    dilation: tuple[int, ...] = (1,),
) -> Tensor:  # fmt: skip
    """Sums over windows."""
    window, margin = _sizes(kernel_size, dims), _sizes(padding, dims)
    step = _sizes(stride, dims) if stride not in (None, (), []) else window
    if math.prod(dilation) != 1:
        if ceil_mode:
            raise Undefined("max-pooling with dilation and ceil_mode is not read")
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        flat = input.reshape(-1, 1, *input.shape[-dims:])
        out: Tensor = convolve(flat, flat.new_ones(1, 1, *window), None, step, margin, dilation)
        return out.reshape(*input.shape[:-dims], *out.shape[-dims:])
    if dims == 1:  # only 2-d and 3-d pooling can be told to divide by 1
        return _summed(2, input.unsqueeze(-2), (1, *window), (1, *step), (0, *margin), ceil_mode).squeeze(-2)
    pool: Any = F.avg_pool2d if dims == 2 else F.avg_pool3d
    out = pool(input, window, step, margin, ceil_mode, True, divisor_override=1)
    return out


def _sizes(size: Any, dims: int) -> tuple[int, ...]:
    sizes = tuple(size) if isinstance(size, tuple | list) else (int(size),)
    return sizes * dims if len(sizes) == 1 else sizes


# -- interpolation ---------------------------------------------------------------------------------------------------


def _interpolate(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    """One matrix a dimension, which is what nearest, linear, cubic and area interpolation are made of."""
    input, *rest = [*args, *([kw["input"]] if "input" in kw else [])]
    kw = {k: v for k, v in kw.items() if k != "input"}
    real = F.interpolate(input, *rest, **kw)
    out, two, infinity = input, 1.0, 1.0
    for axis in range(2, input.dim()):
        matrix = _along(lambda x: F.interpolate(x, *rest, **kw), input, axis)
        out = torch.movedim(torch.movedim(out, axis, -1) @ matrix.abs().pow(a.p).T, -1, axis)
        two *= float(torch.linalg.matrix_norm(matrix, 2))
        infinity *= float(matrix.abs().sum(1).max())
    if out.shape != real.shape:
        raise Undefined("'interpolate' that is no product over dimensions is not read")
    return a.know(out, Node("same", (a.node(input),), None, two, infinity))  # type: ignore[no-any-return]


def _along(function: Any, like: Tensor, axis: int) -> Tensor:
    """Matrix (out, in) of an interpolation along one axis: images that are constant along the others."""
    size, dims = like.shape[axis], like.dim() - 2
    shape = [size if i == axis - 2 else 1 for i in range(dims)]
    images = torch.eye(size, dtype=like.dtype, device=like.device).view(1, size, *shape)
    images = images.expand(1, size, *(like.shape[2:]))
    out: Tensor = function(images)
    return torch.movedim(out, axis, -1).reshape(size, -1, out.shape[axis])[:, 0].T


POOLING: dict[str, PathRule] = {
    "avg_pool1d": _avg_pool(F.avg_pool1d, 1),
    "avg_pool2d": _avg_pool(F.avg_pool2d, 2),
    "avg_pool3d": _avg_pool(F.avg_pool3d, 3),
    "adaptive_avg_pool1d": _adaptive_avg(F.adaptive_avg_pool1d, 1),
    "adaptive_avg_pool2d": _adaptive_avg(F.adaptive_avg_pool2d, 2),
    "adaptive_avg_pool3d": _adaptive_avg(F.adaptive_avg_pool3d, 3),
    "mean": _mean,
    "max_pool1d": _max_pool(1),
    "max_pool2d": _max_pool(2),
    "max_pool3d": _max_pool(3),
    "adaptive_max_pool1d": _adaptive_max(F.adaptive_avg_pool1d, 1),
    "adaptive_max_pool2d": _adaptive_max(F.adaptive_avg_pool2d, 2),
    "adaptive_max_pool3d": _adaptive_max(F.adaptive_avg_pool3d, 3),
    "amax": _amax,
    "amin": _amax,
    "max": _max,
    "min": _max,
    "interpolate": _interpolate,
    "upsample": _interpolate,
}
