"""Whether a network computes with the weights that it has: some keep what they made of them (a cache, merged weights).

Such a network gives the outputs of other weights after a move, or of those before a checkpoint was loaded. It shows
where gradients are on, as most caches are for inference alone, and where what the forward passes keep is taken away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from flatminima.core.gradient_check import out_of_memory
from flatminima.core.output_graph import Reach, reach_of
from flatminima.core.written import Written
from flatminima.errors import ModelError

_SHARE = 0.01  # of what a move changes: kernels differ by less
_ROUNDINGS, _MOST = 64.0, 0.03  # of the largest output that passes may differ by; in half precision so much of it
_VISIBLE, _LEAST = 1000.0, 0.1  # the same of what a move has to change to show anything


def refuse_kept_values(forward: Callable[[], Tensor], weights: Iterable[Tensor], written: Written) -> Reach:
    """Refuse a network whose outputs are those of other weights, at its weights or where they move.

    Args:
        forward: outputs of a few samples, the network's weights being what they are.
        weights: trainable ones, each once. written: attributes of the network's modules before any forward pass.

    Raises:
        ModelError: the outputs differ with and without gradients, or with and without what was kept.
    """
    weights = list(weights)
    here = _outputs(forward)
    if here is None:
        return Reach()
    graded = _outputs(forward, graded=True)
    follows = graded is None or graded.requires_grad
    reach = Reach() if graded is None or not follows else reach_of(graded, weights)
    graded = None if graded is None else graded.detach()  # its graph holds every activation
    if graded is not None and _largest(graded - here) > _allowed(here, float(here.std(correction=0))):
        raise ModelError(
            "the outputs with gradients are others than without: the network keeps values for inference that are not "
            "those of its weights (a cache from before a checkpoint was loaded?): empty it"
        )
    changes, apart = [], [0.0]
    with _reversed([p for p in weights if p.layout == torch.strided]):
        kept = _outputs(forward)
        for with_gradients in (True, False):
            if not with_gradients:
                written.take_away()
            other = _outputs(forward, graded=with_gradients)
            other = None if other is None else other.detach()
            changes += [_largest(t - here) for t in (kept, other) if t is not None]
            apart += [_largest(other - kept)] if kept is not None and other is not None else []
    change = max(changes, default=0.0)
    if not all(map(math.isfinite, changes)) or change <= _rounding(here, _VISIBLE, _LEAST):  # too little to tell
        return reach if follows or change != 0 else Reach(None)
    if max(apart) > _allowed(here, change):
        raise ModelError(
            "the network keeps values that it computed from its weights (a cache, merged weights?): at other weights "
            "it does not give their outputs; switch that off"
        )
    return reach


@contextmanager
def _reversed(weights: list[Tensor]) -> Iterator[None]:
    """Entries of each weight in reverse order within the block: a move that needs no memory and keeps their range."""
    _reverse(weights)
    try:
        yield
    finally:
        _reverse(weights)


@torch.no_grad()
def _reverse(weights: list[Tensor]) -> None:
    for p in weights:
        p.copy_(p.flip(tuple(range(p.dim()))))


def _outputs(forward: Callable[[], Tensor], *, graded: bool = False) -> Tensor | None:
    """Outputs; None: they cannot be computed so, and who needs them will say why.

    Memory that runs out is raised where no gradients are asked for: less of the data may fit.
    """
    try:
        with torch.set_grad_enabled(graded):
            out = forward()
            if not isinstance(out, Tensor) or not out.is_floating_point():
                return None
            return out.clone()  # of a weight that is moved, where the output is a part of it
    except (RuntimeError, ValueError, IndexError) as error:
        if out_of_memory(error) and not graded:
            raise
        return None


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _allowed(outputs: Tensor, change: float) -> float:
    return max(_SHARE * change, _rounding(outputs, _ROUNDINGS, _MOST))


def _rounding(outputs: Tensor, count: float, most: float) -> float:
    """Roundings of the largest output, `count` of them, or the share `most` of it where that is less."""
    return _largest(outputs) * min(count * torch.finfo(outputs.dtype).eps, most)
