"""Information of a value in numbers of 32 bits: what is left of it when its regularities are taken out.

Integers are written as differences along their axes, or as the places where these are not zero, whichever compresses
best; each can be undone, so that a table that is held twice, or beside a mask, is counted. A mask counts by its bits.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_NUMBERS = 64  # held by one value: a table of that many may be a constant of the architecture
_BYTES = 4  # of a number
_LITTLE = 128  # bytes below which no better way is looked for
_PART = 1 << 14  # entries of a large array that are looked at first
_LARGEST = 1 << 28  # entries that are counted; more are taken for numbers
_ROWS = 8  # of a table, that may be written each in its own way
_FEW = 4  # entries, of which one is not as most are, from which on the places are written
_PATTERN = 16  # numbers; floats that hold more are no mask
_HOPELESS = 1 << 13  # bytes from which on compressing better is in vain
_HEADER = 128  # bytes of a pickle that are names
_WORD = 100  # letters beyond which what holds no space is no word
_PROSE = 500  # letters of a text that is counted by its length; messages are shorter
_LETTERS = 16  # of prose, a number
_DENSE = 5.6  # bits a letter: of base64 they are 5.8 and more, of English and of code below 5.4
_DIGITS = 0.4  # share of the letters from which on a text is a table of numbers


def in_integers(values: np.ndarray) -> float:
    """Count the numbers that integers hold, at most: indices, masks and counters hold few."""
    if values.size <= 1 or values.size > _LARGEST:
        return float(values.size)
    if values.size > 2 * _PART:
        rows = max(1, _PART * len(values) // values.size)
        part = values[len(values) // 2 :][:rows]
        part = part if part.size <= 2 * _PART else part.reshape(-1)[:_PART]
        if (held := in_integers(part)) > 2 * MOST_NUMBERS:
            return held
    least = _least(values)
    if least > _LITTLE and values.ndim > 1 and len(values) <= _ROWS:
        least = min(least, sum(_least(row) for row in values))
    elif least > _BYTES * MOST_NUMBERS and values.ndim == 1:
        least = min(least, _least(_folded(values)))
    return min(least / _BYTES, values.size)


def _least(values: np.ndarray) -> float:
    """Bytes in the shortest way to write integers down that was found."""
    least = math.inf
    for written in _ways(_narrowed(values)):
        least = min(least, _compressed(written))
        if least <= _LITTLE:
            break
    return least


def in_floats(values: np.ndarray) -> float:
    """Count the numbers that floats hold: those that differ, and which of them is where."""
    head = values.reshape(-1)[:_PART]
    if _whole(head) and _whole(values):
        return in_integers(values.astype(np.int64))
    if (many := len(np.unique(head))) > MOST_NUMBERS:
        return float(many)
    distinct, places = np.unique(values, return_inverse=True)
    return float(min(values.size, len(distinct) + in_integers(places.reshape(values.shape))))


def in_bytes(data: bytes) -> float:
    """Count the numbers that bytes hold, their names left out."""
    return max(0, _compressed(data) - _HEADER) / _BYTES if data else 0.0


def in_texts(texts: Iterable[str], documentation: bool = False) -> float:
    """Count the numbers that texts hold: words and names hold none, what is encoded in letters all of them.

    Args:
        documentation: prose is not counted by its length.
    """
    words: list[str] = []
    codes, prose = [], 0.0
    for text in texts:
        parts = text.split()
        codes += [part for part in parts if len(part) > _WORD]
        words += [part for part in parts if len(part) <= _WORD]
        prose += len(text) / _LETTERS if len(text) > _PROSE and not documentation else 0
    joined = "".join(words)
    if _encoded(joined):
        codes.append(joined)
    coded = _compressed("".join(codes).encode("utf-8", "surrogatepass")) / _BYTES if codes else 0.0
    return max(coded, prose)


def is_data(t: Tensor) -> bool:
    """Whether integers or truth values are too irregular to be indices or a mask."""
    array = values_of(t)
    return t.numel() > MOST_NUMBERS and (array is None or in_array(array) > MOST_NUMBERS)


def in_array(values: np.ndarray) -> float:
    """Count the numbers that an array holds: of floats all, unless they are plainly a pattern."""
    if values.dtype.kind == "c":
        values = np.ascontiguousarray(values).view(values.real.dtype)
    if values.dtype.kind == "f":
        held = in_floats(values)
        return held if held <= _PATTERN else float(values.size)
    return in_integers(values) if values.dtype.kind in "biu" else in_bytes(np.ascontiguousarray(values).tobytes())


def values_of(t: Tensor) -> np.ndarray | None:
    """Values of a tensor; of a sparse one those that it holds, None where they cannot be read."""
    t = t.detach()
    if t.device.type == "meta":
        return np.empty(0)
    try:
        if t.layout is not torch.strided:
            return _sparse(t)
        t = t.int_repr() if t.is_quantized else t
        wide = t.is_floating_point() and t.dtype not in (torch.float64, torch.float32)
        return np.asarray((t.float() if wide else t).cpu().resolve_conj().resolve_neg().numpy())
    except (RuntimeError, TypeError, NotImplementedError):
        return None


def _sparse(t: Tensor) -> np.ndarray | None:
    if t.layout is not torch.sparse_coo:
        t = t.to_sparse_coo()
    t = t.coalesce()
    parts = [values_of(t.indices()), values_of(t.values())]
    flat = [part.reshape(-1).astype(np.float64) for part in parts if part is not None]
    return np.concatenate(flat) if len(flat) == len(parts) else None


def _narrowed(values: np.ndarray) -> np.ndarray:
    """The same integers in as few bytes as hold them; differences of these wrap around, and can be undone."""
    low, high = int(values.min()), int(values.max())
    for kind in (np.uint8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.int64, casting="unsafe")


def _ways(values: np.ndarray) -> Iterator[bytes]:
    """Ways to write integers down, of which the shortest counts."""
    zero = values.dtype.type(0)
    flat = np.diff(values.reshape(-1), prepend=zero)
    steps = [flat, np.diff(flat, prepend=zero)]
    if values.ndim > 1:
        last = np.diff(values, axis=-1, prepend=zero)
        steps = [np.diff(last, axis=-2, prepend=zero), *steps, np.diff(values.T.reshape(-1), prepend=zero)]
        steps += [np.diff(values, axis=k, prepend=zero) for k in range(values.ndim)]
    for step in (*steps, values):
        changes = step.reshape(-1)
        some = np.sort(changes[:: 1 + len(changes) // _PART])
        common = some[len(some) // 2]
        places = np.flatnonzero(changes != common)
        if len(places) * _FEW < len(changes):
            gaps, kept = np.diff(places, prepend=0), changes[places]
            yield _planes(common) + _planes(gaps) + _planes(kept)
            yield _planes(common) + _planes(np.diff(gaps, prepend=0)) + _planes(np.diff(kept, prepend=zero))
        yield _planes(step)


def _folded(values: np.ndarray) -> np.ndarray:
    """A list as the table of which the fewest entries differ from those above and before them."""
    n = values.size
    widths = [d for k in range(2, math.isqrt(n) + 1) if n % k == 0 for d in (k, n // k)]

    def changes(width: int) -> int:
        return int(np.count_nonzero(np.diff(np.diff(values.reshape(-1, width), axis=0), axis=1)))

    return values.reshape(-1, min(widths, key=changes)) if widths else values


def _planes(values: np.ndarray) -> bytes:
    """The first byte of every number, then the second: the high ones are alike."""
    size = values.dtype.itemsize
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, size).T.tobytes()


def _compressed(data: bytes) -> int:
    """Bytes that are left, compressed twice: what repeats a thousand times is long after the first."""
    once = zlib.compress(data, 6)
    if len(once) > _HOPELESS:
        return len(once)
    once = min(once, zlib.compress(data, 9), key=len)
    return min(len(once), len(zlib.compress(once, 9)))


def _whole(values: np.ndarray) -> bool:
    finite: Any = np.isfinite(values)
    return bool(finite.all()) and bool((np.abs(values) < 2.0**53).all()) and bool((values == np.floor(values)).all())


def _encoded(text: str) -> bool:
    """Whether letters are used as evenly as in base64, or most are digits."""
    if len(text) <= MOST_NUMBERS * _BYTES:
        return False
    counts = Counter(text)
    entropy = -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())
    return entropy > _DENSE or sum(n for letter, n in counts.items() if letter.isdigit()) > _DIGITS * len(text)
