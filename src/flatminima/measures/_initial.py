"""The weights that training started from, in the forms in which people have them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flatminima.errors import UsageError

Initial = nn.Module | Mapping[str, Tensor] | Tensor


def flat_initial(
    initial: nn.Module | Mapping[str, Tensor] | Tensor, names: tuple[str, ...], sizes: tuple[int, ...]
) -> Tensor:
    """w0 (W,) float64 from the untrained model, its state dict or a flat vector.

    Raises:
        UsageError: weights that do not fit.
    """
    if isinstance(initial, Tensor):
        if initial.numel() != sum(sizes):
            raise UsageError(f"got {initial.numel()} initial weights for {sum(sizes)} trainable ones")
        return initial.detach().double().cpu().reshape(-1)
    state = initial.state_dict() if isinstance(initial, nn.Module) else initial
    missing = [name for name in names if name not in state]
    if missing:
        raise UsageError(f"the initial weights lack {missing[0]!r} ({len(missing)} of {len(names)} parameters missing)")
    for name, size in zip(names, sizes, strict=True):
        if state[name].numel() != size:
            raise UsageError(f"initial {name!r} holds {state[name].numel()} weights; expected {size}")
    return torch.cat([state[name].detach().double().cpu().reshape(-1) for name in names])
