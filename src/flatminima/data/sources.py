"""Where data comes from: the embedded digits, a local folder, a name on the Hugging Face hub.

`limit` keeps a fixed random subset, not the first rows: image folders are stored class by class, and the
first thousand of them are all cats. For the first rows, say so in the split: "train[:1000]".
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from flatminima.data import huggingface
from flatminima.data.labelled import LabelledData
from flatminima.errors import DataError, UnknownName

Progress = Callable[[int, int, str], None]

_DIGITS = "digits"
_DIGITS_FULL_SCALE = 16.0  # scikit-learn counts the black pixels of 4x4 blocks
_DIGITS_TEST_FRACTION = 0.3
_DIGITS_SEED = 0
_LIMIT_SEED = 0


def load(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    limit: int | None = None,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    mode: str | None = None,
    image_size: int | None = None,
    max_pixels: int | None = None,
    progress: Progress | None = None,
) -> LabelledData:
    """One split of one source, decoded into uint8 tensors.

    Args:
        source: "digits" (scikit-learn's 1797 images of 8x8, split 70/30 within each class), a folder in a
            layout that `datasets.load_dataset` reads (parquet with `image` and `label`, or a folder a class),
            or a name on the Hugging Face hub. A folder called digits is "./digits".
        split: "train", "test", "validation" (or "valid", "val", "dev"), a slice such as "train[:1000]" or
            "train[:10%]", or several joined by "+".
        limit: keep this many samples, at least 1: a random subset with a fixed seed, in stored order; a
            smaller limit keeps a subset of what a larger one keeps. None, or more than there are, keeps all.
        config: the configuration of a data set that has several.
        image_column, label_column: column names where the columns cannot be guessed (the one Image column,
            else `image` or `img`; a ClassLabel column, else `label`, `fine_label`, `labels`, `target` or
            `class`).
        mode: "L" (grey) or "RGB": convert every image; None keeps one mode and refuses a mixture.
        image_size: resize every image to this many pixels square; None refuses a mixture of sizes.
        max_pixels: of one image, 16.8 million unless given: a small file may decode to gigabytes.
        progress: called as progress(done, total, text) while images are decoded.

    Returns:
        LabelledData with inputs of shape (n, channels, height, width), uint8, and targets of shape (n,),
        int64.

    Raises:
        UnknownName: no such split or column. DataError: no such folder or data set, the hub is out of reach
            (after 5 seconds), an image that does not decode, mixed sizes or modes, a missing label.
        MissingExtra: `datasets` or Pillow is not installed.

    Examples:
        >>> load("digits", "test").inputs.shape
        torch.Size([539, 1, 8, 8])
    """
    if max_pixels is not None and max_pixels < 1:
        raise DataError(f"max_pixels={max_pixels}: at least one pixel is needed")
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit}: at least one sample is needed")
    name = os.fspath(source)
    if name == _DIGITS:
        if any(option is not None for option in (config, image_column, label_column, mode, image_size, max_pixels)):
            raise DataError("the embedded digits take no config, column, mode, size or max_pixels: use limit and split")
        return _digits(split, limit)
    return huggingface.read(
        name,
        split,
        choose=lambda n: subset(n, limit),
        config=config,
        image_column=image_column,
        label_column=label_column,
        mode=mode,
        image_size=image_size,
        max_pixels=max_pixels,
        progress=progress,
    )


def subset(n: int, limit: int | None) -> NDArray[np.int64]:
    """Indices kept of n rows, ascending: the first `limit` of one fixed permutation."""
    if limit is None or limit >= n:
        return np.arange(n)
    # RandomState, because numpy promises its stream for ever; default_rng's permutation may change
    return np.sort(np.random.RandomState(_LIMIT_SEED).permutation(n)[:limit]).astype(np.int64)


def _digits(split: str, limit: int | None) -> LabelledData:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)  # (1797, 64) float64 holding 0 ... 16
    rng = np.random.RandomState(_DIGITS_SEED)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        test[rng.permutation(members)[: round(_DIGITS_TEST_FRACTION * len(members))]] = True
    splits = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    kept = np.concatenate([_sliced(splits, part) for part in split.split("+")])
    kept = kept[subset(len(kept), limit)]
    return LabelledData(
        torch.from_numpy(images[kept].astype(np.uint8).reshape(-1, 1, 8, 8)),
        torch.from_numpy(labels[kept].astype(np.int64)),
        tuple(str(digit) for digit in range(10)),
        f"{_DIGITS} {split}",
        _DIGITS_FULL_SCALE,
    )


def _sliced(splits: dict[str, NDArray[np.int64]], part: str) -> NDArray[np.int64]:
    """`train`, `train[10:20]` or `train[:10%]` of the digits; the hub's slices belong to `datasets`."""
    name, _, bounds = part.strip().partition("[")
    if name not in splits:
        raise UnknownName("split", name, splits, f"{_DIGITS} has {' and '.join(splits)}")
    rows = splits[name]
    if not bounds:
        return rows
    match = re.fullmatch(r"(-?\d+%?)?:(-?\d+%?)?\]", bounds)
    if match is None:
        raise DataError(f"the split {part!r} is not understood: write train[:100], train[10:20] or train[:10%]")

    def position(text: str | None) -> int | None:
        if text is None:
            return None
        return round(len(rows) * int(text[:-1]) / 100) if text.endswith("%") else int(text)

    return rows[position(match[1]) : position(match[2])]
