"""Arrays as a network takes them: channels first, numbers as numbers, and what of them means one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatminima.data.precision import as_float32, as_int64
from flatminima.errors import DataError

_CHANNELS = (1, 3, 4)
_FULL_SCALES = {"uint8": 255.0, "uint16": 65535.0}
TOKENS = ("input_ids", "token_type_ids", "attention_mask", "position_ids", "tokens", "token_ids")


def as_inputs(values: Any, column: str, where: str, layout: str | None = None) -> tuple[Tensor, float]:
    """One input of every sample as a tensor, and the stored value that means 1.

    Args:
        values: shape (n, ...): an array or a tensor. Rows of numbers are (n, features); grey images (n, height, width);
            other images have their 1, 3 or 4 channels first or last.
        column, where: names for messages.
        layout: "chw" or "hwc" where the shape leaves it open.

    Returns:
        uint8, int32 (of 16-bit images), int64 (of tokens) or float32, images with channels first; 255 for 8-bit images,
        65535 for 16-bit ones, else 1.

    Raises:
        DataError: no numbers, values that are missing, images whose layout is open.
    """
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
        values = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{column!r} of {where} holds {_kind(array)}, not numbers: {_REMEDY.get(array.dtype.kind, _SHAPES)}"
        )
    if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
        row = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))[0])
        raise DataError(f"row {row} of {where} has NaN or Inf in {column!r}: fill it in, or drop the row")
    if array.ndim == 1:
        array = array[:, None]
    image = array.ndim >= 3 and array.dtype.name in _FULL_SCALES
    scale = _FULL_SCALES.get(array.dtype.name, 1.0) if array.ndim >= 2 and array.shape[1:] != (1,) else 1.0
    if column in TOKENS:
        return torch.from_numpy(as_int64(array, column, where)), 1.0
    if array.ndim == 3 and (image or min(array.shape[1:]) > 1):
        array = array[:, None]
    elif array.ndim == 4 and _last(array.shape, column, where, layout):
        array = array.transpose(0, 3, 1, 2)
    if array.dtype.name == "uint8":
        return torch.from_numpy(np.ascontiguousarray(array)), scale
    if array.dtype.name == "uint16":
        return torch.from_numpy(array.astype(np.int32)), scale
    return torch.from_numpy(as_float32(array, column, where)), 1.0


def _last(shape: tuple[int, ...], column: str, where: str, layout: str | None) -> bool:
    """Whether channels come last."""
    if layout is not None:
        return layout == "hwc"
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first and last:
        raise DataError(
            f"{column!r} of {where} has the shape {shape}: channels first or last? pass layout='chw' or layout='hwc'"
        )
    return last and not first


_REMEDY = {
    "U": "encode it as numbers, or leave it out (pass columns with the names of the others)",
    "O": "pad its rows to one shape, or leave it out (pass columns with the names of the others)",
}
_SHAPES = "give an array of numbers"


def _kind(array: NDArray[Any]) -> str:
    if array.dtype.kind in "US":
        return "text"
    if array.dtype.kind == "O":
        return "text" if all(isinstance(v, str) for v in array.flat) else "values of several kinds or shapes"
    return str(array.dtype)
