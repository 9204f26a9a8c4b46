"""Losses of one kind: candidates whose losses differ, in their options too, are compared by no loss.

Two losses are one where they have the same values at the outputs of either network; a name and a callable may be one,
and one callable with other options is another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.core.losses import Loss
from flatminima.core.losses.cross_entropy import CrossEntropy
from flatminima.core.losses.elementwise import BinaryCrossEntropy
from flatminima.core.losses.user import UserLoss
from flatminima.core.minimum import Minimum
from flatminima.core.samples import Samples
from flatminima.escaping import shown
from flatminima.ranking.held_out import on_device

_ROWS = 16  # samples of the largest losses, and as many of all
_NUMBERS = 4_000_000  # of outputs that are kept
_AGREES = 1e-3  # between two values of one loss, relative
_NEAR = 1e-7


@dataclass(frozen=True)
class Kind:
    """A loss, and its values at some outputs.

    Attributes:
        loss: of a network.
        said: its name and options.
        outputs, targets, losses: of some samples, on the CPU; no sample where outputs are large.
    """

    loss: Loss
    said: str
    outputs: Tensor
    targets: Tensor
    losses: Tensor

    def same(self, other: Kind) -> bool:
        """Whether the other loss is this one, as far as the outputs of both show."""
        if self.loss is other.loss or _function(self.loss) is _function(other.loss) is not None:
            return True
        here, there = _agree(other.loss, self), _agree(self.loss, other)
        if here is None and there is None:
            return self.said == other.said
        return here is not False and there is not False


def kind_of(minimum: Minimum, samples: Samples, losses: Sequence[float] | Any) -> Kind:
    """The network's loss, at the samples of its largest losses and at some others.

    Args:
        minimum: the network. samples: with targets. losses: (n,) of them.
    """
    every = torch.as_tensor(losses)
    spread = torch.arange(len(every))[:: max(len(every) // _ROWS, 1)][:_ROWS]
    rows = torch.cat([every.topk(min(_ROWS, len(every))).indices, spread]).unique()
    with minimum.open(), torch.no_grad():
        rows = rows[: minimum.batch_size]
        one = minimum.forward(minimum.batch(torch.arange(1)).inputs)
        rows = rows[: _NUMBERS // max(one[0].numel(), 1)]
        if not len(rows):
            return Kind(minimum.loss, said_of(minimum.loss), one[:0].cpu(), torch.zeros(0), torch.zeros(0))
        inputs, targets = on_device(minimum, *samples.take(rows))
        output = minimum.forward(inputs)
        values = minimum.loss(output, targets)
    return Kind(minimum.loss, said_of(minimum.loss), output.cpu(), targets.cpu(), values.cpu())


def groups_of(kinds: Sequence[Kind]) -> list[list[int]]:
    """Places of kinds that are one, the largest group first."""
    groups: list[list[int]] = []
    for i, kind in enumerate(kinds):
        for group in groups:
            if kinds[group[0]].same(kind):
                group.append(i)
                break
        else:
            groups.append([i])
    return sorted(groups, key=lambda group: -len(group))


def said_of(loss: Loss) -> str:
    """Name of a loss with its options."""
    options = {k: v for k, v in _options(loss).items() if isinstance(v, bool | int | float | str)}
    inner = ", ".join(f"{k}={v}" for k, v in sorted(options.items()))
    return shown(loss.name) + (f"({inner})" if inner else "")


def _function(loss: Loss) -> Any:
    return loss.function if isinstance(loss, UserLoss) else None


def _options(loss: Loss) -> dict[str, Any]:
    if isinstance(loss, CrossEntropy):
        return ({"smoothing": loss.smoothing} if loss.smoothing else {}) | _given(weight=loss.weight)
    if isinstance(loss, BinaryCrossEntropy):
        return _given(weight=loss.weight, pos_weight=loss.pos_weight)
    function = _function(loss)
    if isinstance(function, functools.partial):
        return {k: v for k, v in function.keywords.items() if k != "reduction"}
    if isinstance(function, nn.Module):
        return {k: v for k, v in vars(function).items() if k[0] != "_" and k not in ("training", "reduction")}
    return {}


def _given(**weights: Tensor | None) -> dict[str, str]:
    return {name: str([round(float(v), 3) for v in w.reshape(-1)[:4]]) for name, w in weights.items() if w is not None}


def _agree(loss: Loss, kind: Kind) -> bool | None:
    """Whether the loss has the kind's values; None where it cannot be asked."""
    if not len(kind.losses):
        return None
    try:
        with torch.no_grad():
            found = loss(kind.outputs, kind.targets)
    except Exception:  # a callable that holds tensors of another device, or takes other shapes
        return None
    known = kind.losses.double()
    return bool(torch.allclose(found.double(), known, rtol=_AGREES, atol=_NEAR * max(float(known.abs().max()), 1e-30)))
