"""Functions of a copied model: `copy.deepcopy` leaves a function as it is, with the original's layers in its closure.

A hook that adds an adapter (``layer.register_forward_hook(lambda m, args, out: out + adapter(args[0]))``) would compute
with the original's adapter in every copy, whose own weights move nothing.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Iterator, Mapping
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (list, tuple, dict, set, frozenset)
_DEEPEST = 6  # containers, objects and functions within each other
_LARGEST = 1000  # entries of a container of adapters


class Rebinding:
    """Counterparts of what belongs to a model, for its copy.

    Args:
        memo: of `copy.deepcopy`: id of an object of the original -> the copy's.
    """

    def __init__(self, memo: Mapping[int, Any]) -> None:
        self._memo = memo
        self._made: dict[int, Any] = {}  # functions, and those that are under way
        self._seen: set[int] = set()

    def rebind(self, other: nn.Module) -> None:
        """Replace the functions in the attributes, hooks and containers of the copy's modules."""
        for module in list(other.modules()):
            if not isinstance(module, torch.jit.ScriptModule):
                self._within(vars(module))

    def _within(self, holder: Any) -> None:
        """Replace what a container of the copy holds, in place."""
        if id(holder) in self._seen:
            return
        self._seen.add(id(holder))
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            if isinstance(value, dict | list):
                self._within(value)
                continue
            found = self._counterpart(value)
            if found is not value:
                holder[key] = found

    def _counterpart(self, value: Any, depth: int = _DEEPEST) -> Any:
        """The same for the copy; the value itself where it knows nothing of the original."""
        known = self._memo.get(id(value), self._made.get(id(value)))
        if known is not None or depth == 0:
            return value if known is None else known
        depth -= 1
        if isinstance(value, FunctionType):
            return self._function(value, depth)
        if isinstance(value, MethodType):
            parts = self._all((value.__func__, value.__self__), depth)
            return MethodType(*parts) if parts is not None else value
        if isinstance(value, functools.partial):
            return self._partial(value, depth)
        if isinstance(value, weakref.ref):
            referent = self._all((value(),), depth)
            return weakref.ref(*referent) if referent is not None else value
        if type(value) in _CONTAINERS:
            return self._container(value, depth) if len(value) <= _LARGEST else value
        return self._object(value, depth)

    def _container(self, value: Any, depth: int) -> Any:
        self._made[id(value)] = value  # where it holds itself
        parts = self._all(tuple(value.values()) if isinstance(value, dict) else tuple(value), depth)
        if parts is None:
            return value
        kind: Any = type(value)
        self._made[id(value)] = kind(zip(value, parts, strict=True) if kind is dict else parts)
        return self._made[id(value)]

    def _all(self, values: tuple[Any, ...], depth: int) -> tuple[Any, ...] | None:
        """Counterparts of the values; None: each is its own."""
        found = tuple(self._counterpart(v, depth) for v in values)
        return None if all(a is b for a, b in zip(found, values, strict=True)) else found

    def _partial(self, value: functools.partial[Any], depth: int) -> Any:
        parts = self._all((value.func, *value.args, *value.keywords.values()), depth)
        if parts is None:
            return value
        function, *given = parts
        count = len(value.args)
        made = functools.partial(function, *given[:count], **dict(zip(value.keywords, given[count:], strict=True)))
        vars(made).update(vars(value))
        return made

    def _object(self, value: Any, depth: int) -> Any:
        """An object outside of the model that holds parts of it: another that holds the copy's."""
        if isinstance(value, nn.Module | Tensor | ModuleType | type) or not isinstance(
            getattr(value, "__dict__", None), dict
        ):
            return value
        held = dict(vars(value))
        self._made[id(value)] = value  # where it holds itself
        parts = self._all(tuple(held.values()), depth)
        if parts is not None:
            self._made[id(value)] = made = copy.copy(value)
            vars(made).update(zip(held, parts, strict=True))
        return self._made[id(value)]

    def _function(self, function: FunctionType, depth: int) -> Any:
        """A function with the copy's parts in its closure, its defaults and its globals."""
        cells, defaults, keywords = function.__closure__, function.__defaults__, function.__kwdefaults__ or {}
        known = self._globals(function)
        space = {**function.__globals__, **known} if known else function.__globals__
        empty = None if cells is None else tuple(CellType() for _ in cells)
        made = FunctionType(function.__code__, space, function.__name__, defaults, empty)
        self._made[id(function)] = made  # where it knows itself
        held = [(old, new) for old, new in zip(cells or (), empty or (), strict=True) if _filled(old)]
        inside = self._all(tuple(old.cell_contents for old, _ in held), depth)
        given = self._all(defaults or (), depth)
        named = self._all(tuple(keywords.values()), depth)
        if not known and inside is given is named is None:
            self._made[id(function)] = function
            return function
        for i, (old, new) in enumerate(held):
            new.cell_contents = old.cell_contents if inside is None else inside[i]
        made.__defaults__ = given or defaults
        made.__kwdefaults__ = dict(zip(keywords, named or keywords.values(), strict=True)) or None
        made.__qualname__, made.__module__, made.__doc__ = function.__qualname__, function.__module__, function.__doc__
        vars(made).update(vars(function))
        return made

    def _globals(self, function: FunctionType) -> dict[str, Any]:
        """Parts of the copy by the global names that the function may look up."""
        found = {name: self._memo.get(id(function.__globals__.get(name))) for name in _names(function.__code__)}
        return {name: part for name, part in found.items() if part is not None}


def _filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names(code: CodeType) -> Iterator[str]:
    """Names that code and the functions within it may look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
