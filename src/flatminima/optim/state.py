"""What a wrapper adds to the checkpoint of its base, put in and taken out again; nothing is rounded on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_MARK = "flatminima."  # before the name of each tensor of ours


def merge(
    packed: dict[str, Any], groups: list[dict[str, Any]], tensors: dict[Tensor, dict[str, Tensor]]
) -> dict[str, Any]:
    """The base's state_dict with `tensors` beside the state of each parameter; shares the tensors, as torch does."""
    state = dict(packed["state"])
    for saved, group in zip(packed["param_groups"], groups, strict=True):
        for number, p in zip(saved["params"], group["params"], strict=True):
            if p in tensors:
                state[number] = {**state.get(number, {}), **{_MARK + k: v for k, v in tensors[p].items()}}
    return {**packed, "state": state}


def split(packed: dict[str, Any], name: str) -> tuple[dict[str, Any], dict[Any, dict[str, Tensor]]]:
    """(the base's state_dict, our tensors by parameter number)."""
    state: dict[Any, Any] = {}
    own: dict[Any, dict[str, Tensor]] = {}
    for number, held in packed["state"].items():
        if not isinstance(held, dict):
            state[number] = held
            continue
        ours = {k.removeprefix(_MARK): v for k, v in held.items() if isinstance(k, str) and k.startswith(_MARK)}
        theirs = {k: v for k, v in held.items() if not (isinstance(k, str) and k.startswith(_MARK))}
        if ours:
            own[number] = ours
        if theirs:  # an entry without content would keep Adam from making its own
            state[number] = theirs
    return {**{k: v for k, v in packed.items() if k != name}, "state": state}, own


def keep_dtypes(optimizer: Optimizer, packed: dict[str, Any]) -> None:
    """Undo torch's cast of loaded state to the dtype of its parameter: float32 moments of bfloat16 weights stay."""
    for saved, group in zip(packed["param_groups"], optimizer.param_groups, strict=True):
        for number, p in zip(saved["params"], group["params"], strict=True):
            for key, value in packed["state"].get(number, {}).items():
                loaded = optimizer.state[p].get(key)
                if not (isinstance(value, Tensor) and isinstance(loaded, Tensor)) or key == "step":
                    continue
                if loaded.dtype != value.dtype and torch.is_floating_point(value):
                    optimizer.state[p][key] = value.to(loaded.device)
