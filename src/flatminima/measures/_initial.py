"""The weights that training started from, in the forms in which people have them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flatminima.errors import UsageError
from flatminima.statistics import FlatWeights

Initial = nn.Module | Mapping[str, Tensor] | Tensor


def flat_initial(initial: nn.Module | Mapping[str, Tensor] | Tensor, weights: FlatWeights) -> Tensor:
    """w0 (W,) float64 from the untrained model, its state dict or a flat vector.

    Raises:
        UsageError: weights that do not fit.
    """
    names, total = weights.names, sum(weights.sizes)
    if isinstance(initial, Tensor):
        if initial.numel() != total:
            raise UsageError(f"got {initial.numel()} initial weights for {total} trainable ones")
        if initial.dim() != 1:
            raise UsageError(f"got initial weights of shape {tuple(initial.shape)}; a vector has the shape ({total},)")
        return initial.detach().double().cpu()
    state = initial.state_dict() if isinstance(initial, nn.Module) else initial
    missing = [name for name in names if name not in state]
    if missing:
        raise UsageError(f"the initial weights lack {missing[0]!r} ({len(missing)} of {len(names)} parameters missing)")
    for name, shape in zip(names, weights.shapes, strict=True):
        refuse_other_shape(name, state[name], shape)
    return torch.cat([state[name].detach().double().cpu().reshape(-1) for name in names])


def refuse_other_shape(name: str, initial: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse an initial parameter that is stored in another layout than the network's.

    Raises:
        UsageError: naming both shapes.
    """
    if tuple(initial.shape) != tuple(shape):
        raise UsageError(
            f"initial {name!r} has the shape {tuple(initial.shape)}, the network's {tuple(shape)}: give those of the "
            "same network"
        )
