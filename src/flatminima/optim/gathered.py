"""Modules under FSDP2, which put whole weights in their shards' place for a pass.

A pass may leave them there: an evaluation leaves the root's. So what a module holds at the moment says neither how its
weights lie nor whose they are, and a later pass computes with the weights of then. Ask here instead.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn


def of_model(model: nn.Module) -> list[nn.Module]:
    """Those that gather weights of the model: parts of it, or what it is a part of."""
    inside = {id(m) for m in model.modules()}
    return [
        m for m in _everywhere() if id(m) in inside or any(id(o) in inside for kept in _kept(m) for o in _owners(kept))
    ]


def of_parameters(parameters: Iterable[Tensor]) -> list[nn.Module]:
    """Those that gather one of these shards, wherever in the process."""
    ids = {id(p) for p in parameters}
    return [m for m in _everywhere() if any(id(shard) in ids for kept in _kept(m) for shard in _shards(kept))]


def copies(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those that are no shards but what a module once gathered from them, which nobody trains."""
    if not (modules := _everywhere()):
        return []
    gathered = {id(getattr(kept, "_unsharded_param", None)) for m in modules for kept in _kept(m)}
    return [p for p in parameters if id(p) in gathered]


def roots(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Those that are within no other."""
    within = {id(part) for m in modules for part in m.modules() if part is not m}
    return [m for m in modules if id(m) not in within]


def reshard(modules: Iterable[nn.Module]) -> None:
    """Give up whole weights, so that the next pass gathers those of then. No process waits for another."""
    for module in modules:
        for group in _groups(module):
            group.wait_for_unshard()  # one that was begun ahead of its pass
            group._to_sharded()  # not `reshard()`, which does nothing after a pass that has failed in the middle


def _everywhere() -> list[nn.Module]:
    """All of the process, in the order in which they were made."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where it was never imported, nothing is under it
    if fsdp is None or not hasattr(fsdp, "FSDPModule"):
        return []
    from torch.distributed._composable_state import _module_state_mapping

    return [m for m in list(_module_state_mapping) if isinstance(m, fsdp.FSDPModule)]


def _groups(module: Any) -> list[Any]:
    state = module._get_fsdp_state()
    if (several := getattr(state, "_fsdp_param_groups", None)) is not None:
        return list(several)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


def _kept(module: nn.Module) -> Iterator[Any]:
    """What torch knows of each parameter that the module gathers."""
    return (kept for group in _groups(module) for kept in group.fsdp_params)


def _owners(kept: Any) -> tuple[nn.Module, ...]:
    return (kept._module_info.module, *kept._module_info.shared_modules)


def _shards(kept: Any) -> tuple[Any, ...]:
    """The shard, and what has come in its place since: torch looks at the first pass only."""
    info = kept._module_info
    return kept.sharded_param, info.module._parameters.get(info.param_name)
