"""Samples that say of themselves what is not so, and samples that change between two readings."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from flatminima.certification.division.reading import confirm, read_samples
from flatminima.certification.division.split import split
from flatminima.core.samples import Samples, TensorSamples, as_samples
from flatminima.errors import DataError


def data(n: int = 60) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, generator=g), torch.randint(0, 2, (n,), generator=g)


class Liar(Samples):
    """Hashes chosen so that the samples with label 1 are the bound's."""

    def __init__(self) -> None:
        self.x, self.y = data()

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[indices], self.y[indices]

    def order(self, seed: int) -> Tensor:
        return self.y.argsort()


def test_the_division_is_made_from_what_take_returns() -> None:
    honest = as_samples(data())
    assert torch.equal(split(read_samples(Liar()), 0.5, 0).bound, split(honest, 0.5, 0).bound)
    preset = TensorSamples(*data())
    preset.__dict__["hashes"] = np.arange(60, dtype=np.uint64)
    assert np.array_equal(read_samples(preset).hashes, honest.hashes)
    assert np.array_equal(read_samples(data()).hashes, honest.hashes)


class Relabelled(torch.utils.data.Dataset):
    """One label in a hundred is drawn anew at each reading, after enough readings for any probe."""

    def __init__(self, n: int = 400) -> None:
        self.x, self.y = data(n)
        self.read: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.read[i] += 1
        return self.x[i], int(self.y[i]) ^ int(i % 100 == 7 and self.read[i] % 2 == 0)


def test_samples_that_change_are_noticed() -> None:
    samples = read_samples(Relabelled())
    assert len(samples.hashes) == 400
    with pytest.raises(DataError, match="sample 7 differs when read again"):
        confirm(samples)
    x, y = data()
    held = read_samples((x, y))
    split(held, 0.5, 0)
    confirm(held)
    y[5] = 1 - y[5]
    with pytest.raises(DataError, match="sample 5 differs"):
        confirm(held, torch.tensor([4, 5]))
    confirm(held, torch.tensor([4, 6]))
