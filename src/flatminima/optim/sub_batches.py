"""A batch as a tree of tensors, cut along its first axis into contiguous parts, and joined again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from flatminima.errors import UsageError


def size(tree: Any) -> int:
    """Samples in a batch; every tensor must have as many."""
    found = {len(t) for t in batch_tensors(tree)}
    if len(found) != 1:
        raise UsageError(f"got tensors of {sorted(found)} samples in one batch; inputs and targets go together")
    return found.pop()


def batch_tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tensor, list, tuple or dictionary."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        return [t for value in tree.values() for t in batch_tensors(value)]
    if isinstance(tree, list | tuple):
        return [t for value in tree for t in batch_tensors(value)]
    raise UsageError(f"got a batch with a {type(tree).__name__}; give tensors, or lists or dictionaries of them")


def cut(x: Any, y: Any, count: int) -> list[tuple[Any, Any, int]]:
    """[(inputs, targets, samples)]: at most `count` parts in order, the first ones a sample larger where it must be."""
    n = size((x, y))
    ends = [i * (n // count) + min(i, n % count) for i in range(count + 1)]
    return [
        (mapped(lambda t, a=a, b=b: t[a:b], x), mapped(lambda t, a=a, b=b: t[a:b], y), b - a)
        for a, b in pairwise(ends)
        if b > a
    ]


def join(parts: Sequence[Any]) -> Any:
    """The parts as one batch."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, dict):
        return _like(first, {key: join([p[key] for p in parts]) for key in first})
    return _like(first, [join([p[i] for p in parts]) for i in range(len(first))])


def mapped(f: Callable[..., Tensor], tree: Any) -> Any:
    """The tree with f of each of its tensors."""
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, dict):
        return _like(tree, {key: mapped(f, value) for key, value in tree.items()})
    return _like(tree, [mapped(f, value) for value in tree])


def _like(tree: Any, values: Any) -> Any:
    """The values in a container of the tree's own kind: named tuples and the outputs of transformers are such."""
    if isinstance(tree, dict):
        return values if type(tree) is dict else type(tree)(**values)
    return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
