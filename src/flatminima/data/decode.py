"""Encoded images to one uint8 tensor. Images are untrusted: a failure names the row, never shows a traceback.

Pillow's guard against decompression bombs stays on and counts as a failure; formats that start other programs
(EPS calls ghostscript) are not opened.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatminima.errors import DataError, MissingExtra

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_MODES = ("L", "RGB")
MOST_PIXELS = 1 << 24  # 16 megapixels: 50 MB of RGB, and more than any benchmark's images
_LOSSLESS = {"1": "L", "P": "RGB"}  # bilevel and palette images hold nothing that the wider mode loses
_SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # grey of 16 bits; "I" is what some versions call a 16-bit PNG
_FLOAT = "F"
_FULL_SCALE = {np.dtype(np.uint8): 255.0, np.dtype(np.int32): 65535.0, np.dtype(np.float32): 1.0}
_PER_BYTE = 257  # 65535 / 255


class ImageStack:
    """A tensor filled image by image, shape (n, channels, height, width): uint8, int32 of 16-bit grey, float32.

    Args:
        n: number of images to come.
        where: source and split, for messages.
        mode: "L" or "RGB" to convert every image; None to keep the first one's and refuse others.
        size: pixels of the square to resize to; None to keep the first one's and refuse others.
        roots: folders below which a cell that is a path may lie: those of an image folder. None such: a table's cells
            must hold the images, and a path in one is refused.
        most_pixels: of one image; a small file may decode to gigabytes.
    """

    def __init__(
        self,
        n: int,
        where: str,
        *,
        mode: str | None = None,
        size: int | None = None,
        roots: Sequence[str] = (),
        most_pixels: int = MOST_PIXELS,
    ) -> None:
        if mode is not None and mode not in _MODES:
            raise DataError(f"mode={mode!r}: pass 'L' (grey) or 'RGB'")
        if size is not None and size < 1:
            raise DataError(f"image_size={size}: at least one pixel is needed")
        try:
            from PIL import Image
        except ImportError:
            raise MissingExtra("pillow", "data", f"decoding the images of {where}") from None
        self._pillow: Any = Image
        self._n, self._where, self._mode, self._size = n, where, mode, size
        self._roots = tuple(os.path.join(os.path.abspath(root), "") for root in roots)
        self._most_pixels = most_pixels
        self._stack: NDArray[Any] | None = None  # allocated by the first image
        self._first_row = 0
        self._filled = 0

    def add(self, cell: object, row: int) -> None:
        """Decode the next image, which the source calls `row`."""
        pixels = self._decode(cell, row)
        if self._stack is None:
            self._stack = np.empty((self._n, *pixels.shape), dtype=pixels.dtype)
            self._first_row = row
        if pixels.dtype != self._stack.dtype:
            raise DataError(
                f"row {row} of {self._where} has another depth than row {self._first_row}: pass mode='L' to make them "
                "alike"
            )
        if pixels.shape != self._stack.shape[1:]:
            remedy = "mode='RGB'" if pixels.shape[1:] == self._stack.shape[2:] else "image_size"
            raise DataError(
                f"row {row} of {self._where} is {_say(pixels.shape)} but row {self._first_row} is "
                f"{_say(self._stack.shape[1:])}: pass {remedy} to make them alike"
            )
        self._stack[self._filled] = pixels
        self._filled += 1

    def tensor(self) -> Tensor:
        """All images; every one of the n must have been added."""
        if self._stack is None or self._filled != self._n:
            raise DataError(f"{self._where} gave {self._filled} images where {self._n} were due")
        return torch.from_numpy(self._stack)

    @property
    def full_scale(self) -> float:
        """The value of a pixel that means 1."""
        return 255.0 if self._stack is None else _FULL_SCALE[self._stack.dtype]

    def _decode(self, cell: object, row: int) -> NDArray[Any]:
        """One image, shape (channels, height, width)."""
        image = self._open(cell, row)
        if image.mode in _SIXTEEN or image.mode == _FLOAT:
            return self._deep(image, row)
        mode = self._mode or _LOSSLESS.get(image.mode, image.mode)
        if mode not in _MODES:
            raise DataError(
                f"row {row} of {self._where} is an image of mode {image.mode!r}, not grey or RGB: "
                "pass mode='RGB' (or 'L') to convert"
            )
        if image.mode != mode:
            image = image.convert(mode)
        if self._size is not None and image.size != (self._size, self._size):
            image = image.resize((self._size, self._size), self._pillow.Resampling.BILINEAR)
        pixels: NDArray[np.uint8] = np.asarray(image)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def _deep(self, image: Any, row: int) -> NDArray[Any]:
        """A grey image of 16 bits, or of floats: as stored, or in 8 bits where a mode is asked for."""
        pixels: NDArray[Any] = np.asarray(image)
        if image.mode == _FLOAT:
            if self._mode is not None:
                raise DataError(
                    f"row {row} of {self._where} is an image of floats: leave out mode, it is kept as stored"
                )
            pixels = pixels.astype(np.float32)
        else:
            if pixels.min() < 0 or pixels.max() > _FULL_SCALE[np.dtype(np.int32)]:
                raise DataError(f"row {row} of {self._where} is an image of 32 bits: save it with 16 or 8")
            pixels = pixels.astype(np.int32)
        if self._size is not None and image.size != (self._size, self._size):
            resized = self._pillow.fromarray(pixels.astype(np.float32))
            resized = np.asarray(resized.resize((self._size, self._size), self._pillow.Resampling.BILINEAR))
            pixels = resized if image.mode == _FLOAT else resized.round().astype(np.int32)
        if self._mode is None:
            return pixels[None]
        shallow = ((pixels + _PER_BYTE // 2) // _PER_BYTE).astype(np.uint8)  # convert() would cut all above 255
        return np.repeat(shallow[None], 3 if self._mode == "RGB" else 1, axis=0)

    def _open(self, cell: object, row: int) -> Any:
        """The loaded Pillow image of a cell: bytes, or the {bytes, path} that `datasets` stores."""
        content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if isinstance(content, bytes):
            file: Any = io.BytesIO(content)
        elif isinstance(path, str):
            file = self._admitted(path, row)
        else:
            seen = "is empty" if cell is None else f"holds a {type(cell).__name__}"
            raise DataError(f"row {row} of {self._where} {seen} where an encoded image was due")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", self._pillow.DecompressionBombWarning)
                image = self._pillow.open(file, formats=_FORMATS)
                if image.width * image.height > self._most_pixels:
                    raise DataError(
                        f"row {row} of {self._where} has {image.width}x{image.height} pixels, more than the "
                        f"{self._most_pixels:,} that are decoded: pass max_pixels (--max-pixels) if it is to be trusted"
                    )
                image.load()
        except DataError:
            raise
        except Exception as error:  # OSError, SyntaxError, ValueError, struct.error: each format has its own
            said = " ".join(str(error).split())[:200]
            raise DataError(f"row {row} of {self._where} is not an image that decodes: {said}") from error
        return image

    def _admitted(self, path: str, row: int) -> str:
        """The path of an image in an image folder."""
        if not os.path.normpath(path).startswith(self._roots or ("\0",)) or ".." in Path(path).parts:
            raise DataError(
                f"row {row} of {self._where} holds the path of a file, not an image: a table names no file of this "
                "machine to open; store the encoded images in it"
            )
        if not os.path.isfile(path):  # a pipe would wait for ever
            raise DataError(f"row {row} of {self._where}: {os.path.basename(path)} is no regular file")
        return path


def _say(shape: tuple[int, ...]) -> str:
    kind = "grey" if shape[0] == 1 else "RGB"
    return f"{shape[2]}x{shape[1]} {kind}"
