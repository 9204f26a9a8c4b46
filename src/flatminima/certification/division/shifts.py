"""Images that are others moved by a few pixels, as augmentation leaves them: found by hashes of every window.

The middle of one image, or series, is somewhere in the other, to the bit once both are brought to 256 levels. A hash
that is a sum over pixels, weighed by powers of two odd numbers, is had for all windows from one table of sums (Karp
& Rabin 1987 in two dimensions), so that 81 windows an image cost little more than one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flatminima.certification.division.reading import CHUNK, Read, RowHashes

_Levels = np.ndarray[Any, np.dtype[np.uint8]]

_MOST, _SHARE = 4, 8  # pixels that an image may be moved by: an eighth of its side, at most four
_MOST_STEPS = 16  # that a series may be moved by, an eighth of it at most
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


@dataclass(frozen=True)
class Windows:
    """Windows of an image that are smaller by a margin on each side.

    Attributes:
        height, width: of the image. down, across: pixels that it may be moved by.
    """

    height: int
    width: int
    down: int
    across: int

    @classmethod
    def of(cls, height: int, width: int) -> Windows:
        """Take an eighth of each side, of an image four pixels at most, of a series 16 steps."""
        most = _MOST if min(height, width) >= _SHARE else _MOST_STEPS
        return cls(height, width, min(most, height // _SHARE), min(most, width // _SHARE))

    @property
    def starts(self) -> list[tuple[int, int]]:
        """Rows and columns at which they begin."""
        return [(y, x) for y in range(2 * self.down + 1) for x in range(2 * self.across + 1)]

    def at(self, images: _Levels, y: int, x: int) -> _Levels:
        """The windows of (..., height, width) that begin there."""
        h, w = self.height - 2 * self.down, self.width - 2 * self.across
        return images[..., y : y + h, x : x + w]

    def middle(self, images: _Levels) -> _Levels:
        """The window that is left without the margin."""
        return self.at(images, self.down, self.across)


def find_shifted(first: Images, second: Images) -> Iterator[tuple[int, int, str]]:
    """Pairs (i, j, kind) of images of which the second holds the first's middle, moved and perhaps flipped.

    A row may be a table's, whose columns are no series: in it only what was moved counts, not what agrees in place.
    """
    windows = Windows.of(*first.shape[1:])
    starts = windows.starts
    if first.shape[:2] == (1, 1):
        starts.remove((windows.down, windows.across))
    if not starts or (windows.down, windows.across) == (0, 0):
        return
    middles, telling = [], []
    for part in _parts(len(first.hashes)):
        levels = first.levels(part)
        middles.append(_window_hashes(levels, windows, [(windows.down, windows.across)])[:, 0])
        telling.append(~_plain(windows.middle(levels)))
    middle, known = np.concatenate(middles), np.flatnonzero(np.concatenate(telling))
    if not len(known):
        return
    order = known[np.argsort(middle[known], kind="stable")]
    ordered = middle[order]
    for part in _parts(len(second.hashes)):
        as_they_are = second.levels(part)
        for kind, levels in (("shifted", as_they_are), ("flipped, shifted", as_they_are[..., ::-1])):
            hashes = _window_hashes(levels, windows, starts)
            places = np.searchsorted(ordered, hashes)
            for row, window in np.argwhere(ordered[np.minimum(places, len(ordered) - 1)] == hashes):
                some = slice(int(places[row, window]), int(places[row, window]) + _CANDIDATES)
                same = ordered[some] == hashes[row, window]
                moved = windows.at(levels[row], *starts[window])
                for i in order[some][same]:
                    if first.hashes[i] == second.hashes[part[row]]:
                        continue  # equal, which others look for
                    if np.array_equal(moved, windows.middle(first.levels(np.array([i]))[0])):
                        yield int(i), int(part[row]), kind


def _parts(n: int) -> list[np.ndarray[Any, Any]]:
    return np.array_split(np.arange(n), max(1, -(-n // CHUNK)))


def _window_hashes(levels: _Levels, windows: Windows, starts: list[tuple[int, int]]) -> RowHashes:
    """Hashes (k, len(starts)) of the windows that begin there."""
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
        h, w = height - 2 * windows.down, width - 2 * windows.across
        back_down = _powers(pow(int(down), -1, 1 << 64), 2 * windows.down + 1)
        back_across = _powers(pow(int(across), -1, 1 << 64), 2 * windows.across + 1)
        out = [
            (total[:, y + h, x + w] - total[:, y, x + w] - total[:, y + h, x] + total[:, y, x])
            * (back_down[y] * back_across[x])
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
