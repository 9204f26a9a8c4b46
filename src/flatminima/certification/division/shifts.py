"""Images that are others moved by a few pixels, as augmentation leaves them: found by hashes of every window.

The middle of one image is somewhere in the other, to the bit once both are brought to 256 levels. A hash that is a sum
over pixels, each weighed by powers of two odd numbers, is had for all windows from one table of sums (Karp & Rabin
1987 in two dimensions), so that 81 windows an image cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flatminima.certification.division.reading import CHUNK, Floats, RowHashes

_Levels = np.ndarray[Any, np.dtype[np.uint8]]
Read = Callable[[np.ndarray[Any, Any]], Floats]  # indices (k,) to rows (k, channels height width)

_MOST, _SHARE = 4, 8  # pixels that an image may be moved by: an eighth of its side, at most four
_CANDIDATES = 5  # images with one middle that a window is compared with
_FEW_LEVELS, _FEWEST_OTHER = 8, 32  # of a window that tells images apart: distinct levels, pixels unlike the commonest


@dataclass(frozen=True)
class Images:
    """Images of one set as levels.

    Attributes:
        read: as rows. hashes: (n,) of the images. shape: channels, height, width.
        low, high: (channels,) of all of them.
    """

    read: Read
    hashes: RowHashes
    shape: tuple[int, int, int]
    low: np.ndarray[Any, Any]
    high: np.ndarray[Any, Any]

    @classmethod
    def of(cls, read: Read, hashes: RowHashes, shape: tuple[int, int, int]) -> Images:
        """Make one with the range of each channel."""
        lows, highs = [], []
        for part in _parts(len(hashes)):
            rows = read(part).reshape(len(part), shape[0], -1)
            lows.append(rows.min((0, 2)))
            highs.append(rows.max((0, 2)))
        return cls(read, hashes, shape, np.min(lows, axis=0), np.max(highs, axis=0))

    def levels(self, indices: np.ndarray[Any, Any]) -> _Levels:
        """(k, channels, height, width) of 0 to 255, by the range of the set."""
        images = self.read(indices).reshape(len(indices), *self.shape)
        span = np.where(self.high > self.low, self.high - self.low, 1.0)[:, None, None]
        levels: _Levels = np.rint((images - self.low[:, None, None]) / span * 255).clip(0, 255).astype(np.uint8)
        return levels


def margin_of(height: int, width: int) -> int:
    """Pixels that images of this size may be moved by; 0 where they are too small to tell."""
    return min(_MOST, min(height, width) // _SHARE)


def find_shifted(first: Images, second: Images) -> Iterator[tuple[int, int, str]]:
    """Pairs (i, j, kind) of images of which the second holds the first's middle, moved and perhaps flipped."""
    _, height, width = first.shape
    margin = margin_of(height, width)
    if margin == 0:
        return
    middles, telling = [], []
    for part in _parts(len(first.hashes)):
        levels = first.levels(part)
        middles.append(_window_hashes(levels, margin, middle=True)[:, 0])
        telling.append(~_plain(levels[:, :, margin : height - margin, margin : width - margin]))
    middle, known = np.concatenate(middles), np.flatnonzero(np.concatenate(telling))
    if not len(known):
        return
    order = known[np.argsort(middle[known], kind="stable")]
    ordered = middle[order]
    for part in _parts(len(second.hashes)):
        as_they_are = second.levels(part)
        for kind, levels in (("shifted", as_they_are), ("flipped, shifted", as_they_are[..., ::-1])):
            windows = _window_hashes(levels, margin)
            places = np.searchsorted(ordered, windows)
            for row, window in np.argwhere(ordered[np.minimum(places, len(ordered) - 1)] == windows):
                some = slice(int(places[row, window]), int(places[row, window]) + _CANDIDATES)
                same = ordered[some] == windows[row, window]
                for i in order[some][same]:
                    if first.hashes[i] == second.hashes[part[row]]:
                        continue  # equal, which others look for
                    if _holds(levels[row], first.levels(np.array([i]))[0], margin, int(window)):
                        yield int(i), int(part[row]), kind


def _parts(n: int) -> list[np.ndarray[Any, Any]]:
    return np.array_split(np.arange(n), max(1, -(-n // CHUNK)))


def _window_hashes(levels: _Levels, margin: int, *, middle: bool = False) -> RowHashes:
    """Hashes (k, (2 margin + 1)^2) of windows that are smaller by the margin on each side, or (k, 1) of the middle."""
    _, channels, height, width = levels.shape
    down, across, table = _multipliers(channels)
    with np.errstate(over="ignore"):
        rows, columns = (_powers(factor, size) for factor, size in ((down, height), (across, width)))
        total: RowHashes = np.zeros((len(levels), height + 1, width + 1), dtype=np.uint64)
        inner = total[:, 1:, 1:]
        for c in range(channels):
            inner += table[c][levels[:, c]]
        inner *= rows[:, None] * columns
        np.cumsum(total, axis=1, out=total)
        np.cumsum(total, axis=2, out=total)
        h, w = height - 2 * margin, width - 2 * margin
        back = [_powers(pow(int(factor), -1, 1 << 64), 2 * margin + 1) for factor in (down, across)]
        starts = (
            [(margin, margin)] if middle else [(y, x) for y in range(2 * margin + 1) for x in range(2 * margin + 1)]
        )
        out = [
            (total[:, y + h, x + w] - total[:, y, x + w] - total[:, y + h, x] + total[:, y, x])
            * (back[0][y] * back[1][x])
            for y, x in starts
        ]
        return np.stack(out, 1)


def _multipliers(channels: int) -> tuple[np.uint64, np.uint64, RowHashes]:
    """Two odd numbers, and one number for each level of each channel; the same ones in every run."""
    draw = np.random.default_rng(0x5B1F7).integers(0, 1 << 64, 2 + 256 * channels, dtype=np.uint64)
    return draw[0] | np.uint64(1), draw[1] | np.uint64(1), draw[2:].reshape(channels, 256)


def _powers(factor: Any, count: int) -> RowHashes:
    """factor^0 .. factor^(count - 1), modulo 2^64."""
    return np.array([pow(int(factor), i, 1 << 64) for i in range(count)], dtype=np.uint64)


def _plain(windows: _Levels) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Windows (k, channels, h, w) of few levels, nearly all of one: many unlike images have the same."""
    ordered = np.sort(windows.reshape(len(windows), -1), 1)
    levels = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
    other = (ordered != ordered[:, ordered.shape[1] // 2][:, None]).sum(1)
    return np.asarray((levels < _FEW_LEVELS) & (other < _FEWEST_OTHER))


def _holds(image: _Levels, other: _Levels, margin: int, window: int) -> bool:
    """Whether that window of an image is the middle of the other one."""
    _, height, width = image.shape
    h, w = height - 2 * margin, width - 2 * margin
    y, x = divmod(window, 2 * margin + 1)
    return np.array_equal(image[:, y : y + h, x : x + w], other[:, margin : margin + h, margin : margin + w])
