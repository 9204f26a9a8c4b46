"""Cheap uniform noise: 16 random bits a coordinate, 65,536 levels in (-1, 1).

Three to four times cheaper than `uniform_`, which would dominate an optimizer-bound step. The levels (k + 1/2) / 2^15
are symmetric, so the mean is exactly 0 in expectation and the variance is (1 - 2^-32) / 3 instead of 1/3. The stream of
(seed, step) runs over the parameters as one flat vector: how that vector is cut into blocks never changes a draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flatminima.core.perturbation import mix

HALF_RANGE = 1 << 15


class NoiseStream:
    """int16 draws of (seed, step) on one device, without touching the global random state."""

    def __init__(self, seed: int, step: int, device: torch.device) -> None:
        ordinal = (device.index or 0) if device.type != "cpu" else 0  # two accelerators must not share a stream
        self.device = device
        self._generator = torch.Generator(device).manual_seed(mix(mix(seed, ordinal), step))
        self._left = torch.empty(0, dtype=torch.int16, device=device)

    def take(self, n: int) -> Tensor:
        """The next n levels, (n,) int16, uniform over [-2^15, 2^15)."""
        short = n - len(self._left)
        if short > 0:
            words = torch.empty((short + 3) // 4, dtype=torch.int64, device=self.device)
            # from -2^63: without it random_() leaves the top bit 0, and every fourth draw is never negative
            drawn = words.random_(-(2**63), None, generator=self._generator).view(torch.int16)
            self._left = torch.cat([self._left, drawn]) if len(self._left) else drawn
        out, self._left = self._left[:n], self._left[n:]
        return out


def unit(levels: Tensor, dtype: torch.dtype) -> Tensor:
    """Levels as numbers in (-1, 1)."""
    return levels.to(dtype).add_(0.5).mul_(1.0 / HALF_RANGE)
