"""Contents of a value: its numbers and texts, and the functions, classes and modules that it leads to.

Objects are followed as the garbage collector follows them, so that no code of theirs runs; memory that C code manages
is read through the buffer protocol, or pickled. What can be neither is named: its numbers cannot be counted.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import contextvars
import copyreg
import ctypes
import datetime
import decimal
import functools
import gc
import io
import logging
import pickle
import queue
import random
import re
import sys
import threading
import types
import typing
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima.certification.information import (
    MOST_NUMBERS,
    in_array,
    in_bytes,
    in_floats,
    in_integers,
    in_texts,
    values_of,
)

_MOST_LOOKED_AT = 1_000_000  # objects in one value
_LARGE = 1 << 24  # entries of an array that is not compared with others; so many floats are numbers
_MOST_PICKLED = 1 << 20  # bytes of one object

_SCALARS = {bool, int, float}
LINKS = (types.FunctionType, type, types.ModuleType, types.CodeType)

_CACHE = functools.lru_cache(int)
_CACHE(0)
_CACHED = [type(thing) for thing in gc.get_referents(*gc.get_referents(_CACHE)) if "lru" in type(thing).__name__]

# C types whose memory is what the garbage collector sees, or no numbers
_TRANSPARENT: tuple[type, ...] = (
    int, float, complex, str, bytes, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta,
    dict, list, tuple, set, frozenset, collections.deque, types.MappingProxyType, type({}.keys()), type({}.values()),
    type({}.items()), type(collections.OrderedDict().keys()), functools.partial, types.MethodType, types.CellType,
    property, staticmethod, classmethod, type(functools.lru_cache(int)), types.SimpleNamespace, BaseException, super,
    types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType,
    types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType, types.GenericAlias,
    types.UnionType, queue.SimpleQueue, *_CACHED,
    types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType,
)  # fmt: skip
# What holds no table but in attributes: names of types, random states, locks, files
_EMPTY: tuple[type, ...] = (
    type(None), type(...), type(NotImplemented), torch.dtype, torch.layout, torch.memory_format, torch.device,
    torch.finfo, torch.iinfo, torch.Generator, np.dtype, np.random.Generator, np.random.RandomState,
    np.random.BitGenerator, random.Random, types.TracebackType, types.FrameType, io.FileIO, io.BufferedReader,
    io.BufferedWriter, io.TextIOWrapper, typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple, threading.local,
    type(threading.Lock()), type(threading.RLock()), type(vars(abc.ABC)["_abc_impl"]),
    getattr(torch._C, "_DispatchModule", type(None)),
)  # fmt: skip
_POINTERS = (ctypes._Pointer, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_wchar_p)  # to memory of unknown size
_RECORDS = ("PyCapsule", "pybind11_detail_function_record")  # of functions in C
_MACHINERY = ("torch._dynamo.", "pydantic_core.", "pandas._libs.internals")
_REST_OF_LOGGING = {"manager", "parent", "root", "handlers"}  # attributes of a logger


class Contents:
    """All that a value holds, by kind.

    Args:
        seen: objects that were looked at, by identity; they are skipped, and those met here are added.
        amounts: what was counted in arrays, by content.

    Attributes:
        links: functions, classes, modules and code, which are not followed here.
        uncounted: names of the types of what cannot be looked into.
    """

    def __init__(self, seen: dict[int, Any], amounts: dict[int, float]) -> None:
        self.seen, self.amounts = seen, amounts
        self.integers: list[int] = []
        self.floats: list[float] = []
        self.arrays: dict[int, np.ndarray] = {}
        self.texts: set[str] = set()
        self.documentation: set[str] = set()
        self.data: list[bytes] = []
        self.links: list[Any] = []
        self.uncounted: list[str] = []

    @property
    def numbers(self) -> float:
        """Count of numbers of 32 bits that they are."""
        for key in self.arrays.keys() - self.amounts.keys():
            self.amounts[key] = in_array(self.arrays[key])
        held = sum(self.amounts[key] for key in self.arrays) + in_bytes(b"".join(self.data))
        held += in_integers(np.array(self.integers, dtype=np.int64)) + in_floats(np.array(self.floats))
        return held + in_texts(self.texts) + in_texts(self.documentation, documentation=True)

    def more_than(self, most: float) -> bool:
        """Whether they are more numbers; most values need not be compressed to tell."""
        at_most = len(self.integers) + len(self.floats) + sum(a.size for a in self.arrays.values())
        at_most += sum(map(len, [*self.data, *self.texts, *self.documentation]))
        return at_most > most and self.numbers > most

    def join(self, other: Contents) -> None:
        """Take in what another holds, equal arrays and texts once."""
        self.integers += other.integers
        self.floats += other.floats
        self.arrays |= other.arrays
        self.texts |= other.texts
        self.documentation |= other.documentation
        self.data += other.data

    def add(self, value: Any) -> Contents:
        """Look through a value."""
        ahead = [value]
        for _ in range(_MOST_LOOKED_AT):
            if not ahead:
                return self
            ahead += self._parts(ahead.pop())
        self.uncounted.append("too large")
        return self

    def _parts(self, value: Any) -> Iterable[Any]:
        """Objects within it, after its own numbers were taken."""
        if self._taken(value) or id(value) in self.seen:
            return ()
        self.seen[id(value)] = value
        if isinstance(value, LINKS):
            self.links.append(value)
            return ()
        if isinstance(value, Tensor | np.ndarray):
            return self._array(value)
        if type(value) in (list, tuple) and len(value) > MOST_NUMBERS and {*map(type, value)} <= _SCALARS:
            array = np.array(value)
            return value if array.dtype.hasobject else self._array(array)
        known = _parts_of_c(value)
        if known is not None:
            return known
        if not _has_own_memory(type(value)):  # type: ignore[arg-type]
            return gc.get_referents(value)
        return self._foreign(value)

    def _taken(self, value: Any) -> bool:
        """Whether a value is one number or text, or nothing."""
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, int):
            if -(1 << 63) <= value < 1 << 63:
                self.integers.append(int(value))
            else:
                self.data.append(value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
        elif isinstance(value, float | complex):
            self.floats += (value.real, value.imag) if isinstance(value, complex) else (value,)
        elif isinstance(value, str | decimal.Decimal | datetime.date | datetime.time | datetime.timedelta):
            self.texts.add(str(value))
        elif isinstance(value, bytes):
            self.data.append(value)
        else:
            return value is None
        return _built_in(type(value))  # a subclass may have attributes besides

    def _array(self, value: Tensor | np.ndarray) -> Iterable[Any]:
        if isinstance(value, Tensor):
            large = value.is_floating_point() and value.numel() > _LARGE
            array = None if large else values_of(value)
        else:
            array = value
        if array is None:
            self._doubt(value, value.numel() if isinstance(value, Tensor) else 0)
        elif array.dtype.hasobject:
            return array.reshape(-1).tolist()
        elif array.size:
            known = array.tobytes() if array.size < _LARGE else id(value)
            self.arrays[hash((array.shape, array.dtype.str, known))] = np.asarray(array)
        return vars(value).values() if hasattr(value, "__dict__") else ()

    def _foreign(self, value: Any) -> Iterable[Any]:
        """Take the memory of an object that C code manages."""
        if isinstance(value, _POINTERS):
            self._doubt(value)
            return ()
        try:
            return self._array(np.asarray(memoryview(value)))
        except (TypeError, ValueError, BufferError, NotImplementedError):
            pass
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target = _Limited()
                pickle.Pickler(target, protocol=4).dump(value)
            self.data.append(target.getvalue())
        except Exception:  # whatever its methods raise
            self._doubt(value)
        return ()

    def _doubt(self, value: Any, size: float = float("inf")) -> None:
        if size > MOST_NUMBERS:
            self.uncounted.append(type(value).__name__)


class _Limited(io.BytesIO):
    """A buffer of at most so many bytes."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > _MOST_PICKLED:
            raise OverflowError("larger than it may be")
        return super().write(data)


def _parts_of_c(value: Any) -> Iterable[Any] | None:
    """Objects within one whose memory is known not to matter, or that has a way of its own to tell; None for others."""
    kind = type(value)
    if isinstance(value, _EMPTY) or _of_machinery(kind):
        return (kind, *getattr(value, "__dict__", {}).values()) if isinstance(value, _EMPTY) else ()
    if "__members__" in vars(kind) and not kind.__dictoffset__ and _has_own_memory(kind):  # type: ignore[arg-type]
        return int(value), str(value)  # of an enumeration in C++
    if isinstance(value, range | slice):
        return value.start, value.stop, value.step
    if isinstance(value, re.Pattern):
        return (value.pattern,)
    if isinstance(value, logging.Logger):
        return (kind, *(v for key, v in vars(value).items() if key not in _REST_OF_LOGGING))
    if isinstance(value, types.BuiltinFunctionType):
        record = type(value.__self__)
        return () if record.__name__.startswith(_RECORDS) and _has_own_memory(record) else None  # type: ignore[arg-type]
    if isinstance(value, torch.jit.ScriptFunction):
        graph: Any = value.inlined_graph  # which its nodes do not keep alive
        return [node.output().toIValue() for node in graph.findAllNodes("prim::Constant")]
    if kind in weakref.ProxyTypes:
        with contextlib.suppress(ReferenceError):
            return (getattr(value.__init__, "__self__", None),)
    if isinstance(value, weakref.ref):
        return (value(),)
    return (value.get(None),) if isinstance(value, contextvars.ContextVar) else None


def _built_in(kind: type) -> bool:
    """Whether a type is one that nobody can change."""
    return kind.__flags__ & 1 << 8 != 0


def _of_machinery(kind: type) -> bool:
    """Whether instances are settings of torch.compile, validators of pydantic or what pandas counts references with."""
    home = kind.__module__
    known = home.startswith(_MACHINERY) and not issubclass(kind, torch.nn.Module)  # a compiled module is one
    return known and getattr(sys.modules.get(home), kind.__name__, None) is kind


@functools.cache
def _has_own_memory(kind: type) -> bool:
    """Whether instances have memory beyond their attributes, by the rule that `object.__reduce_ex__` refuses by."""
    if issubclass(kind, _TRANSPARENT) or (kind.__name__ == "instancemethod" and _built_in(kind)):
        return False
    pointer = ctypes.sizeof(ctypes.c_void_p)
    expected = object.__basicsize__ + pointer * len(copyreg._slotnames(kind) or ())  # type: ignore[attr-defined]
    expected += pointer * ((kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0))
    return kind.__basicsize__ > expected or kind.__itemsize__ != 0
