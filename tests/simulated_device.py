"""A device that is not there: tensors that claim to lie on it, and the errors that an accelerator would raise.

Within `SimulatedDevice()` a tensor moved to "mps" stays in this machine's memory and is remembered, by its storage, as
lying elsewhere. Its `device` says so; operators that mix it with tensors of the CPU, or draw for it from a generator of
the CPU, raise as CUDA does, and so does `numpy()`. What this cannot show: speed, rounding, kernels that a device lacks.
"""

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

DEVICE = torch.device("mps:0")  # a name that needs no build of its own, and nothing in the library asks for it
CPU = torch.device("cpu")
# operators that CUDA lets take tensors of the CPU, too: copies, and indices
_BETWEEN = {"aten::copy_", "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}

_there: dict[int, StorageWeakRef] = {}  # a weak reference keeps the address from being used again
_generators: dict[int, torch.Generator] = {}
_Generator = torch.Generator
_run_backward = torch.autograd.graph._engine_run_backward


class SimulatedDevice:
    """A `with` block in which the device "mps" can be used."""

    def __init__(self) -> None:
        self.within = 0  # calls of torch's own functions with tensors of the device: what they make lies there
        self._stack = ExitStack()

    def __enter__(self) -> "SimulatedDevice":
        for context in (
            _Operators(self),
            _Questions(self),
            patch("torch.Generator", _Made),
            patch("torch.autograd._engine_run_backward", self._backward),
            patch("torch._tensor.torch.autograd.graph._engine_run_backward", self._backward),
        ):
            self._stack.enter_context(context)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def _backward(self, *args: Any, **kwargs: Any) -> Any:
        """Hooks ask questions as well, and torch has put the mode aside by now."""
        within, self.within = self.within, int(any(map(lies_there, args[0])))
        try:
            with _Questions(self):
                return _run_backward(*args, **kwargs)
        finally:
            self.within = within


def lies_there(tensor: Tensor) -> bool:
    """Whether a tensor was moved to the device, or made of one that was."""
    storage = _storage(tensor)
    return storage is not None and storage._cdata in _there


def _take(tensor: Tensor) -> None:
    storage = _storage(tensor)
    if storage is not None:
        _there[storage._cdata] = StorageWeakRef(storage)


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def _names(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


class _Kind(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, _Generator)


class _Made(metaclass=_Kind):
    """In place of torch.Generator: one of the CPU, remembered where it was asked for elsewhere."""

    def __new__(cls, device: Any = CPU) -> Any:
        made = _Generator()
        if _names(device):
            _generators[id(made)] = made
        return made


class _Operators(TorchDispatchMode):
    """What lies where: an operator's result lies where its arguments do."""

    def __init__(self, place: SimulatedDevice) -> None:
        super().__init__()
        self.place = place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        there = [lies_there(t) for t in tensors]
        pairs = list(zip(tensors, there, strict=True))
        if name not in _BETWEEN and any(there) and any(t.dim() and not has for t, has in pairs):
            found = [(tuple(t.shape), str(DEVICE if has else CPU)) for t, has in pairs]
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found {found}")
        goes = any(there[:1] if name in _BETWEEN else there) if tensors else self.place.within > 0
        result = func(*args, **kwargs)
        if goes:
            tree_map_only(Tensor, _take, result)
        return result


class _Questions(TorchFunctionMode):
    """Python's own questions: where a tensor lies, and the moves from one device to the other."""

    def __init__(self, place: SimulatedDevice) -> None:
        super().__init__()
        self.place = place

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        there = bool(args) and isinstance(args[0], Tensor) and lies_there(args[0])
        if there and func == Tensor.device.__get__:
            return DEVICE
        if there and func is Tensor.numpy:
            raise TypeError(f"can't convert {DEVICE} tensor to numpy. Use Tensor.cpu() to copy it to host memory first")
        if func in (Tensor.to, Tensor.cpu):
            return _moved(func, args, kwargs, there)
        goes = there
        if kwargs.get("device") is not None:
            goes = _names(kwargs["device"])
            kwargs["device"] = CPU
        generator = kwargs.get("generator")
        if generator is not None and (id(generator) in _generators) != goes:
            raise RuntimeError(f"{func.__name__}: expected a generator of {DEVICE if goes else CPU}, not of the other")
        within, self.place.within = self.place.within, int(goes)
        try:
            result = func(*args, **kwargs)
        finally:
            self.place.within = within
        if goes and "device" in kwargs:  # ones_like and its kin may be asked for another than their argument's
            tree_map_only(Tensor, _take, result)
        return result


def _moved(func: Any, args: Any, kwargs: Any, there: bool) -> Tensor:
    """A copy where the devices differ, as a real move makes one."""
    to: Any = CPU if func is Tensor.cpu else None
    for value in [*args[1:], kwargs.get("device"), kwargs.get("other")]:
        if isinstance(value, Tensor):
            to = DEVICE if lies_there(value) else CPU
        elif isinstance(value, str | torch.device):
            to = torch.device(value)

    def here(value: Any) -> Any:
        return CPU if isinstance(value, str | torch.device) else value

    result: Tensor = func(*map(here, args), **{key: here(value) for key, value in kwargs.items()})
    if to is None or _names(to) == there:
        return result
    if _storage(result)._cdata == _storage(args[0])._cdata:
        result = result.clone()
    if _names(to):
        _take(result)
    else:
        _there.pop(_storage(result)._cdata, None)
    return result
