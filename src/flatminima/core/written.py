"""State that a network writes while it is measured, and how it comes back: counters, caches, features, generators.

It lies in the attributes of modules and in whatever these hold: collections, arrays, tensors that are no buffers, the
caller's objects, modules that are not registered. What hooks and functions keep outside of the model is not looked at.
"""

from __future__ import annotations

import random
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flatminima.core.identity import dense_parts

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
TABLES = ("_parameters", "_buffers", "_modules", *HOOKS)
_OWN = (*TABLES, "forward")  # attributes that no forward pass writes
_COLLECTIONS = (OrderedDict, dict, list, set, deque)  # a subclass before its base
_ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, type, ModuleType)
_ATOM_TYPES, _COLLECTION_TYPES = frozenset(_ATOMS), frozenset(_COLLECTIONS)
_DEEPEST = 3  # objects within each other
_MOST = 100_000  # values that are looked at
_FEW = 100  # entries of a collection that may hold generators
# packages whose objects no forward pass writes, and which hold much, or are of other threads too
_FOREIGN = ("logging", "threading", "_thread", "multiprocessing", "concurrent", "asyncio", "io", "_io", "socket",
            "weakref", "torch.jit", "torch.optim", "torch.utils.data", "torch.distributed", "torch.fx", "torch._dynamo",
            "lightning", "pytorch_lightning", "datasets", "pandas", "matplotlib")  # fmt: skip

Undo = Callable[[], object]


class Written:
    """Attributes of a model's modules and what these hold, as they are when this is made; weights are not among it."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._attributes = [(m, dict(vars(m))) for m in modules]
        self._buffers = [(m._buffers, dict(m._buffers)) for m in modules]
        walk = _Walk(modules)
        walk.over(value for _, kept in self._attributes for name, value in kept.items() if name not in TABLES)
        self._undo, self._empty = walk.undo, walk.empty

    def put_back(self) -> None:
        """All attributes, also those that are gone; new ones go."""
        for m, kept in self._attributes:
            vars(m).clear()
            vars(m).update(kept)
        self._put_back_what_they_hold()

    def take_away(self) -> None:
        """Undo what forward passes wrote since (counters, caches), within a block that may have changed the modules."""
        for m, kept in self._attributes:
            now = vars(m)
            for name in [k for k, v in now.items() if k not in _OWN and (k not in kept or kept[k] is not v)]:
                del now[name]
            now.update((k, v) for k, v in kept.items() if k not in _OWN)
        for table, entries in self._buffers:  # a forward pass may replace a buffer instead of writing into it
            if [*map(id, table.values())] != [*map(id, entries.values())]:
                table.update(entries)
        self._put_back_what_they_hold()

    def _put_back_what_they_hold(self) -> None:
        with torch.no_grad():
            for undo in self._undo:
                undo()
        for collection in self._empty:
            if collection:
                collection.clear()


class _Walk:
    """Visits what a model's modules hold, each once, and notes how to undo a change of it.

    Attributes:
        undo: to be called. empty: collections that were empty, as most tables of a module are.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.undo: list[Undo] = []
        self.empty: list[Any] = []
        self._modules, self._seen, self._left = modules, set(map(id, modules)), _MOST

    @cached_property
    def _own(self) -> set[tuple[str, int] | None]:
        """Storages of the weights and buffers, which somebody else puts back."""
        tables = (table for m in self._modules for table in (m._parameters, m._buffers))
        return {_place(t) for table in tables for t in table.values() if t is not None}

    def over(self, values: Iterable[Any]) -> None:
        """All values, and what these hold."""
        for value in values:
            if type(value) not in _ATOM_TYPES:
                self._within(value)

    def _within(self, value: Any) -> None:
        stack = [(value, _DEEPEST)]
        while stack and self._left:
            value, depth = stack.pop()
            if isinstance(value, _ATOMS) or id(value) in self._seen:
                continue
            self._seen.add(id(value))
            self._left -= 1
            if type(value) in _COLLECTION_TYPES and not value:
                self.empty.append(value)
                continue
            undo, inner, below = self._keep(value, depth)
            if undo is not None:
                self.undo.append(undo)
            stack += [(v, below) for v in inner]

    def _keep(self, value: Any, depth: int) -> tuple[Undo | None, Iterable[Any], int]:
        """How to put a value back, what it holds, and how deep objects may lie within it."""
        if isinstance(value, Tensor):
            return self._of_tensor(value), (), depth
        if isinstance(value, tuple | frozenset):
            return None, value, depth
        for base in _COLLECTIONS:
            if isinstance(value, base):
                return *_of_collection(base, value), depth
        if isinstance(value, np.ndarray | bytearray | array):
            fixed = isinstance(value, np.memmap) or (isinstance(value, np.ndarray) and not value.flags.writeable)
            return None if fixed else partial(_rewrite, value, _copied(value)), (), depth
        undo = _of_generator(value)
        if undo is not None or depth == 0 or _is_foreign(value):
            return undo, (), depth
        return *_of_object(value), depth if isinstance(value, nn.Module) else depth - 1

    def _of_tensor(self, tensor: Tensor) -> Undo | None:
        """A tensor that is no weight or buffer, nor lies in the memory of one."""
        place = _place(tensor)
        if place is None or place in self._own:
            return None
        return partial(_copy_back, tensor, tensor.detach().clone())


def _place(tensor: Tensor) -> tuple[str, int] | None:
    """Storage of a tensor; None: it has none that could be written."""
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer) or tensor.is_meta:
        return None
    if tensor.layout != torch.strided or tensor.is_nested or 0 in tensor.shape or 0 in tensor.stride():
        return None
    try:
        address = tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return None
    return (str(tensor.device), address) if address else None


def _is_foreign(value: Any) -> bool:
    home = type(value).__module__
    return any(home == package or home.startswith(f"{package}.") for package in _FOREIGN)


def _of_object(value: Any) -> tuple[Undo | None, Iterable[Any]]:
    """An object of the caller's: its attributes, in a table or in slots."""
    slots = [n for kind in type(value).__mro__ for n in _names(kind) if n[:2] != "__" and hasattr(value, n)]
    kept = {name: getattr(value, name) for name in slots}
    table = getattr(value, "__dict__", None)
    entries = list(table.items()) if isinstance(table, dict) else []
    if not kept and not isinstance(table, dict):
        return None, ()

    def undo() -> None:
        if isinstance(table, dict):
            _refill(dict, table, entries)
        for name, old in kept.items():
            if getattr(value, name, undo) is not old:
                object.__setattr__(value, name, old)

    return undo, [*kept.values(), *(v for _, v in entries)]


def _names(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _of_generator(value: Any) -> Undo | None:
    """How a generator of random numbers gets its state of now back; None: the value is none."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state().clone())
    if isinstance(value, np.random.Generator | np.random.BitGenerator):
        bits = value.bit_generator if isinstance(value, np.random.Generator) else value
        return partial(setattr, bits, "state", bits.state)
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return partial(value.setstate, value.getstate())
    return None


@contextmanager
def same_generators(root: Any) -> Iterator[None]:
    """Put the generators that data hold (loaders, samplers, datasets within each other) back after the block."""
    undo: list[Undo] = []
    seen: set[int] = set()
    level = [root]
    for _ in range(2 * _DEEPEST):
        level = [v for v in level if not isinstance(v, (*_ATOMS, Tensor)) and id(v) not in seen]
        seen.update(map(id, level))
        undo += [back for v in level if (back := _of_generator(v)) is not None]
        level = [v for held in level for v in _held_by(held)]
    try:
        yield
    finally:
        for back in undo:
            back()


def _held_by(value: Any) -> list[Any]:
    """Attributes of an object, or entries of a small collection (the transforms of a data set)."""
    if isinstance(value, dict | list | tuple):
        return [] if len(value) > _FEW else [*(value.values() if isinstance(value, dict) else value)]
    found = getattr(value, "__dict__", None)
    return [*found.values()] if isinstance(found, dict) else []


def _of_collection(base: Any, collection: Any) -> tuple[Undo, list[Any]]:
    """Entries by the base's methods: those of a subclass may count or refuse."""
    entries = [*base.items(collection)] if issubclass(base, dict) else [*base.__iter__(collection)]
    return partial(_refill, base, collection, entries), [v for _, v in entries] if issubclass(base, dict) else entries


def _refill(base: Any, collection: Any, entries: list[Any]) -> None:
    if issubclass(base, dict):
        now = [*base.items(collection)]
        same = len(now) == len(entries) and all(a is c and b is d for (a, b), (c, d) in zip(now, entries, strict=True))
    else:
        same = [*map(id, base.__iter__(collection))] == [*map(id, entries)]
    if not same:
        base.clear(collection)
        (base.extend if base in (list, deque) else base.update)(collection, entries)


def _copied(values: Any) -> Any:
    return values.copy() if isinstance(values, np.ndarray) else values[:]


def _rewrite(values: Any, kept: Any) -> None:
    """Entries of an array as they were; numpy's cannot change its length."""
    if not isinstance(values, np.ndarray):
        values[:] = kept
    elif values.shape == kept.shape and values.tobytes() != kept.tobytes():
        values[...] = kept


def _copy_back(tensor: Tensor, kept: Tensor) -> None:
    if tensor.shape != kept.shape:
        tensor.data = kept.clone()
    elif not same_entries(tensor, kept):
        tensor.copy_(kept)


def same_entries(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same; a NaN equals itself."""
    if a.layout != torch.strided:
        return all(same_entries(x, y) for x, y in zip(dense_parts(a), dense_parts(b), strict=True))
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
