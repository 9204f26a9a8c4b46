"""Functions that only move, repeat, join or add up activations, in the algebra of paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from flatminima.errors import Undefined
from flatminima.statistics.network_graph import Node
from flatminima.statistics.path_algebra import PathAlgebra, PathRule, within
from flatminima.statistics.path_constants import words
from flatminima.statistics.path_scaling import Args, Keywords

# linear with weights 0 and 1
_PLAIN = words(
    "flatten reshape view permute transpose contiguous squeeze unsqueeze sum clone detach expand chunk split t movedim "
    "moveaxis swapaxes swapdims select narrow __getitem__ unflatten pixel_shuffle pixel_unshuffle channel_shuffle "
    "ravel tile repeat repeat_interleave index_select gather take_along_dim unbind hsplit vsplit dsplit tensor_split "
    "split_with_sizes roll flip fliplr flipud rot90 unfold fold broadcast_to expand_as view_as reshape_as atleast_1d "
    "atleast_2d atleast_3d cumsum diagonal tril triu T mT H mH data real adjoint alias __iter__ unsafe_chunk"
)
_JOINS = words("cat concat concatenate stack hstack vstack dstack row_stack column_stack")


def _plain(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Any:
    key = next((k for k in ("input", "self") if not args and k in kw), None)
    subject = args[0] if key is None else kw[key]
    if not a.is_known(subject):
        raise Undefined(f"{name!r} of a constant, steered by an activation, is not an operation of a ReLU network")
    rest = args[1:] if key is None else ()
    if not name.endswith("_as") and any(a.is_known(part) for part in within((rest, kw))):
        raise Undefined(f"{name!r} at places made from the input is not an operation of a ReLU network")
    kw = {k: v for k, v in kw.items() if k not in (key, "dtype")}
    node = a.stretched(func, subject, rest, kw)
    return a.know(func(subject, *rest, **kw), node)


def _join(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Any:
    """Of activations, and constants as edges from a constant 1."""
    parts, *rest = [*args, *([kw["tensors"]] if "tensors" in kw else [])]
    if a.is_known(parts):  # one tensor, taken apart along its first dimension
        raise Undefined(f"{name!r} of one tensor is not read")
    for constant in parts:
        if not a.is_known(constant):
            a.use(constant)
    powers = [t if a.is_known(t) else a.power(t) for t in parts]
    kw = {k: v for k, v in kw.items() if k != "tensors"}
    sources = tuple(a.node(t) for t in parts if a.is_known(t))
    return a.know(func(powers, *rest, **kw), Node("cat", sources))


def _pad(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Any:
    def pad(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
        amount = float(a.power(value)) if value else None
        node = a.stretched(lambda x: F.pad(x, pad, mode), input)
        return a.know(F.pad(input, pad, mode, amount), node)  # type: ignore[no-any-return]

    return pad(*args, **kw)


def _setitem(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> None:
    """Entries written over; index and what is written may be constants."""
    target, index, value = args
    if a.is_known(index):
        raise Undefined("an index made from the input is not an operation of a ReLU network")
    _write(a, target, value, lambda v: func(target, index, v))


def _copy(a: PathAlgebra, name: str, func: Any, args: Args, kw: Keywords) -> Tensor:
    target, value = args[:2]
    _write(a, target, value, lambda v: target.copy_(v))
    return target  # type: ignore[no-any-return]


def _write(a: PathAlgebra, target: Tensor, value: Any, assign: Callable[[Any], object]) -> None:
    if a.is_known(value):
        a.write(target, a.node(value), lambda: assign(value))
        return
    a.use(value)
    a.know(constant := a.power(value), Node("add", ()))
    a.write(target, a.node(constant), lambda: assign(constant))


SHAPES: dict[str, PathRule] = {
    **dict.fromkeys(_PLAIN, _plain),
    **dict.fromkeys(_JOINS, _join),
    "pad": _pad,
    "__setitem__": _setitem,
    "copy": _copy,
}
