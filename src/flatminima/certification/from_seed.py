"""Tensors of a network that its seed did not make: they are alike under two seeds, so their source is another.

What is alike may hold the samples, whoever put it there, and no architecture needs it: a few constants are plain
numbers, a table is computed at each pass, and statistics are learned from the prior's samples. The messages say so.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

COUNTER = "num_batches_tracked"  # of BatchNorm; no output depends on it
_MANY = 32  # entries from which on two draws of a tensor are told from one draw and small noise
_ALIKE = 0.75  # correlation of a tensor's entries under two seeds; of 32 independent ones it is above once in 10^6
_NEAR = 0.1  # distance of the small tensors under two seeds, in their size

_DRAW = "draw it from torch's random state (or take seed=)"
_CONSTANTS = (
    "keep a few constants as plain numbers (self.mean = 0.5, or a tuple), compute a table in forward, or let a "
    "BatchNorm layer learn statistics from the prior's samples"
)


def not_from_seed(one: nn.Module, two: nn.Module) -> dict[str, str]:
    """Floating-point parameters and buffers that are alike in two networks made under two seeds, and why.

    A tensor of one round number (zeros, ones, a constant) may be: it holds next to nothing. Integers and truth values
    are taken for structure (indices, masks). A small change of the same values is no other draw.

    Returns:
        Name -> a clause on the rule that it breaks, and what to do.
    """
    first, second = _state(one), _state(two)
    odd: dict[str, str] = {}
    small, moved = [], False
    for name, a in first.items():
        b = second.get(name)
        if not a.is_floating_point() or b is None or a.shape != b.shape:
            continue
        a, b = (t.detach().double().flatten().cpu() for t in (a, b))
        if torch.equal(a, b):
            if not _plain(first[name].detach()):
                odd[name] = _same(name, first[name])
            continue
        moved = True
        if a.numel() < _MANY:
            small.append((a, b))
            continue
        a, b = a - a.mean(), b - b.mean()
        if float(a @ b) > _ALIKE * float(a.norm() * b.norm()):
            odd[name] = f"{name!r} is nearly the same under two seeds (correlation above {_ALIKE}): {_DRAW}"
    if small:
        a, b = (torch.cat(parts) for parts in zip(*small, strict=True))
        if float((a - b).norm()) < _NEAR * float(torch.stack([a.norm(), b.norm()]).norm()):
            odd["its small tensors"] = f"its small tensors are nearly the same under two seeds: {_DRAW}"
    if not moved and not odd:
        odd["everything"] = f"everything in it is the same under two seeds: {_DRAW}"
    return odd


def _same(name: str, t: Tensor) -> str:
    """The clause on a tensor that is alike to the bit."""
    if isinstance(t, nn.Parameter):
        return f"the parameter {name!r} is the same under two seeds: {_DRAW}"
    return f"the buffer {name!r} is the same under two seeds: {_CONSTANTS}"


def held(name: str) -> str:
    """The clause on what holds many numbers beside the weights."""
    return (
        f"{name} holds more numbers beside the weights than an architecture needs: take from it what is needed first "
        "(d = x.shape[1]; lambda: nn.Linear(d, 2)), or compute it in forward"
    )


def other_tensors(one: nn.Module, other: nn.Module) -> list[str]:
    """Names of parameters and buffers that two networks do not have alike to the bit; NaN is like itself."""
    first, second = _state(one), _state(other)
    return sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first or name not in second or not _equal(first[name].detach(), second[name].detach())
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def _state(network: nn.Module) -> dict[str, Tensor]:
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    return {name: t for name, t in state.items() if not name.endswith(COUNTER)}


def _plain(t: Tensor) -> bool:
    """Whether a tensor is one round number, a vector of zeros and ones, or an identity."""
    values = t.double().unique()
    if len(values) <= 1:
        return all(float(f"{float(v):.1e}") == _short(t, float(v)) for v in values)
    if t.dim() == 1:
        return bool(((t == 0) | (t == 1)).all())
    return t.dim() == 2 and t.shape[0] == t.shape[1] and torch.equal(t, torch.eye(len(t), dtype=t.dtype).to(t.device))


def _short(t: Tensor, value: float) -> float:
    """The value as two decimal digits in the tensor's own precision, so that 0.1 in float32 is one."""
    nearest = torch.tensor(float(f"{value:.1e}"), dtype=t.dtype)
    return float(f"{value:.1e}") if float(nearest) == value else float("nan")
