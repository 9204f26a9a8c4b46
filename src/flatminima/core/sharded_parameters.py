"""The trainable parameters of a network under FSDP2: what of each lies in this process."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.core.parameters import Parameters
from flatminima.errors import ModelError, NumericalError


@dataclass(frozen=True)
class ShardedParameters(Parameters):
    """The trainable parameters of a model under `fully_shard`, each cut along its first dimension.

    A flat vector here is this rank's part: of each parameter, in order, the entries that it holds.
    """

    spans: tuple[tuple[int, int], ...] = ()  # of each parameter's part in the whole flat vector
    modules: tuple[Any, ...] = ()  # that gather their weights for a pass
    group: Any = None

    @classmethod
    def of_shards(cls, model: nn.Module) -> ShardedParameters:
        """Collect; refuse what is not sharded by FSDP2 along the first dimension over one group of processes.

        Raises:
            ModelError: naming the parameter. NumericalError: NaN or Inf in a parameter, on every rank.
        """
        from torch.distributed.fsdp import FSDPModule
        from torch.distributed.tensor import DTensor, Shard

        modules = tuple(m for m in model.modules() if isinstance(m, FSDPModule))
        for module in modules:  # a forward pass may have left whole weights in the shards' place
            module.reshard()
        named = list(model.named_parameters())
        meshes, spans, start, finite = [], [], 0, True
        for name, p in named:
            if not isinstance(p, DTensor) or p.placements != (Shard(0),):
                raise ModelError(
                    f"parameter {name!r} is not sharded along its first dimension: apply "
                    "torch.distributed.fsdp.fully_shard to the whole model, over a mesh of one dimension"
                )
            meshes.append(p.device_mesh)
            finite &= bool(torch.isfinite(p.to_local()).all())
            if p.requires_grad:
                spans.append(_span(p, start))
                start += p.numel()
        trainable = [(name, p) for name, p in named if p.requires_grad]
        if not trainable or any(mesh != meshes[0] for mesh in meshes):
            raise ModelError("got no trainable parameter, or parameters on several meshes; expected one mesh for all")
        frozen = sum(p.numel() for _, p in named) - start
        names, tensors = zip(*trainable, strict=True)
        found = cls(names, tensors, frozen, tuple(spans), modules, meshes[0].get_group())
        if not found.agree(finite):
            raise NumericalError("a parameter holds NaN or Inf; measures need finite weights")
        return found

    @property
    def local(self) -> list[Tensor]:
        """This rank's part of each parameter; writing to it writes the weights."""
        return [p.detach().to_local() for p in self.tensors]  # type: ignore[attr-defined]

    @property
    def here(self) -> int:
        """Entries that this rank holds."""
        return sum(stop - start for start, stop in self.spans)

    def flat(self, dtype: torch.dtype | None = None) -> Tensor:
        return torch.cat([t.reshape(-1).to(dtype) if dtype else t.reshape(-1) for t in self.local])

    def part(self, vector: Tensor) -> Tensor:
        return torch.cat([vector[start:stop] for start, stop in self.spans])

    def agree(self, here: bool) -> bool:
        return float(self.total(torch.tensor(float(not here), device=self.local[0].device))) == 0.0

    def total(self, sums: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        import torch.distributed as dist

        dist.all_reduce(sums, group=self.group)
        return sums

    def reshard(self) -> None:
        """Let go of gathered weights: a later pass gathers what the shards then hold."""
        for module in self.modules:
            module.reshard()

    @torch.no_grad()
    def assign(self, vector: Tensor) -> None:
        self.reshard()
        for t, part in zip(self.local, vector.split([t.numel() for t in self.local]), strict=True):
            t.copy_(part.view(t.shape))


def _span(p: Any, start: int) -> tuple[int, int]:
    """Where the entries that this rank holds lie in the flat vector: rows in a row."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    width = p[0].numel() if p.dim() > 1 else 1
    first = start + offset[0] * width
    return first, first + math.prod(shape)
