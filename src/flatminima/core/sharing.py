"""Parameters that share their memory entry by entry are one parameter, as tied weights are; others are refused.

A transpose of another weight (``decoder.weight = nn.Parameter(encoder.weight.t())``) moves with it. Autograd takes the
two for different weights, and the gradient of each is a part of the true one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from math import gcd

import torch
from torch import Tensor, nn

from flatminima.errors import ModelError

_Named = tuple[str, Tensor]


def aliases(model: nn.Module) -> dict[int, nn.Parameter]:
    """id of a parameter -> the first parameter that lies in the same memory in the same way.

    Raises:
        ModelError: memory of a trainable parameter that is, in another way, also that of a parameter or buffer.
    """
    named = [(name, p) for name, p in model.named_parameters() if _addressable(p)]
    named.sort(key=lambda pair: not pair[1].requires_grad)  # a trainable one represents the frozen ones beside it
    first: dict[tuple[object, ...], nn.Parameter] = {}
    out: dict[int, nn.Parameter] = {}
    others: list[_Named] = []
    for name, p in named:
        place = (p.device, p.data_ptr(), p.shape, _strides(p), p.dtype)
        if place in first:
            out[id(p)] = first[place]
        else:
            first[place] = p
            others.append((name, p))
    others += [(name, b) for name, b in model.named_buffers() if _addressable(b) and b.grad_fn is None]
    for group in _meeting(others):
        _refuse_overlap(group)
    return out


def repeats(tensor: Tensor) -> bool:
    """Whether several entries are one in memory, as in an expanded tensor or one of sliding windows."""
    if not _addressable(tensor) or tensor.is_contiguous():
        return False
    extent = 1
    for stride, size in sorted(zip(_strides(tensor), tensor.shape, strict=True)):
        if size > 1 and stride < extent:
            break  # perhaps
        extent += (size - 1) * stride
    else:
        return False
    memory = _Memory([tensor])
    memory.fill(tensor)
    return memory.marked < tensor.numel()


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides, 0 where there is one entry and the stride says nothing."""
    return tuple(stride if size > 1 else 0 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _span(tensor: Tensor) -> tuple[int, int]:
    """First address, and the one after the last."""
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.numel() * tensor.element_size()
    last = sum(stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return start, start + (last + 1) * tensor.element_size()


def _meeting(named: Iterable[_Named]) -> Iterator[list[_Named]]:
    """Groups of tensors whose spans of memory meet: columns of one matrix do, and need not have an entry in common."""
    spans = sorted((str(t.device), *_span(t), i, name, t) for i, (name, t) in enumerate(named))
    group: list[_Named] = []
    before, stop = "", 0
    for device, start, end, _, name, tensor in spans:
        if group and device == before and start < stop:
            stop = max(stop, end)
        else:
            if len(group) > 1:
                yield group
            group, before, stop = [], device, end
        group.append((name, tensor))
    if len(group) > 1:
        yield group


def _refuse_overlap(group: list[_Named]) -> None:
    """Refuse memory of a trainable parameter that is another tensor's too; those that never move may overlap.

    Raises:
        ModelError: naming the two.
    """
    memory = _Memory([tensor for _, tensor in group])
    for name, tensor in sorted(group, key=lambda pair: not pair[1].requires_grad):
        if memory.holds(tensor):
            other = next(n for n, t in group if t.requires_grad and n != name and _common(t, tensor))
            raise ModelError(
                f"{_kind(tensor)} {name!r} and parameter {other!r} overlap in memory, and not as one weight (a "
                "transpose, a slice, a buffer?): use that parameter in forward for both (F.linear(x, weight.t())), or "
                "give each its own memory (clone())"
            )
        if tensor.requires_grad:
            memory.fill(tensor)


def _kind(tensor: Tensor) -> str:
    return "parameter" if isinstance(tensor, nn.Parameter) else "buffer"


def _common(one: Tensor, other: Tensor) -> bool:
    memory = _Memory([one, other])
    memory.fill(one)
    return memory.holds(other)


class _Memory:
    """Marks on the memory that some tensors span, in units that all of them are made of."""

    def __init__(self, tensors: list[Tensor]) -> None:
        spans = [_span(tensor) for tensor in tensors]
        self._start, end = min(start for start, _ in spans), max(end for _, end in spans)
        sizes = [tensor.element_size() for tensor in tensors]
        self._unit = reduce(gcd, [*sizes, *(start - self._start for start, _ in spans)])
        self._marks = torch.zeros((end - self._start) // self._unit, dtype=torch.bool, device="cpu")

    def _of(self, tensor: Tensor) -> Tensor:
        """The marks of a tensor's entries; of those that are expanded once."""
        units = tensor.element_size() // self._unit
        shape = [size if stride else 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        strides = [stride * units for stride in tensor.stride()]
        return self._marks.as_strided([*shape, units], [*strides, 1], (tensor.data_ptr() - self._start) // self._unit)

    def holds(self, tensor: Tensor) -> bool:
        """Whether an entry of the tensor is marked."""
        return bool(self._of(tensor).any())

    def fill(self, tensor: Tensor) -> None:
        """Mark the tensor's entries."""
        self._of(tensor).fill_(True)

    @property
    def marked(self) -> int:
        """Number of marks."""
        return int(self._marks.sum())


def _addressable(p: Tensor) -> bool:
    """Whether the tensor has a place in memory, and entries there."""
    if isinstance(p, nn.UninitializedParameter | nn.UninitializedBuffer) or p.is_meta or p.layout != torch.strided:
        return False
    try:
        return p.numel() > 0 and p.data_ptr() != 0
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
