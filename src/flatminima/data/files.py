"""Local files of columns: npz, csv, JSON lines, tensors, and folders that hold one such file a split.

Nothing in a file is executed: arrays are read without pickles, tensors with weights_only=True.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flatminima.data.delimited import read_columns
from flatminima.errors import DataError
from flatminima.untrusted import refuse_no_text

SPLITS = ("train", "test", "validation", "valid", "val", "dev")
_SPLIT_NAMES = {"training": "train", "testing": "test", "eval": "validation", "tr": "train", "te": "test"}
_ASIDE = (".md", ".txt", ".lock", ".yaml", ".yml")
_STATE = ("dataset_info.json", "dataset_dict.json", "state.json")  # of a folder that save_to_disk wrote
_ZIP = b"PK"  # how every npz begins
_PAIR = ("inputs", "labels")
SUPPORTED = ".npz, .csv, .tsv, .jsonl, .json, .parquet, .pt, .safetensors"


@dataclass(frozen=True)
class Columns:
    """One split: columns of equal length by name, and what integer labels are called.

    Attributes:
        values: name -> array, tensor or list, one entry a sample.
        names: column -> names of its classes, where the source has them.
    """

    values: Mapping[str, Any]
    names: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(next(iter(self.values.values()))) if self.values else 0


def reads(path: Path) -> bool:
    """Whether this module reads the file, or the folder of files."""
    if path.is_file():
        return path.suffix.lower() in _READERS
    return path.is_dir() and bool(_by_split(path))


def named_like_ours(path: Path) -> bool:
    """Whether the name ends as one of the formats does, whatever is there."""
    return path.suffix.lower() in (*_READERS, ".parquet")


def read_splits(path: Path) -> dict[str, Columns]:
    """Every split of a file or a folder of files; a file without splits is "train".

    Raises:
        DataError: a file that is damaged, holds no columns, or columns of different lengths.
    """
    if path.is_dir():
        return {split: _one(file, split) for split, file in _by_split(path).items()}
    found = _splits_of(_read(path), path)
    for split, columns in found.items():
        _check(columns, path, split)
    return found


def _one(file: Path, split: str) -> Columns:
    found = _splits_of(_read(file), file)
    columns = found.get(split) or next(iter(found.values()))
    _check(columns, file, split)
    return columns


def _by_split(folder: Path) -> dict[str, Path]:
    """Files called train.npz, my_test.csv, ... of one of our formats; nothing where the folder holds other data too."""
    entries = [
        f for f in sorted(folder.iterdir()) if not f.name.startswith((".", "_")) and f.suffix.lower() not in _ASIDE
    ]
    files = [f for f in entries if f.is_file() and f.suffix.lower() in _READERS]
    found: dict[str, Path] = {}
    if len(files) < len(entries) or any(f.name in _STATE for f in files):
        return {}
    for file in files:
        words = re.split(r"[^a-z]+", file.stem.lower())
        split = next((s for w in words if (s := _SPLIT_NAMES.get(w, w)) in SPLITS), None)
        if split is None and len(files) == 1:
            split = "train"
        if split is None or split in found:
            return {}
        found[split] = file
    return found


def _check(columns: Columns, path: Path, split: str) -> None:
    if not columns.values:
        raise DataError(f"{path} holds no columns: a column of inputs and one of labels are needed")
    lengths = {name: len(values) if np.ndim(values) else 0 for name, values in columns.values.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {n}" for name, n in list(lengths.items())[:6])
        raise DataError(f"{path} ({split}) holds columns of different lengths ({said}): each needs one entry a sample")


def _splits_of(found: Mapping[str, Any], path: Path) -> dict[str, Columns]:
    """x_train, train_images, {"train": {...}} as splits; columns without a split's name are "train"."""
    nested = {
        name: value for name, value in found.items() if isinstance(value, Mapping | tuple | list) and name in SPLITS
    }
    if nested and len(nested) == len(found):
        return {split: Columns(_columns(value, path), {}) for split, value in nested.items()}
    split_of: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        words = [w for w in re.split(r"_", name) if w]
        split = next((s for w in words if (s := _SPLIT_NAMES.get(w.lower(), w.lower())) in SPLITS), None)
        rest = "_".join(w for w in words if _SPLIT_NAMES.get(w.lower(), w.lower()) != split) or name
        split_of.setdefault(split or "", {})[rest if split else name] = value
    if len(split_of) == 1 or "" in split_of:
        return (
            {"train": Columns(dict(found), {})} if "" in split_of else {s: Columns(c, {}) for s, c in split_of.items()}
        )
    return {split: Columns(columns, {}) for split, columns in split_of.items()}


def _columns(value: Any, path: Path) -> dict[str, Any]:
    """A pair, or a mapping of columns."""
    if isinstance(value, Mapping):
        return {str(k): v for k, v in value.items()}
    if isinstance(value, tuple | list) and len(value) == 2:
        return dict(zip(_PAIR, value, strict=True))
    raise DataError(f"{path} holds a {type(value).__name__}; expected (inputs, labels), or a dict of both")


def _read(path: Path) -> dict[str, Any]:
    try:
        return _READERS[path.suffix.lower()](path)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"no file {path}; check the path") from None
    except MemoryError:
        raise DataError(f"{path} does not fit into memory: give a part of it") from None
    except Exception as error:  # each format has its own
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} cannot be read as {path.suffix}: {said}") from error


def _npz(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as opened:  # numpy leaves a damaged file open that it has opened itself
            if opened.read(len(_ZIP)) != _ZIP:
                raise DataError(f"{path} is damaged or no npz file: write it with numpy.savez(path, x=x, y=y)")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path} holds Python objects, which are not loaded: they could run code; save arrays of numbers"
            ) from None
        raise
    except (zipfile.BadZipFile, EOFError):
        raise DataError(f"{path} is damaged or no npz file: write it with numpy.savez(path, x=x, y=y)") from None


def _npy(path: Path) -> dict[str, Any]:
    raise DataError(f"{path} is one array: put inputs and labels in one file, numpy.savez('data.npz', x=x, y=y)")


def _csv(path: Path) -> dict[str, Any]:
    refuse_no_text(path)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: its first line names the columns")
    found = read_columns(path, "\t" if path.suffix.lower() == ".tsv" else ",")
    names = list(found)
    if all(re.fullmatch(r"-?\d+(\.\d+)*(e-?\d+)?", n) for n in names):
        raise DataError(f"the first line of {path} holds numbers, not names of columns: add a line such as x1,x2,label")
    if len(names) == 1 and re.search(r"[;\t|]", names[0]):
        raise DataError(f"{path} has one column {names[0][:40]!r}: separate its columns by commas (or tabs in a .tsv)")
    return found


def _jsonl(path: Path) -> dict[str, Any]:
    refuse_no_text(path)
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"line {number} of {path} is no JSON: {error}") from None
    return _records(rows, path)


def _json(path: Path) -> dict[str, Any]:
    refuse_no_text(path)
    text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except ValueError:
        return _jsonl(path)
    if isinstance(found, dict):
        return {str(k): array_of(v) for k, v in found.items()} if "data" not in found else _records(found["data"], path)
    return _records(found, path)


def _records(rows: Any, path: Path) -> dict[str, Any]:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            f'{path} holds no list of records: one object a line is expected, such as {{"x": [1, 2], "label": 0}}'
        )
    for i, row in enumerate(rows):
        lost = rows[0].keys() ^ row.keys()
        if lost:
            raise DataError(
                f"record {i} of {path} differs from record 0 in {', '.join(sorted(lost)[:5])}: all need the same fields"
            )
    return {name: array_of([row[name] for row in rows]) for name in rows[0]}


def array_of(values: Any) -> Any:
    """Nested lists of equal lengths as an array of numbers, of several lengths one of objects; all else as it is."""
    try:
        array = np.asarray(values)
    except ValueError:  # of several shapes
        array = np.empty(len(values), dtype=object)
        for i, value in enumerate(values):
            array[i] = value
        return array
    return array if array.dtype.kind in "biuf" else values


def _pt(path: Path) -> dict[str, Any]:
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = f"the Python object {named[1]}" if named else "something else than tensors"
        raise DataError(
            f"{path} holds {held}, and loading it could run code: save tensors, torch.save((x, y), path), or give "
            "--data package.module:function"
        ) from None
    except RuntimeError as error:
        if "legacy .tar format" in str(error):
            raise DataError(
                f"{path} is damaged, or was written by PyTorch before 0.1.10, whose files are not read since they "
                "could run code"
            ) from None
        raise
    if isinstance(found, torch.Tensor):
        raise DataError(f"{path} holds one tensor: save inputs and labels together, torch.save((x, y), path)")
    return _columns(found, path)


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(path))


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npz": _npz, ".npy": _npy, ".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": _json, ".pt": _pt,
    ".pth": _pt, ".safetensors": _safetensors,
}  # fmt: skip
