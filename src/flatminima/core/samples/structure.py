"""Nested inputs and collated batches: their tensors, and which entry is the target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flatminima.core.samples.convert import as_tensor, as_tensors
from flatminima.errors import DataError

Inputs = Any  # a tensor, or a tuple, list or mapping of them
TARGETS = ("labels", "label", "targets", "target")  # keys of a mapping


def split_batch(batch: Any) -> tuple[Inputs, Tensor]:
    """(inputs, targets) from a collated batch: a pair, a longer tuple (last is the target), or a dict with labels.

    Raises:
        DataError: none of these, or an entry that is no tensor.
    """
    if isinstance(batch, Mapping):
        key = target_key(batch)
        return as_tensors({k: v for k, v in batch.items() if k != key}), _target(batch[key])
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
        inputs = batch[0] if len(batch) == 2 else tuple(batch[:-1])
        return as_tensors(inputs), _target(batch[-1])
    raise DataError(f"got a batch of type {type(batch).__name__}; expected (inputs, targets) or a dict with labels")


def _target(value: Any) -> Tensor:
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        raise DataError(f"got a target of {len(value)} tensors a batch; expected one")
    return as_tensor(value, "target")


def target_key(batch: Mapping[Any, Any]) -> Any:
    """The key of the target in a mapping. Raises DataError where there is none."""
    for key in TARGETS:
        if key in batch:
            return key
    raise DataError(f"got a batch with keys {sorted(map(str, batch))}; expected one of {', '.join(TARGETS)}")


def leaves(inputs: Inputs) -> list[Tensor]:
    """The tensors of nested inputs."""
    if isinstance(inputs, Tensor):
        return [inputs]
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    if isinstance(inputs, str) or not isinstance(values, Iterable):
        raise DataError(f"got an input of type {type(inputs).__name__}; expected tensors")
    return [leaf for value in values for leaf in leaves(value)]


def map_tensors(function: Any, inputs: Inputs) -> Inputs:
    """Nested inputs with `function` applied to each tensor."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {k: map_tensors(function, v) for k, v in inputs.items()}
    return tuple(map_tensors(function, v) for v in inputs)


def concatenate(parts: list[Inputs]) -> Inputs:
    """Nested inputs of several batches after each other."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], Mapping):
        return {k: concatenate([p[k] for p in parts]) for k in parts[0]}
    return tuple(concatenate(list(group)) for group in zip(*parts, strict=True))


def shapes(inputs: Inputs, targets: Tensor) -> str:
    """The shapes and dtypes of one sample's entries, for messages."""
    tensors = [*leaves(inputs), targets]
    return ", ".join(f"{tuple(t.shape[1:])} {str(t.dtype).removeprefix('torch.')}" for t in tensors)
