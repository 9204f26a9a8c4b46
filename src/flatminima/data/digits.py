"""The digits that ship with the package, `digits.npz` beside this module; `digits.md` says whose they are."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

FULL_SCALE = 16.0  # a pixel counts the black ones of a block of 4x4
TEST_FRACTION = 0.3
_SEED = 0


def read_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (1797, 8, 8), holding 0 ... 16, and labels (1797,), in the order of scikit-learn's `load_digits`."""
    with files(__package__).joinpath("digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as found:
        return found["images"], found["labels"].astype(np.int64)


def splits(labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Rows of "train" and "test": the second holds 30 % of each class, drawn with a fixed seed."""
    rng = np.random.RandomState(_SEED)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        test[rng.permutation(members)[: round(TEST_FRACTION * len(members))]] = True
    return {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
