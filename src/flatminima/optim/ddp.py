"""FisherTrace under DistributedDataParallel: sub-batches are local, one all-reduce of the combined gradient.

DDP's own reduction hangs on its forward pass, so the passes run on the module inside it and never wake it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flatminima.errors import FlatMinimaError, UsageError
from flatminima.optim import gathered

_NUMBERS = 3  # of every question: whatever a rank asks next, one that failed can answer it


class RankFailed(FlatMinimaError):
    """Another rank failed where all ranks work together."""


def inner(model: nn.Module) -> nn.Module:
    """The module that DDP wraps, or the model itself."""
    found = _wrapper(model)
    return model if found is None else found.module


def local_count(model: nn.Module, count: int, name: str) -> int:
    """Number of `count` that are this rank's."""
    found = _wrapper(model)
    ranks = 1 if found is None else dist.get_world_size(found.process_group)
    if count % ranks:
        raise UsageError(f"got {name}={count} on {ranks} ranks; each rank takes as many, so give a multiple of {ranks}")
    return count // ranks


def share_buffers(model: nn.Module) -> None:
    """Give all ranks rank 0's buffers, as DDP does before a forward pass in training mode."""
    found = _wrapper(model)
    if found is not None and found.broadcast_buffers and found.module.training:
        for buffer in found.module.buffers():
            dist.broadcast(buffer, dist.get_global_rank(found.process_group, 0), group=found.process_group)


def mean(model: nn.Module, gradients: list[Tensor | None], like: list[nn.Parameter]) -> list[Tensor | None]:
    """The mean over ranks, in one reduction per device and dtype."""
    found = _wrapper(model)
    if found is None:
        return gradients
    dense = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, like, strict=True)]
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for g in dense:
        kinds.setdefault((g.device, g.dtype), []).append(g)
    for held in kinds.values():
        flat = torch.cat([g.reshape(-1) for g in held])
        dist.all_reduce(flat, group=found.process_group)
        flat.div_(dist.get_world_size(found.process_group))
        pieces = flat.split([g.numel() for g in held])
        torch._foreach_copy_(held, [piece.view(g.shape) for piece, g in zip(pieces, held, strict=True)])
    return list(dense)


def greatest(model: nn.Module, *here: float) -> list[float]:
    """The greatest over the ranks of each of at most two numbers, 0 or more; every rank asks, as often.

    Raises:
        RankFailed: another rank is in `in_step` no more.
    """
    failed, *found = _greatest(model, [0.0, *here])
    if failed:
        raise RankFailed("another rank failed in FisherTrace.backward(), and its own error says why; all ranks stop")
    return found[: len(here)]


@contextmanager
def in_step(model: nn.Module) -> Iterator[None]:
    """A block that all ranks leave alike: where one fails in it, the others do too, and none waits for ever."""
    try:
        yield
    except RankFailed:
        raise
    except Exception:
        with suppress(Exception):  # what failed may be the connection itself
            _greatest(model, [1.0])
        raise
    greatest(model)


def _greatest(model: nn.Module, here: list[float]) -> list[float]:
    found = _wrapper(model)
    if found is None:
        return here
    numbers = torch.zeros(_NUMBERS, device=next(found.module.parameters()).device)
    numbers[: len(here)] = torch.tensor(here)
    dist.all_reduce(numbers, dist.ReduceOp.MAX, group=found.process_group)
    held: list[float] = numbers.tolist()
    return held


def refuse_shards(model: nn.Module) -> None:
    """Refuse weights of which this process holds a part only: their differences would need all of them.

    Raises:
        UsageError: naming what has cut them.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where it was never imported, nothing is wrapped in it
    if fsdp is not None and any(isinstance(m, fsdp.FullyShardedDataParallel) for m in model.modules()):
        kind = "FullyShardedDataParallel"
    elif gathered.of_model(model) or any(hasattr(p, "device_mesh") for p in model.parameters()):
        kind = "fully_shard or a tensor-parallel plan"
    else:
        return
    raise UsageError(
        f"FisherTrace displaces whole weights, and {kind} has cut them into shards: use DistributedDataParallel"
    )


def _wrapper(model: nn.Module) -> DistributedDataParallel | None:
    bare = getattr(model, "_orig_mod", model)
    return bare if isinstance(bare, DistributedDataParallel) else None
