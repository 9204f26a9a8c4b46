"""Weights and precisions that outputs are made of, read from their autograd graph, in which nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction


@dataclass(frozen=True)
class Reach:
    """Way in which the outputs of a few samples are made.

    Attributes:
        missed: positions of the weights that no gradient reaches; None: the outputs depend on no weight.
        coarsest: dtype of the lowest precision on the way to them, where it was seen.
    """

    missed: tuple[int, ...] | None = ()
    coarsest: torch.dtype | None = None


def reach_of(outputs: Tensor, weights: list[Tensor]) -> Reach:
    """Walk through the graph of the outputs; where a node may hide some of it, no weight counts as missed."""
    reached, dtypes, hidden = set(), {outputs.dtype}, False
    for node in nodes_of(outputs):
        hidden |= isinstance(node, BackwardCFunction)  # a checkpoint, an operation of the caller's
        reached.add(id(getattr(node, "variable", None)))
        dtypes |= {made.dtype for made in getattr(node, "_input_metadata", ())}
    missed = () if hidden else tuple(i for i, weight in enumerate(weights) if id(weight) not in reached)
    return Reach(missed, max((d for d in dtypes if d.is_floating_point), key=lambda d: torch.finfo(d).eps))


def nodes_of(output: Tensor) -> Iterator[Any]:
    """Each node of a tensor's graph once."""
    seen: set[Any] = set()
    stack: list[Any] = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack += [following for following, _ in node.next_functions]
