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
from numpy.typing import NDArray

from flatminima.data.card import refuse_named_places, refuse_saved_places
from flatminima.data.decode import MOST_PIXELS, ImageStack
from flatminima.data.files import Columns, array_of
from flatminima.data.labelled import LabelledData
from flatminima.data.labels import in_order
from flatminima.data.reading import Reading
from flatminima.data.rows import Pixels, known, label_of, labelled, listed
from flatminima.data.splits import rows_of
from flatminima.errors import DataError, FlatMinimaError, MissingExtra, UnknownName

_HUB_TIMEOUT = 5.0  # seconds; the longest wait before the message that there is no network
_DECODE_BATCH = 1000  # rows per arrow batch: a few MB of encoded images
_VALIDATION = ("validation", "valid", "val", "dev")
_TABLES = ("parquet", "arrow", "cache")
_KINDS = (*_TABLES, "imagefolder")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_IMAGE_NAMES = ("image", "img")

_Progress = Callable[[int, int, str], None]


def read_huggingface(
    source: str,
    split: str,
    reading: Reading,
    *,
    choose: Callable[[int], NDArray[np.int64]],
    progress: _Progress | None = None,
) -> LabelledData:
    """One split of a folder or hub data set; `choose` maps its number of rows to the rows that are kept."""
    saved = _saved(Path(source).expanduser(), split) if source else None
    roots: list[str] = []
    if saved is None:
        dataset, roots = _open(source, split, reading.config)
    else:
        dataset = saved[0]

    def classes(label: str) -> tuple[str, ...]:
        return _all_classes(source, label, reading.config, dataset, saved)

    return _rows(dataset, source, split, reading, choose, classes, roots=roots, progress=progress)


def read_made(
    parts: dict[str, Any],
    source: str,
    split: str,
    reading: Reading,
    *,
    choose: Callable[[int], NDArray[np.int64]],
    every: Callable[[], Sequence[Any]],
) -> LabelledData:
    """One split of data sets that the caller's own code has made; their cells may be paths, as for `datasets`.

    Args:
        parts: a `Dataset` a split. every: those whose labels, where they are text, name the classes.
        source, split, reading, choose: as for `read`.
    """

    def classes(label: str) -> tuple[str, ...]:
        return _every_class(every(), label)

    return _rows(_part_of(parts, split, source), source, split, reading, choose, classes, roots=[os.sep])


def is_made(found: Any) -> bool:
    """Whether it is a `Dataset` whose rows are as stored: no transform of the caller's makes them."""
    ours = type(found).__module__.startswith("datasets.") and hasattr(found, "select") and hasattr(found, "features")
    return ours and found.format["type"] != "custom"


def _rows(
    dataset: Any,
    source: str,
    split: str,
    reading: Reading,
    choose: Callable[[int], NDArray[np.int64]],
    classes_of: Callable[[str], tuple[str, ...]],
    *,
    roots: list[str],
    progress: _Progress | None = None,
) -> LabelledData:
    """Rows that are kept of a data set, as inputs and labels; `classes_of` gives all the texts of a label column."""
    where = f"{source} {split}"
    label = label_of(list(dataset.features), reading, source)
    rows = choose(len(dataset))
    if len(rows) == 0:
        raise DataError(f"no samples in {source} {split}: check the split and the limit")
    if len(rows) < len(dataset):
        dataset = dataset.select(rows)
    values: dict[str, Any] = {}
    pictures = _pictures(dataset.features, reading, source)
    for name in dataset.features:
        if name in pictures:
            values[name] = _decoded(dataset, name, rows, where, reading, roots, progress)
        elif name == label or not pictures or name in {n for _, group in reading.inputs for n in group}:
            values[name] = array_of(dataset.with_format(None)[name][:])
    names = {n: tuple(f.names) for n, f in dataset.features.items() if getattr(f, "names", None)}
    known = reading.classes is not None or reading.targets == "none"
    classes = None if known or not isinstance(next(iter(values[label]), None), str) else classes_of(label)
    return labelled(Columns(values, names), reading, rows, where, classes)


def _pictures(features: Any, reading: Reading, source: str) -> list[str]:
    """Columns of encoded images that are wanted: those typed as such, or called so and holding bytes."""
    import datasets

    typed = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if reading.inputs:
        return [n for _, group in reading.inputs for n in group if n in typed]
    if reading.image_column is not None:
        return [known(reading.image_column, features, source)]
    for name in _IMAGE_NAMES:
        if name in typed:
            return [name]
    if len(typed) > 1:
        raise DataError(
            f"{source} holds several images ({listed(typed)}): pass image_column, or columns for several inputs"
        )
    return typed or [n for n in _IMAGE_NAMES if n in features and _holds_bytes(features[n])]


def _holds_bytes(feature: Any) -> bool:
    return (isinstance(feature, dict) and "bytes" in feature) or getattr(feature, "dtype", None) == "binary"


def _decoded(
    dataset: Any,
    column: str,
    rows: NDArray[np.int64],
    where: str,
    reading: Reading,
    roots: list[str],
    progress: _Progress | None,
) -> Pixels:
    images = ImageStack(
        len(rows),
        where,
        mode=reading.mode,
        size=reading.image_size,
        roots=roots,
        most_pixels=reading.max_pixels or MOST_PIXELS,
    )
    done = 0
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=_DECODE_BATCH):
        for cell in table.column(column).to_pylist():
            images.add(cell, int(rows[done]))
            done += 1
        if progress is not None:
            progress(done, len(rows), f"decoding {where}")
    return Pixels(images.tensor(), images.full_scale)


def _all_classes(source: str, label: str, config: str | None, dataset: Any, saved: Any) -> tuple[str, ...]:
    """Labels that are text, over every split of the source."""
    if saved is not None:
        parts = list(saved[1].values())
    else:
        parts = [_open(source, name, config)[0] for name in _known_splits(source, config)] or [dataset]
    return _every_class(parts, label)


def _every_class(parts: Sequence[Any], label: str) -> tuple[str, ...]:
    found = {value for part in parts if label in part.features for value in part.unique(label)}
    return in_order(v for v in found if isinstance(v, str) and v)


def _saved(folder: Path, split: str) -> tuple[Any, dict[str, Any]] | None:
    """What `save_to_disk` of a Dataset or DatasetDict, or a single Parquet file, holds; None for anything else."""
    several, single = (folder / "dataset_dict.json").is_file(), (folder / "state.json").is_file()
    parquet = folder.is_file() and folder.suffix == ".parquet"
    if not (several or single or parquet):
        return None
    if not parquet:
        refuse_saved_places(folder)
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "data", f"loading {str(folder)!r}") from None
    with _quiet(datasets, offline=True):
        try:
            found = datasets.Dataset.from_parquet(str(folder)) if parquet else datasets.load_from_disk(str(folder))
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            raise DataError(f"cannot load {str(folder)!r}: {said or type(error).__name__}") from error
    parts = {str(k): v for k, v in found.items()} if several else {"train": found}
    return _part_of(parts, split, str(folder)), parts


def _part_of(parts: dict[str, Any], split: str, source: str) -> Any:
    """The rows that a split asks for."""
    import datasets

    indices = rows_of({name: np.arange(len(part)) for name, part in parts.items()}, split, source)
    chosen = [parts[name].select(rows) for name, rows in indices]
    return chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)


def _known_splits(source: str, config: str | None) -> list[str]:
    """Names of the splits of a folder or a hub data set."""
    import datasets

    folder = Path(source).expanduser()
    safe = {"trust_remote_code": False} if _asks_for_trust(datasets.load_dataset) else {}
    with _quiet(datasets, offline=False):
        try:
            builder = datasets.load_dataset_builder(
                str(folder.resolve()) if folder.is_dir() else source, config, **safe
            )
        except Exception:  # read a moment ago; then from the cache, which does not list them
            return []
    return [str(name) for name in (builder.info.splits or builder.config.data_files or ())]


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
