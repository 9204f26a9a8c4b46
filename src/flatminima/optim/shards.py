"""Sharded parameters (DTensors of FSDP2 and tensor parallelism): this rank's part, and sums over all of them.

The arithmetic runs on local tensors; only norms need other ranks. A parameter that lies on every rank alike is summed
once, whatever the mesh.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flatminima.errors import UsageError

_PLAIN = (Tensor, nn.Parameter)


def is_sharded(t: Tensor) -> bool:
    """Whether it is a DTensor."""
    return type(t) not in _PLAIN and hasattr(t, "device_mesh")


def local(t: Tensor) -> Tensor:
    """This rank's part, sharing memory, to be used under no_grad; an ordinary tensor as it is."""
    if not is_sharded(t):
        return t
    with torch.no_grad():
        found: Tensor = t.to_local()  # type: ignore[attr-defined]
    return found


def gradient(p: Tensor) -> Tensor:
    """This rank's part of p.grad, laid out over the ranks as p is."""
    assert p.grad is not None
    if not is_sharded(p):
        return p.grad
    g: Any = p.grad
    if is_sharded(g) and g.placements != p.placements:  # type: ignore[attr-defined]
        g = g.redistribute(placements=p.placements)  # type: ignore[attr-defined]
    return local(g)


def check_sharding(p: Tensor) -> None:
    """Refuse what is cut up in a manner that we do not know."""
    if getattr(p, "_fsdp_flattened", False):
        raise UsageError(
            "got a parameter of FullyShardedDataParallel (FSDP1), whose flattened shards have no norm of their own: "
            "use torch.distributed.fsdp.fully_shard (FSDP2) or DistributedDataParallel"
        )
    if hasattr(p, "ds_id"):
        raise UsageError("got a parameter that DeepSpeed has partitioned: use FSDP2 or DistributedDataParallel")
    if is_sharded(p):
        from torch.distributed.tensor import Replicate, Shard

        if any(type(placement) not in (Replicate, Shard) for placement in p.placements):  # type: ignore[attr-defined]
            raise UsageError(
                f"got a parameter with placements {p.placements}; "  # type: ignore[attr-defined]
                "replicated and plainly sharded ones are known"
            )


def check_dense(g: Tensor | None) -> None:
    """Refuse a sparse gradient."""
    if g is not None and g.layout != torch.strided:
        raise UsageError(
            f"got a sparse gradient of a parameter of shape {tuple(g.shape)}; make the embedding with sparse=False"
        )


def check_values(parameters: Iterable[Tensor]) -> None:
    """Refuse parameters that hold no values: their network was given others since, which nobody would train."""
    if any(p.is_meta for p in parameters):
        raise UsageError(
            "got parameters on the meta device, which hold no values: make the optimizer after model.to_empty(), "
            "which replaces them"
        )


def process_groups(p: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """The process groups over which the parts of p add up to the whole."""
    if not is_sharded(p):
        return ()
    mesh, placements = p.device_mesh, p.placements  # type: ignore[attr-defined]
    return tuple(mesh.get_group(i) for i, placement in enumerate(placements) if placement.is_shard())


def total(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum of a number a parameter over all parameters and all ranks, () float64.

    Args:
        parts: (parameter, its number from this rank's part).
    """
    held: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = {}
    for p, number in parts:
        held.setdefault(process_groups(p), []).append(number)
    sums: list[Tensor] = []
    for groups, numbers in held.items():
        home = numbers[0].device
        double = torch.float32 if home.type == "mps" else torch.float64
        found = torch.stack([n.to(home, double) for n in numbers]).sum()
        for group in groups:
            dist.all_reduce(found, group=group)
        sums.append(found)
    if not sums:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([s.to(sums[0].device) for s in sums]).sum() if len(sums) > 1 else sums[0]


def box(p: Tensor) -> list[tuple[int, int]]:
    """[start, end) along each axis of the whole tensor that this rank holds."""
    bounds = [(0, n) for n in p.shape]
    if is_sharded(p):
        mesh = p.device_mesh  # type: ignore[attr-defined]
        place = mesh.get_coordinate()
        for i, placement in enumerate(p.placements):  # type: ignore[attr-defined]
            if placement.is_shard():
                start, end = bounds[placement.dim]
                size = -(-(end - start) // mesh.size(i))  # as torch.chunk cuts
                first = min(start + place[i] * size, end)
                bounds[placement.dim] = (first, min(first + size, end))
    return bounds


def like(p: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    """The values of t in the device and memory format of p."""
    found = torch.empty_like(p, dtype=dtype, requires_grad=False)
    with torch.no_grad():
        found.copy_(t)
    return found
