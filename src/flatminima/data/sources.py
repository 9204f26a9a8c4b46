"""Sources of data: the embedded digits, a local file or folder, a name on the Hugging Face hub.

`limit` keeps a fixed random subset, not the first rows: image folders are stored class by class, and the
first thousand of them are all cats. For the first rows, say so in the split: "train[:1000]".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from flatminima.data import digits, files, huggingface
from flatminima.data.files import Columns
from flatminima.data.labelled import LabelledData
from flatminima.data.labels import as_targets
from flatminima.data.reading import Reading, ReadingOptions
from flatminima.data.rows import chosen, classes_of, concatenated, labelled
from flatminima.data.splits import rows_of
from flatminima.errors import DataError

_Progress = Callable[[int, int, str], None]

_DIGITS = "digits"
_LIMIT_SEED = 0


def load(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    limit: int | None = None,
    progress: _Progress | None = None,
    **options: Unpack[ReadingOptions],
) -> LabelledData:
    """One split of one source, decoded into tensors.

    Args:
        source: "digits" (the embedded 1797 images of 8x8, split 70/30 within each class); a file (.npz, .csv, .tsv,
            .jsonl, .json, .parquet, .pt, .safetensors) or a folder of one such file a split; a folder that
            `save_to_disk` wrote; a folder in a layout that `datasets.load_dataset` reads (parquet with `image` and
            `label`, or a folder a class); or a name on the Hugging Face hub. A folder called digits is "./digits".
        split: "train", "test", "validation" (or "valid", "val", "dev"), a slice such as "train[:1000]" or
            "train[:10%]", or several joined by "+". A file without splits is "train".
        limit: keep this many samples, at least 1: a random subset with a fixed seed, in stored order; a
            smaller limit keeps a subset of what a larger one keeps. None, or more than there are, keeps all.
        progress: called as progress(done, total, text) while images are decoded.
        options: the fields of `Reading`: `columns`, `label_column`, `image_column`, `classes`, `mode`, `image_size`,
            `layout`, `max_pixels`, `config`, `targets`. Without them the one Image column is the input, else `image`
            or `img`, else the one column of arrays, else all columns of numbers; labels are a ClassLabel column, else
            `label`, `fine_label`, `labels`, `target`, `class` or `y`.

    Returns:
        LabelledData with inputs of shape (n, channels, height, width), uint8 (or (n, features), float32), and targets
        of shape (n,), int64.

    Raises:
        UnknownName: no such split or column. DataError: no such file or data set, the hub is out of reach
            (after 5 seconds), an image that does not decode, mixed sizes or modes, a missing label or value.
        MissingExtra: `datasets` or Pillow is not installed.

    Examples:
        >>> load("digits", "test").inputs.shape
        torch.Size([539, 1, 8, 8])
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit}: at least one sample is needed")
    reading = Reading(**options)
    name = os.fspath(source)
    if name == _DIGITS:
        if any(value is not None for key, value in vars(reading).items() if key not in ("targets", "classes")):
            raise DataError("the embedded digits take no config, column, mode, size or max_pixels: use limit and split")
        return _digits(split, limit, reading)
    path = Path(name).expanduser()
    if name and files.reads(path):
        return _from_columns(files.read_splits(path), name, split, limit, reading)
    if files.named_like_ours(path) and not path.exists():
        raise DataError(f"no file {name}; check the path")
    if path.is_file() and path.suffix != ".parquet":
        kind = f"{path.suffix} file" if path.suffix else "file without an ending"
        raise DataError(f"{name} is a {kind}: data is read from {files.SUPPORTED} files, and from folders")
    return huggingface.read_huggingface(name, split, reading, choose=lambda n: subset(n, limit), progress=progress)


def _from_columns(
    splits: dict[str, Columns], source: str, split: str, limit: int | None, reading: Reading
) -> LabelledData:
    wanted = rows_of({name: np.arange(len(columns)) for name, columns in splits.items()}, split, source)
    columns = concatenated([chosen(splits[name], rows) for name, rows in wanted])
    rows = np.concatenate([rows for _, rows in wanted])
    if len(rows) == 0:
        raise DataError(f"no samples in {source} {split}: check the split and the limit")
    kept = subset(len(rows), limit)
    known = reading.classes is not None or reading.targets == "none"
    classes = None if known else classes_of(splits.values(), reading, source)
    return labelled(chosen(columns, kept), reading, rows[kept], f"{source} {split}", classes)


def subset(n: int, limit: int | None) -> NDArray[np.int64]:
    """Indices kept of n rows, ascending: the first `limit` of one fixed permutation."""
    if limit is None or limit >= n:
        return np.arange(n)
    # RandomState, because numpy promises its stream for ever; default_rng's permutation may change
    return np.sort(np.random.RandomState(_LIMIT_SEED).permutation(n)[:limit]).astype(np.int64)


def _digits(split: str, limit: int | None, reading: Reading) -> LabelledData:
    images, labels = digits.read_digits()
    splits = digits.splits(labels)
    kept = np.concatenate([rows for _, rows in rows_of(splits, split, _DIGITS)])
    kept = kept[subset(len(kept), limit)]
    names = tuple(str(digit) for digit in range(10))
    targets, classes = as_targets(labels[kept], kept.tolist(), "label", _DIGITS, classes=reading.classes, names=names)
    return LabelledData(
        torch.from_numpy(images[kept][:, None]),
        targets,
        classes,
        f"{_DIGITS} {split}",
        digits.FULL_SCALE,
    )
