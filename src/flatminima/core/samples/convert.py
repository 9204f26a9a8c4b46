"""Whatever holds numbers as a dense tensor: arrays, lists, scalars; what has no one meaning is refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima.errors import DataError

_UNSIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}  # torch cannot index them
_LARGEST = 2**63 - 1


def as_tensors(inputs: Any) -> Any:
    """Nested inputs with tensors in place of arrays; lists of numbers stay lists of inputs."""
    if isinstance(inputs, Mapping):
        return {k: _named(k, v) for k, v in inputs.items()}
    if isinstance(inputs, tuple | list) and not holds_numbers(inputs):
        return tuple(as_tensors(v) for v in inputs)
    return as_tensor(inputs, "input")


def _named(key: Any, value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, list | tuple) and any(isinstance(v, str) for v in value)):
        raise DataError(f"column {key!r} holds text; expected tensors: remove it (remove_columns) or encode it")
    return as_tensors(value)


def as_tensor(value: Any, what: str) -> Tensor:
    """A dense tensor, without a graph, of a dtype that torch can index.

    Raises:
        DataError: text, pictures, ragged or nested rows, a sparse or meta tensor, integers beyond int64.
    """
    if isinstance(value, Tensor):
        return _plain(value.detach(), what)
    if type(value).__module__.partition(".")[0] == "PIL":
        raise DataError(
            f"got a picture ({type(value).__name__}) as {what}; its scaling is not known: make it a tensor in a "
            "transform (set_transform, torchvision.transforms.ToTensor)"
        )
    to_numpy = getattr(value, "to_numpy", None)  # pandas and polars, whose index and names do not count
    array = to_numpy() if callable(to_numpy) else value
    if isinstance(array, np.ma.MaskedArray) and bool(np.ma.getmaskarray(array).any()):
        raise DataError(f"got a masked array as {what} with values missing; fill them (.filled) or drop their samples")
    if not isinstance(array, np.ndarray) and hasattr(array, "__array__") and not isinstance(array, Number):
        array = np.asarray(array)
    if isinstance(array, list | tuple) and array and all(isinstance(x, Tensor | np.ndarray) for x in array):
        return _stacked([as_tensor(x, what) for x in array], what)
    if not isinstance(array, np.ndarray):
        array = _from_python(array, what)
    return _plain(_from_numpy(array, what), what)


def holds_numbers(value: Any) -> bool:
    """Whether a list is one array written out, and no tuple of several inputs."""
    while isinstance(value, list | tuple) and value:
        if not all(type(v) is type(value[0]) for v in value) and not all(isinstance(v, Number) for v in value):
            return False
        value = value[0]
    return isinstance(value, Number)


def _from_python(value: Any, what: str) -> np.ndarray[Any, Any]:
    """Numbers, or nested lists of equal lengths: floats as float32, which is what networks take."""
    if isinstance(value, str | bytes) or value is None:
        raise DataError(_no_tensor(value, what))
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError(
            f"got {what}s of different lengths in one list; pad them to one length, or give a DataLoader a collate_fn "
            "that pads"
        ) from None
    return array.astype(np.float32) if array.dtype == np.float64 and isinstance(value, list | tuple) else array


def _from_numpy(array: np.ndarray[Any, Any], what: str) -> Tensor:
    if array.dtype.kind not in "biufc":
        if array.dtype == object and array.size and all(isinstance(x, np.ndarray | Tensor | list) for x in array.flat):
            raise DataError(f"got {what}s of different shapes in one array; pad them to one shape")
        raise DataError(_no_tensor(array.flat[0] if array.size else array, what))
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of read-only memory, which nobody writes to
        return torch.from_numpy(array)


def _stacked(parts: list[Tensor], what: str) -> Tensor:
    seen = {tuple(p.shape) for p in parts}
    if len(seen) > 1:
        raise DataError(
            f"got {what}s of shapes {' and '.join(map(str, sorted(seen)[:2]))} in one list; pad them to one shape, or "
            "give a DataLoader a collate_fn that pads"
        )
    return torch.stack(parts)


def _plain(tensor: Tensor, what: str) -> Tensor:
    if tensor.is_nested:
        raise DataError(
            f"got a nested tensor as {what}, whose rows differ in length; pad it: torch.nested.to_padded_tensor(x, 0.0)"
        )
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise DataError(f"got a tensor of layout {layout} as {what}; samples are read one by one: pass .to_dense()")
    if tensor.is_meta:
        raise DataError(f"got a {what} on the meta device, which holds no values; load it first")
    if tensor.is_quantized:
        raise DataError(f"got a quantised tensor as {what}; pass .dequantize()")
    wider = _UNSIGNED.get(tensor.dtype)
    if wider is None:
        return tensor
    if tensor.dtype == torch.uint64 and tensor.numel():
        largest = int(tensor.cpu().numpy().max())
        if largest > _LARGEST:
            raise DataError(f"got the {what} {largest}, beyond int64; {what}s are at most {_LARGEST}")
    return tensor.to(wider)


def _no_tensor(value: Any, what: str) -> str:
    if what == "target":
        return f"got targets of type {type(value).__name__} that are no tensor: encode classes as integers"
    return f"got an input of type {type(value).__name__}; expected tensors"
