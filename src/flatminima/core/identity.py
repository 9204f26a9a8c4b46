"""Whether a network is still the one that it was: its weights, its layers, its forward functions, its settings.

A tensor's version counter counts every write, those of the library too, which put back what was there. A write that
was undone is therefore noted here, so that the moves of one `Minimum` do not make another of the same model stale.

Settings are what the attributes of modules hold, as marks that are equal as long as nothing there was changed: numbers,
text, functions with what they enclose, tensors and arrays by some of their entries, collections, and objects of the
caller's by their own attributes; anything else is itself and no other. What forward passes write is left out of it.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

_SAMPLE = 4096  # entries of a tensor that are compared
_UNDONE: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> (its version now, the version with the same content)
_LAYER = ""  # of `structure`: the module itself
_ATOMS = frozenset((type(None), bool, int, complex, str, bytes, torch.dtype, torch.device, torch.Size))
_FUNCTIONS = (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType, type)
_METHODS = (types.FunctionType, property, staticmethod, classmethod)
_TORCHS_OWN = {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_compiled_call_impl",
               "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_is_full_backward_hook",
               "_load_state_dict_post_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
               "_forward_pre_hooks_with_kwargs"}  # fmt: skip
_HOOKS = {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"}
_DEEPEST = 4  # values within each other
_LONGEST = 256  # entries of a collection, or attributes of an object, that are looked at
_MOST = 20_000  # values in all
# packages whose objects hold much that says nothing of outputs
_FOREIGN = {"torch", "numpy", "logging", "threading", "_thread", "weakref", "io", "_io", "lightning", "datasets",
            "pytorch_lightning", "accelerate", "multiprocessing", "concurrent", "asyncio"}  # fmt: skip


def version(tensor: Tensor) -> int:
    """Version counter of a tensor's content; tensors of inference mode have none."""
    return -1 if tensor.is_inference() else tensor._version


def content_version(tensor: Tensor) -> int:
    """The version at which the content of now was written by anyone but this library."""
    now, before = _UNDONE.get(tensor, (None, 0))
    return before if now == version(tensor) else version(tensor)


def same_content(tensor: Tensor, before: int) -> None:
    """Note that the content is again, bit for bit, that of `content_version` before."""
    _UNDONE[tensor] = (version(tensor), before)


def dense_parts(tensor: Tensor) -> list[Tensor]:
    """Strided tensors that hold what a tensor of any layout holds."""
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense()]


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """Changes whenever a parameter or buffer is written."""
    return marks_of(tensors_of(model))


def marks_of(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    """Versions of tensors, and a sample of their entries for writes to ``.data``."""
    marks: list[Any] = []
    samples: list[Tensor] = []
    for t in tensors:
        marks.append((id(t), content_version(t), tuple(t.shape), t.requires_grad))
        samples += [sample_bytes(part) for part in dense_parts(t.detach())]
    by_device: dict[torch.device, list[Tensor]] = {}
    for sample in samples:
        by_device.setdefault(sample.device, []).append(sample)
    content = tuple(torch.cat(parts).cpu().numpy().tobytes() for parts in by_device.values())  # one copy a device
    return (tuple(marks), hash(content))


def sample_bytes(tensor: Tensor) -> Tensor:
    """Entries at equal distances, as bytes (k,) uint8: a NaN equals itself, and entries that changed places do not."""
    n = tensor.numel()
    if n == 0:
        return torch.empty(0, dtype=torch.uint8, device=tensor.device)
    step = -(-n // _SAMPLE)
    if tensor.is_contiguous():
        entries = tensor.reshape(-1)[::step]
    elif step == 1:
        entries = tensor.reshape(-1)
    else:
        where = torch.arange(0, n, step, device=tensor.device)
        entries = tensor[torch.unravel_index(where, tensor.shape)]
    if entries.is_complex():
        entries = torch.view_as_real(entries)
    return entries.contiguous().view(-1).view(torch.uint8)


def structure(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Layer, forward function and settings (an active adapter) of each module, by (module, name)."""
    out = settings(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # compiled: its forward and settings are what they are
            out[name, _LAYER] = (id(module), 0, ())
            continue
        forward = vars(module).get("forward", type(module).forward)
        out[name, _LAYER] = (id(module), id(getattr(forward, "__func__", forward)), tuple(module._modules))
    return out


def differing(before: dict[tuple[str, str], Any], now: dict[tuple[str, str], Any]) -> set[tuple[str, str]]:
    """Entries that one has and the other lacks or has otherwise."""
    return {k for k in before.keys() | now.keys() if k not in before or k not in now or before[k] != now[k]}


def settings(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Marks of the attributes of all modules and of their classes: (module, attribute) -> mark."""
    marks = _Marks(model)
    out: dict[tuple[str, str], Any] = {}
    for name, module in model.named_modules():
        compiled = isinstance(module, torch.jit.ScriptModule)
        for k, v in ({} if compiled else vars(module)).items():
            if k not in _TORCHS_OWN:
                out[name, k] = marks.hooks(v) if k in _HOOKS else marks.of(v)
    for kind in dict.fromkeys(type(module) for module in model.modules()):
        home = f"class {kind.__qualname__}"
        out.update(((home, k), (v,) if type(v) in _METHODS else marks.of(v)) for k, v in _of_class(kind))
    return out


def _of_class(kind: type) -> Iterator[tuple[str, Any]]:
    """What the caller's classes define, the derived ones last."""
    for base in reversed(kind.__mro__):
        if base.__module__.partition(".")[0] not in ("torch", "builtins"):
            yield from ((k, v) for k, v in vars(base).items() if not k.startswith(("__", "_abc_")))


class _Marks:
    """Marks of values, each looked at once."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[int, Any] = {}
        self._left = _MOST

    @cached_property
    def _registered(self) -> set[int]:
        """Ids of modules, weights and buffers, which somebody else looks at."""
        model = self._model
        return {id(x) for found in (model.modules(), model.parameters(), model.buffers()) for x in found}

    @cached_property
    def _storages(self) -> set[int]:
        tensors = [*self._model.parameters(), *self._model.buffers()]
        return {part.untyped_storage().data_ptr() for t in tensors for part in dense_parts(t.detach())}

    def hooks(self, table: dict[int, Any]) -> Any:
        """Identity of the functions, whatever number each was registered by."""
        return tuple(self.of(hook) for hook in table.values()) if table else ()

    def of(self, value: Any, depth: int = _DEEPEST) -> Any:
        """The mark of a value, in which the values within it are looked at down to a depth."""
        kind = type(value)
        if kind in _ATOMS:
            return kind, value
        if kind is float:  # NaN is not equal to itself
            return kind, repr(value)
        key = id(value)
        if key in self._known:
            return self._known[key]
        self._known[key] = (kind, key)  # within itself
        self._left -= 1
        if depth and self._left > 0:
            self._known[key] = self._made(value, kind, depth - 1)
        elif isinstance(value, Tensor | np.ndarray):  # which may have been put back as another of the same contents
            self._known[key] = (kind, tuple(value.shape))
        elif isinstance(value, dict | list | tuple | set | frozenset | deque):  # as may these, or be of our making
            self._known[key] = (kind, len(value))
        return self._known[key]

    def _made(self, value: Any, kind: type, depth: int) -> Any:
        if isinstance(value, Tensor):
            return (kind, id(value)) if id(value) in self._registered else self._of_tensor(value)
        if isinstance(value, np.ndarray):
            return _of_array(value)
        if isinstance(value, Enum | np.generic):
            return kind, repr(value)
        if isinstance(value, _FUNCTIONS):
            return (value,)
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
            return (value, *(self.of(v, depth) for v in (cells, value.__defaults__, value.__kwdefaults__)))
        if isinstance(value, partial):
            return (kind, *(self.of(v, depth) for v in (value.func, value.args, value.keywords)))
        if isinstance(value, types.MethodType):
            return (kind, self.of(value.__func__, depth), self.of(value.__self__, depth))
        if isinstance(value, dict | list | tuple | set | frozenset | deque):
            return self._of_collection(value, kind, depth)
        return self._of_object(value, kind, depth)

    def _of_tensor(self, tensor: Tensor) -> Any:
        """Some entries; of a large one, which and how often it was written, but where that is a weight's count."""
        mark: tuple[Any, ...] = (tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
        try:
            parts = dense_parts(tensor.detach())
            mark += tuple(sample_bytes(part).cpu().numpy().tobytes() for part in parts)
            if tensor.numel() > _SAMPLE and not {p.untyped_storage().data_ptr() for p in parts} & self._storages:
                mark += id(tensor), content_version(tensor)
        except (RuntimeError, NotImplementedError, TypeError):  # it has no entries that can be read
            mark += (id(tensor),)
        return mark

    def _of_collection(self, value: Any, kind: type, depth: int) -> Any:
        if len(value) > _LONGEST:
            step = -(-len(value) // _LONGEST)
            some = list(value.items() if isinstance(value, dict) else value)[::step]
            return (kind, len(value), *(self.of(v, depth) for v in some))
        if isinstance(value, dict):
            return (kind, *((self.of(k, depth), self.of(v, depth)) for k, v in value.items()))
        marks = (self.of(v, depth) for v in value)
        return (kind, frozenset(map(repr, marks))) if isinstance(value, set | frozenset) else (kind, *marks)

    def _of_object(self, value: Any, kind: type, depth: int) -> Any:
        """An object of the caller's by its attributes, a module that is not registered by its weights too."""
        if id(value) in self._registered or isinstance(value, torch.jit.ScriptModule):
            return kind, id(value)
        if isinstance(value, nn.Module):
            held = {k: v for k, v in vars(value).items() if k not in _TORCHS_OWN}
            return kind, self.of([held, value._parameters, value._buffers, value._modules], depth + 1)
        if kind.__module__.partition(".")[0] in _FOREIGN:
            return kind, id(value)
        slots = {n for base in kind.__mro__ for n in vars(base).get("__slots__", ()) if n[:2] != "__"}
        held = getattr(value, "__dict__", {}) | {n: getattr(value, n) for n in slots if hasattr(value, n)}
        if not held or len(held) > _LONGEST:
            return kind, id(value)
        return (kind, *((k, self.of(v, depth)) for k, v in held.items()))


def _of_array(array: np.ndarray[Any, Any]) -> Any:
    entries = array.reshape(-1)[:: max(1, -(-array.size // _SAMPLE))]
    return array.shape, array.dtype.str, entries.tobytes() if array.dtype != object else id(array)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*model.parameters(), *(b for b in model.buffers() if b is not None)]
