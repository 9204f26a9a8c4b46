"""Numbers that a network has beside its parameters: in its code, its attributes, or integers that are no structure.

They belong to P and Q alike and no seed changes them, so samples kept there would be part of the prior. What a function
of the caller's can reach is looked through: globals, closures, defaults, constants, class attributes, hooks. Installed
packages and the files that a function reads are not.
"""

from __future__ import annotations

import dis
import functools
import itertools
import sys
import sysconfig
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OWN = str(Path(__file__).parents[1])
MOST_NUMBERS = 64  # held by one value: a table of that many may be a constant of the architecture
_BYTES_AN_ENTRY = 0.25  # of integers, compressed, above which they are data rather than indices or masks
_INSTALLED = tuple(sysconfig.get_paths()[k] for k in ("stdlib", "platstdlib", "purelib", "platlib"))
_DEPTH = 3  # containers within containers
_MOST_LOOKED_AT = 100_000  # entries of one

_REGISTERED = frozenset(vars(nn.Module())) | {
    "_parametrizations",
    "_flat_weights",
    "_flat_weights_names",
    "_all_weights",
}


def numbers_held(network: nn.Module, *functions: Any) -> list[str]:
    """Names of what holds more than 64 numbers beside the network's parameters and floating-point buffers.

    Args:
        network: its modules' attributes, code and hooks are looked through. functions: those that made it.
    """
    found = [
        f"{name}.{key}".lstrip(".")
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if key not in _REGISTERED and f"{key}_orig" not in module._parameters and size_of(value) > MOST_NUMBERS
    ]
    found += [name for name, t in network.named_buffers() if not t.is_floating_point() and is_data(t)]
    seen: set[int] = set()
    own = {id(t) for t in [*network.parameters(), *network.buffers()]}
    for kind in {type(module) for module in network.modules()}:
        found += _of_class(kind, seen, own)
    for module in network.modules():
        hooks = [
            hook for key, value in vars(module).items() if key.endswith("hooks") and value for hook in value.values()
        ]
        replaced = [value for value in vars(module).values() if callable(value) and not isinstance(value, nn.Module)]
        for function in (*hooks, *replaced):
            found += _of_function(function, seen, own)
    for function in functions:
        found += _of_function(function, seen, own)
    return sorted(set(found))


def size_of(value: Any, depth: int = _DEPTH) -> int:
    """Count the numbers that a value holds, its containers and attributes included."""
    if isinstance(value, bool | int | float | complex | np.number | np.bool_):
        return 1 + (value.bit_length() // 64 if isinstance(value, int) else 0)
    if isinstance(value, Tensor):
        return value.numel() if value.is_floating_point() or is_data(value) else 0
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, bytes | bytearray | str):
        return len(value) // 16
    if isinstance(value, nn.Module):
        return sum(t.numel() for t in [*value.parameters(), *value.buffers()])
    if depth == 0 or isinstance(value, type | types.ModuleType | types.FunctionType):
        return 0
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return sum(size_of(v, depth - 1) for v in itertools.islice(value, _MOST_LOOKED_AT))
    return sum(size_of(v, depth - 1) for v in vars(value).values()) if hasattr(value, "__dict__") else 0


def is_data(t: Tensor) -> bool:
    """Whether integers are too irregular to be indices or a mask: neither they nor their steps compress."""
    if t.numel() <= MOST_NUMBERS or t.device.type == "meta":
        return False
    values = t.detach().cpu().to(torch.int64).numpy()
    steps = (values, np.diff(values.reshape(-1)), np.diff(values, axis=-1), np.diff(values, axis=0))
    least = min(len(zlib.compress(np.ascontiguousarray(s).tobytes(), 9)) for s in steps if s.size)
    return least > max(MOST_NUMBERS, _BYTES_AN_ENTRY * t.numel())


def _of_class(kind: type, seen: set[int], own: set[int]) -> Iterator[str]:
    """What a class of the caller's, and its functions, hold."""
    for base in kind.__mro__:
        if _of_library(base) or id(base) in seen:
            continue
        seen.add(id(base))
        for key, value in vars(base).items():
            if key.startswith("__") and not callable(value):
                continue
            inner = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
            if callable(inner) and not isinstance(inner, type):
                yield from _of_function(inner, seen, own)
            elif size_of(value) > MOST_NUMBERS:
                yield f"{base.__name__}.{key}"


def _of_function(function: Any, seen: set[int], own: set[int]) -> Iterator[str]:
    """What a function of the caller's can reach by name."""
    if isinstance(function, functools.partial):
        for value in (*function.args, *function.keywords.values()):
            yield from _of_value("partial", value, seen, own)
        function = function.func
    bound = getattr(function, "__self__", None)
    function = getattr(function, "__func__", function)
    function = getattr(function, "__wrapped__", function)
    if bound is not None and not isinstance(bound, nn.Module | type | types.ModuleType):
        yield from _of_value(f"{type(bound).__name__}", bound, seen, own)
    code = getattr(function, "__code__", None)
    if code is None or id(function) in seen or code.co_filename.startswith((*_INSTALLED, _OWN, "<frozen")):
        return
    seen.add(id(function))
    where = function.__qualname__
    names, held = set(_names(code)), function.__globals__
    reach: list[tuple[str, Any]] = [(n, held[n]) for n in _global_names(code) if n in held]
    reach += [(n, getattr(m, n)) for _, m in list(reach) if _own_module(m) for n in names if hasattr(m, n)]
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            reach.append((name, cell.cell_contents))
        except ValueError:  # not yet filled
            continue
    reach += [("its defaults", d) for d in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())]
    reach += [("its constants", c) for c in _constants(code)]
    for name, value in reach:
        yield from _of_value(f"{name} in {where}", value, seen, own)


def _of_value(name: str, value: Any, seen: set[int], own: set[int]) -> Iterator[str]:
    if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
        yield from _of_function(value, seen, own)
    elif isinstance(value, type):
        if not issubclass(value, BaseException):
            yield from _of_class(value, seen, own)
    elif not isinstance(value, types.ModuleType) and id(value) not in own and size_of(value) > MOST_NUMBERS:
        yield name


def _own_module(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and not _installed(value)


def _of_library(kind: type) -> bool:
    """Whether a class belongs to Python or to an installed package, under the name that it says."""
    home = sys.modules.get(kind.__module__)
    found: Any = home
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind and _installed(home)


def _installed(module: Any) -> bool:
    path = getattr(module, "__file__", None)
    return path is None or str(path).startswith((*_INSTALLED, _OWN))


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that code uses, those of attributes too, in functions within it too."""
    for part in _codes(code):
        yield from part.co_names


def _global_names(code: types.CodeType) -> set[str]:
    """Names that code reads from its globals; `self.table` is not the caller's variable `table`."""
    return {
        str(instruction.argval)
        for part in _codes(code)
        for instruction in dis.get_instructions(part)
        if "GLOBAL" in instruction.opname or instruction.opname == "LOAD_NAME"
    }


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Code and that of functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _constants(code: types.CodeType) -> Iterator[Any]:
    """Constants of code, its documentation left out."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _constants(constant)
        elif not isinstance(constant, str):
            yield constant
