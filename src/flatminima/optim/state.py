"""Entries that a wrapper adds to the checkpoint of its base, put in and taken out again; nothing is rounded on the way.

Tensors lie beside the base's state of each parameter and numbers in the groups, the two places that every tool keeps
(torch.distributed.checkpoint drops other entries, and takes a dot in a name for a level of nesting).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_MARK = "flatminima_"  # before the name of each tensor of ours
_EARLIER = "flatminima."  # the same in checkpoints of 0.1


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


def split_state(
    packed: dict[str, Any], name: str, fresh: dict[str, Any]
) -> tuple[dict[str, Any], dict[Any, dict[str, Tensor]], dict[str, Any]]:
    """(the base's state_dict, our tensors by parameter number, our numbers).

    Args:
        name: of our entry in checkpoints of 0.1.
        fresh: our numbers where the checkpoint has none.
    """
    state: dict[Any, Any] = {}
    own: dict[Any, dict[str, Tensor]] = {}
    for number, held in packed["state"].items():
        if not isinstance(held, dict):
            state[number] = held
            continue
        ours = {k[len(_MARK) :]: v for k, v in held.items() if isinstance(k, str) and k.startswith((_MARK, _EARLIER))}
        theirs = {k: v for k, v in held.items() if not (isinstance(k, str) and k.startswith((_MARK, _EARLIER)))}
        if ours:
            own[number] = ours
        if theirs:  # an entry without content would keep Adam from making its own
            state[number] = theirs
    numbers = dict(fresh)
    for group in packed["param_groups"][:1]:
        numbers.update({key: group[key] for key in fresh if key in group})
    if name in packed:
        prefix = next(iter(fresh)).split("_")[0]
        numbers.update({f"{prefix}_{key}": value for key, value in packed[name].items()})
        if packed[name].get("ready"):  # sigma had no sign then
            own = {number: {**held, "drift": -held["drift"]} for number, held in own.items()}
    return {**{k: v for k, v in packed.items() if k != name}, "state": state}, own, numbers


def show(base: Optimizer, tensors: dict[Tensor, dict[str, Tensor]]) -> None:
    """Put `tensors` into the base's state, whose keys torch.distributed.checkpoint looks up to read a flat file."""
    for p, held in tensors.items():
        base.state[p].update({_MARK + k: v for k, v in held.items()})


def hide(base: Optimizer) -> None:
    """The opposite."""
    for held in base.state.values():
        for key in [k for k in held if isinstance(k, str) and k.startswith(_MARK)]:
            del held[key]


def own_copies(optimizer: Optimizer, packed: dict[str, Any]) -> None:
    """Make loaded state the optimizer's own, in the dtype that it was saved in.

    torch casts it to the dtype of its parameter (float32 moments of bfloat16 weights would be lost, and so would codes
    of 8 bits), and otherwise takes the very tensors of `packed`, which may be those of a living optimizer.
    """
    for saved, group in zip(packed["param_groups"], optimizer.param_groups, strict=True):
        for number, p in zip(saved["params"], group["params"], strict=True):
            for key, value in packed["state"].get(number, {}).items():
                loaded = optimizer.state[p].get(key)
                if not (isinstance(value, Tensor) and isinstance(loaded, Tensor)):
                    continue
                if loaded.dtype != value.dtype and key != "step":
                    optimizer.state[p][key] = value.to(loaded.device, copy=True)
                elif loaded is value:
                    optimizer.state[p][key] = value.clone()
