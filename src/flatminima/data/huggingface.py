"""Folders and hub names in the Hugging Face layout, through `datasets`.

Offline, `datasets` retries for 23 seconds before it looks into its own cache; here one request of at most 5
seconds decides, and what is cached is then read without asking. Dataset scripts never run.
"""

from __future__ import annotations

import inspect
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flatminima.data.card import refuse_named_places
from flatminima.data.decode import MOST_PIXELS, ImageStack
from flatminima.data.labelled import LabelledData
from flatminima.errors import DataError, FlatMinimaError, MissingExtra, UnknownName

_HUB_TIMEOUT = 5.0  # seconds; the longest a user waits to be told that there is no network
_DECODE_BATCH = 1000  # rows per arrow batch: a few MB of encoded images
_VALIDATION = ("validation", "valid", "val", "dev")
_TABLES = ("parquet", "arrow", "cache")
_KINDS = (*_TABLES, "imagefolder")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "fine_label", "labels", "target", "class")


def read(
    source: str,
    split: str,
    *,
    choose: Callable[[int], NDArray[np.int64]],
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    mode: str | None = None,
    image_size: int | None = None,
    max_pixels: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> LabelledData:
    """One split of a folder or hub data set; `choose` maps its number of rows to the rows that are kept."""
    dataset, roots = _open(source, split, config)
    image, label = _columns(dataset.features, image_column, label_column, source)
    rows = choose(len(dataset))
    if len(rows) == 0:
        raise DataError(f"no samples in {source} {split}: check the split and the limit")
    if len(rows) < len(dataset):
        dataset = dataset.select(rows)
    where = f"{source} {split}"
    images = ImageStack(
        len(rows),
        where,
        mode=mode,
        size=image_size,
        roots=roots,
        most_pixels=max_pixels or MOST_PIXELS,
    )
    targets = np.empty(len(rows), dtype=np.int64)
    done = 0
    for table in dataset.select_columns([image, label]).with_format("arrow").iter(batch_size=_DECODE_BATCH):
        for cell, target in zip(table.column(image).to_pylist(), table.column(label).to_pylist(), strict=True):
            row = int(rows[done])
            images.add(cell, row)
            targets[done] = _label(target, row, label, where)
            done += 1
        if progress is not None:
            progress(done, len(rows), f"decoding {where}")
    names = getattr(dataset.features[label], "names", None)
    return LabelledData(images.tensor(), torch.from_numpy(targets), tuple(names) if names else None, where)


def _label(value: object, row: int, column: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(
            f"row {row} of {where}: {column!r} holds {value!r}, not a class number: "
            "name an integer or ClassLabel column with label_column"
        )
    if value < 0:  # the hub's convention for a hidden test label
        raise DataError(f"row {row} of {where} has no label ({column!r} is {value}): use a labelled split")
    return value


def _columns(features: Any, image: str | None, label: str | None, source: str) -> tuple[str, str]:
    """Names of the image column and the label column."""
    import datasets

    for name in (image, label):
        if name is not None and name not in features:
            raise UnknownName("column", name, features, f"{source} has {', '.join(features)}")
    typed = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    return (
        image or _guess("image", typed, list(features), _IMAGE_NAMES, source),
        label or _guess("label", classes, list(features), _LABEL_NAMES, source),
    )


def _guess(role: str, typed: Sequence[str], every: Sequence[str], names: Sequence[str], source: str) -> str:
    for candidates in (typed, every):
        known = [name for name in names if name in candidates]
        if known:
            return known[0]
        if candidates is typed and len(typed) == 1:
            return typed[0]
    raise DataError(f"no {role} column found in {source} (columns {', '.join(every)}): pass {role}_column")


def _open(source: str, split: str, config: str | None) -> tuple[Any, list[str]]:
    """The `datasets.Dataset` of one split, and the folders below which its cells may name files; failures are one line.

    Only a table of encoded images or a folder of them is read: some of the readers of `datasets` run what they read.
    """
    folder = Path(source).expanduser()
    local = bool(source) and folder.is_dir()
    if local:
        refuse_named_places(folder)
    else:
        _refuse_no_name(source, folder)
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "data", f"loading {source!r}") from None
    online = local or _hub_answers(source)
    # before version 4, datasets would ask whether to run a script that came with the data
    safe = {"trust_remote_code": False} if _asks_for_trust(datasets.load_dataset) else {}
    # resolved, because a bare "csv" or "text" would name a reader, not the folder
    path = str(folder.resolve()) if local else source
    with _quiet(datasets, offline=not online):
        try:
            builder = datasets.load_dataset_builder(path, config, **safe)
            online = True  # found in the cache, if not on the hub
            kind = type(builder).__module__.rpartition(".")[2]
            if kind not in _KINDS:
                raise DataError(f"{source!r} is read as {kind!r}: pass a folder of Parquet files or of images")
            roots = [] if kind in _TABLES else [path] if local else _caches(datasets)
            known = [str(name) for name in (builder.info.splits or builder.config.data_files or ())]
            wanted = "+".join(_resolve(part, known, source) for part in split.split("+"))
            return datasets.load_dataset(path, config, split=wanted, **safe), roots
        except FlatMinimaError:
            raise
        except Exception as error:  # datasets, pyarrow, fsspec and the hub each have their own
            if not online:
                raise DataError(_offline(source)) from error
            said = " ".join(str(error).split())[:300]
            raise DataError(f"cannot load {source!r}: {said or type(error).__name__}") from error


def _refuse_no_name(source: str, folder: Path) -> None:
    """What is no folder goes to the hub only where it cannot be a mistyped one: its name would leave this machine."""
    if source and folder.exists():
        raise DataError(f"the data folder {source!r} is a file: pass the folder that holds it")
    if source[:1] in ("/", ".", "~", "") or source.count("/") > 1 or source.endswith(("/", os.sep)):
        raise DataError(f"the data folder {source!r} is not there")
    if not _HUB_NAME.fullmatch(source):
        raise DataError(
            f"no folder {source!r} here, and no name of the Hugging Face hub, which is organisation/name: "
            "pass a local folder, or 'digits'"
        )
    if folder.parent.is_dir():
        raise DataError(
            f"no folder {source!r} here, although {str(folder.parent)!r} is one: check the path (the hub was not asked)"
        )


def _caches(datasets: Any) -> list[str]:
    """Where files from the hub lie on this machine."""
    from huggingface_hub import constants

    config = datasets.config
    own = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH)
    return [str(place) for place in (*own, constants.HF_HUB_CACHE)]


def _offline(source: str) -> str:
    return (
        f"no folder {source!r} here, it is not in the cache, and the Hugging Face hub did not answer within "
        f"{_HUB_TIMEOUT:.0f} s: pass a local folder, or 'digits'"
    )


def _resolve(part: str, known: Sequence[str], source: str) -> str:
    """The split as the source calls it: any of validation's names finds any other; slices are kept."""
    match = re.fullmatch(r"\s*([\w.-]+)(\[[^\[\]]*\])?\s*", part)
    if match is None:
        raise DataError(f"the split {part!r} is not understood: write train, test or train[:1000]")
    name, bounds = match[1], match[2] or ""
    if not known or name in known:  # a data set read from the cache does not list its splits
        return name + bounds
    for alias in _VALIDATION if name in _VALIDATION else ():
        if alias in known:
            return alias + bounds
    raise UnknownName("split", name, known, f"{source} has {', '.join(known)}")


def _asks_for_trust(function: Callable[..., object]) -> bool:
    return "trust_remote_code" in inspect.signature(function).parameters


def _hub_answers(source: str) -> bool:
    """Whether the hub knows the data set; False when it cannot be asked within the time limit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    outcome: list[object] = []

    def ask() -> None:
        try:
            outcome.append(HfApi().dataset_info(source, timeout=_HUB_TIMEOUT))
        except Exception as error:
            outcome.append(error)

    # a thread, because a name server that does not answer is not covered by the request's timeout
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_TIMEOUT)
    if outcome and isinstance(outcome[0], RepositoryNotFoundError):
        raise DataError(f"no folder {source!r} here, and no such data set on the Hugging Face hub: check the name")
    if outcome and isinstance(outcome[0], HFValidationError):
        raise DataError(f"{source!r} is neither a folder here nor a name on the hub (organisation/name)")
    return bool(outcome) and not isinstance(outcome[0], Exception)


@contextmanager
def _quiet(datasets: Any, *, offline: bool) -> Iterator[None]:
    """No progress bars of theirs; offline, straight to their cache."""
    bars, before = not datasets.are_progress_bars_disabled(), datasets.config.HF_HUB_OFFLINE
    datasets.disable_progress_bars()
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        if bars:
            datasets.enable_progress_bars()
