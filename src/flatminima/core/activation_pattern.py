"""The side of its kinks that a piecewise network is on: two passes with the same pattern lie on one smooth piece."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_AT_ZERO = {"relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "threshold", "threshold_", "abs", "abs_"}
_AT_ZERO |= {"absolute", "sign", "selu", "selu_", "hardshrink", "softshrink"}
_BETWEEN = {"relu6": (0.0, 6.0), "hardsigmoid": (-3.0, 3.0), "hardswish": (-3.0, 3.0)}
_CHOICES = {"max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "amax", "amin"}
_CHOICES |= {"adaptive_max_pool3d", "max", "min", "maximum", "minimum", "topk", "sort", "argmax", "argmin", "median"}
_CLAMPS = {"clamp", "clamp_", "clamp_min", "clamp_max", "clip", "hardtanh", "hardtanh_"}


class Kinks(TorchFunctionMode):
    """Notes the sides and choices of every kinked function that runs within the block.

    Attributes:
        pattern: a hash of them all; 0 where there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._digest = hashlib.blake2b(digest_size=8)
        self._any = False

    @property
    def pattern(self) -> int:
        return int.from_bytes(self._digest.digest(), "little") if self._any else 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        known = name in _AT_ZERO or name in _BETWEEN or name in _CHOICES or name in _CLAMPS
        before = args[0].detach().clone() if known and args and _real(args[0]) else None
        out = func(*args, **kwargs)
        if before is not None:
            for side in _sides(name, before, out, args):
                self._any = True
                self._digest.update(side.to(torch.uint8).cpu().contiguous().numpy().tobytes())
        return out


def _real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _sides(name: str, before: Tensor, out: Any, args: Any) -> list[Tensor]:
    """Masks that change where a kink is crossed."""
    if name in _AT_ZERO:
        return [before > 0]
    if name in _BETWEEN:
        low, high = _BETWEEN[name]
        return [before > low, before > high]
    first = out[0] if isinstance(out, tuple) else out
    if not isinstance(first, Tensor):
        return []
    if name in _CLAMPS:
        return [before == first]
    if name in ("maximum", "minimum") or (name in ("max", "min") and len(args) > 1 and _real(args[1])):
        return [before == first]
    return _chosen(name, before, first)


def _chosen(name: str, before: Tensor, first: Tensor) -> list[Tensor]:
    """Which entries were chosen: those that the gradient of the choice reaches."""
    if name.startswith(("max_pool", "adaptive_max_pool")):
        return [torch.isin(before, first)]
    if name in ("argmax", "argmin") or not first.is_floating_point():
        return [first != 0]
    return [torch.isin(before, first)]
