"""Parameters that share their storage are one parameter, as tied weights are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from torch import Tensor, nn

from flatminima.errors import ModelError


def aliases(model: nn.Module) -> dict[int, nn.Parameter]:
    """id of a parameter -> the first parameter that lies in the same storage in the same way.

    Raises:
        ModelError: parameters that overlap in part.
    """
    named = [(name, p) for name, p in model.named_parameters() if _addressable(p) and p.numel()]
    named.sort(key=lambda pair: not pair[1].requires_grad)  # a trainable one represents the frozen ones beside it
    first: dict[tuple[object, ...], nn.Parameter] = {}
    out: dict[int, nn.Parameter] = {}
    spans: list[tuple[str, int, int, str]] = []
    for name, p in named:
        place = (p.device, p.data_ptr(), tuple(p.shape), p.stride(), p.dtype)
        if place in first:
            out[id(p)] = first[place]
            continue
        first[place] = p
        size = p.numel() * p.element_size()
        if p.is_contiguous():
            spans.append((str(p.device), p.data_ptr(), p.data_ptr() + size, name))
    spans.sort()
    for (device, _, stop, name), (other, start, _, beside) in pairwise(spans):
        if device == other and start < stop:
            raise ModelError(
                f"parameters {name!r} and {beside!r} overlap in memory; give each its own, or tie them as one"
            )
    return out


def _addressable(p: Tensor) -> bool:
    """Whether the parameter has a place in memory."""
    if isinstance(p, nn.parameter.UninitializedParameter) or p.is_meta:
        return False
    try:
        return p.data_ptr() != 0
    except RuntimeError:
        return False


@contextmanager
def tied(model: nn.Module, shared: dict[int, nn.Parameter]) -> Iterator[None]:
    """Each group of `aliases` as one Parameter object within the block, so that gradients add up and moves agree."""
    if not shared:
        yield
        return
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None and id(p) in shared:
                    replaced.append((module, name, p))
        for module, name, p in replaced:
            module._parameters[name] = shared[id(p)]
        yield
    finally:
        for module, name, p in replaced:
            module._parameters[name] = p
