"""A list of tensors seen as flat blocks of bounded size.

On a CPU every elementwise operation is a pass over memory unless its operands stay in the cache, so large parameters
are cut into pieces; on an accelerator every operation is a launch, so small parameters are gathered into one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CACHE = 1 << 16  # elements: six float32 operands in 1.5 MiB, about a core's cache; smaller ones cost calls
FUSED = 1 << 18  # a compiled kernel passes once over memory, so only its call is to be paid for
LAUNCH = 1 << 24  # an accelerator: as few launches as the extra memory (a few 64 MiB temporaries) allows


class Block:
    """Either a piece of one contiguous tensor, shared, or several small tensors, copied in and out."""

    def __init__(self, members: Sequence[int], span: slice | None, size: int) -> None:
        self.members = tuple(members)
        self.span = span
        self.size = size

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """(size,) flat; shares memory with a contiguous tensor if the block is a piece of one, else a copy."""
        if self.span is not None:
            return tensors[self.members[0]].detach().reshape(-1)[self.span]
        return torch.cat([tensors[i].detach().reshape(-1) for i in self.members])

    def scatter(self, flat: Tensor, tensors: Sequence[Tensor]) -> None:
        """Write back what `gather` copied."""
        if self.span is None:
            pieces = flat.split([tensors[i].numel() for i in self.members])
            targets = [tensors[i].detach() for i in self.members]
            torch._foreach_copy_(targets, [p.view(t.shape) for p, t in zip(pieces, targets, strict=True)])

    def pairs(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole tensors of a block that copies, side by side in two lists."""
        for i in self.members:
            yield ours[i].detach(), theirs[i].detach()


def walk(plan: Sequence[Block], *lists: Sequence[Tensor]) -> Iterator[tuple[Block, list[Tensor]]]:
    """Every block of a plan, with what it gathers of each list; a large tensor is cut by one call, not one a piece."""
    cut, pieces = -1, list[Iterator[Tensor]]()
    for block in plan:
        if block.span is None:
            yield block, [block.gather(tensors) for tensors in lists]
            continue
        if block.members[0] != cut:
            cut = block.members[0]
            pieces = [iter(tensors[cut].detach().reshape(-1).split(block.size)) for tensors in lists]
        yield block, [next(piece) for piece in pieces]


def blocks(parameters: Sequence[Tensor], limit: int) -> list[Block]:
    """Cut tensors of one device and dtype, in their order; together the blocks hold every element once."""
    found: list[Block] = []
    pack: list[int] = []
    held = 0

    def close() -> None:
        nonlocal held
        if pack:
            found.append(Block(pack, None, held))
        pack.clear()
        held = 0

    for i, p in enumerate(parameters):
        n = p.numel()
        if n == 0:
            continue
        if n * 2 > limit and p.is_contiguous():
            close()
            found.extend(Block([i], slice(a, min(a + limit, n)), min(limit, n - a)) for a in range(0, n, limit))
            continue
        if held + n > limit:
            close()
        pack.append(i)
        held += n
    close()
    return found


def limit_for(device: torch.device, compiled: bool) -> int:
    """Elements a block."""
    if device.type != "cpu":
        return LAUNCH
    return FUSED if compiled else CACHE
