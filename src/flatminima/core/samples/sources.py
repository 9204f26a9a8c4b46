"""`as_samples`: every form that data comes in, or one line that says what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from flatminima.core.samples.base import Samples
from flatminima.core.samples.collate import collate_entries
from flatminima.core.samples.convert import as_tensor, as_tensors
from flatminima.core.samples.dataset import DatasetSamples
from flatminima.core.samples.structure import Inputs, concatenate, leaves, map_tensors, split_batch
from flatminima.core.samples.tensors import EMPTY, TensorSamples
from flatminima.core.written import same_generators
from flatminima.errors import DataError, UsageError

_READS = 4  # passes over a loader's indices
_BATCH = 512  # samples of a stream read together
_MOST = 1 << 30  # bytes of a stream that are kept without a limit
_PAIRS = "pass (inputs, targets), a Dataset of samples, or a DataLoader(batches, batch_size=None)"


def as_samples(data: Any, *, limit: int | None = None) -> Samples:
    """Tensors or arrays (x, y), a Dataset, a DataLoader, batches or a stream as Samples.

    Generators of random numbers that the data hold are afterwards as before.

    Args:
        data: what holds the samples; see `docs/data-and-losses.md`.
        limit: the first so many samples; needed for streams without an end.

    Raises:
        DataError: no samples, a loader that shuffles or augments, a one-pass iterator, lengths that differ.
        UsageError: a limit below 1.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise UsageError(f"got limit={limit!r}; expected a number of samples, at least 1")
    if isinstance(data, Samples):
        return data if limit is None or limit >= len(data) else _first(data, limit)
    with same_generators(data):
        return _of_any_kind(data, limit)


def _of_any_kind(data: Any, limit: int | None) -> Samples:
    if isinstance(data, DataLoader):
        return _from_loader(data, limit)
    if _is_pair(data):
        return _cut(_from_pair(*data), limit)
    if isinstance(data, Mapping):
        return _cut(_from_mapping(data), limit)
    if isinstance(data, IterableDataset):
        return _from_stream(data, "an IterableDataset", limit)
    if isinstance(data, Iterator):
        raise DataError(
            f"got a one-pass {type(data).__name__}; statistics need several passes: pass list(...) of batches "
            "concatenated to tensors, a Dataset or a DataLoader"
        )
    if isinstance(data, tuple | list):
        return _from_list(data, limit)
    if isinstance(data, str | bytes | Tensor | np.ndarray) or hasattr(data, "to_numpy"):
        raise DataError(f"got {type(data).__name__} without targets; {_PAIRS}")
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        count = _length(data)
        return DatasetSamples(data if limit is None else Subset(data, range(min(limit, count))))
    if isinstance(data, Iterable):
        return _from_iterable(data, limit)
    raise DataError(f"got data of type {type(data).__name__}; expected (inputs, targets), a Dataset or a DataLoader")


def _length(data: Any) -> int:
    try:
        return len(data)
    except TypeError:
        raise DataError(
            f"got a {type(data).__name__} without a length; make it an IterableDataset, or give it __len__"
        ) from None


# -- tensors ---------------------------------------------------------------------------------------------------------


def _is_pair(data: Any) -> bool:
    """(inputs, targets), not two samples."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    target = data[1]
    if isinstance(target, Tensor | np.ndarray) or hasattr(target, "to_numpy"):
        return True
    return isinstance(data, tuple)


def _from_pair(x: Any, y: Any) -> TensorSamples:
    kinds = f"{type(x).__name__} and {type(y).__name__}"
    if isinstance(y, Mapping | tuple) or not (hasattr(y, "__len__") or hasattr(y, "__array__")):
        raise DataError(f"got a pair of {kinds}; expected tensors or arrays (inputs, targets)")
    targets = as_tensor(y, "target")
    if isinstance(x, list) and x and all(isinstance(v, Tensor | np.ndarray) for v in x):
        return TensorSamples(_list_of_inputs(x, len(targets) if targets.dim() else 0), targets)
    return TensorSamples(as_tensors(x), targets)


def _list_of_inputs(x: list[Any], count: int) -> Inputs:
    """A list of one tensor a sample, or of one tensor an input."""
    per_input = all(np.ndim(v) > 0 and len(v) == count for v in x)
    if per_input and len(x) == count and count > 1:
        raise DataError(
            f"got a list of {count} inputs of length {count}, which may be samples or inputs of the network: stack "
            "samples with torch.stack, or give inputs as a tuple"
        )
    return as_tensors(tuple(x)) if per_input and len(x) != count else as_tensor(x, "input")


def _from_mapping(data: Mapping[Any, Any]) -> TensorSamples:
    values = list(data.values())
    if values and all(hasattr(v, "column_names") or isinstance(v, Dataset) for v in values):
        raise DataError(f"got several data sets {sorted(map(str, data))}; pass one of them")
    return TensorSamples(*split_batch(data))


def _cut(samples: TensorSamples, limit: int | None) -> TensorSamples:
    if limit is None or limit >= len(samples):
        return samples
    inputs = map_tensors(lambda t: t[:limit], samples.inputs)
    return TensorSamples(inputs, samples.targets[:limit], samples.flat_entries)


def _first(samples: Samples, limit: int) -> Samples:
    if isinstance(samples, TensorSamples):
        return _cut(samples, limit)
    raise UsageError("got limit= with samples that are made already; give it where they are made")


# -- loaders, streams, lists -----------------------------------------------------------------------------------------


def _from_loader(loader: DataLoader[Any], limit: int | None) -> Samples:
    batch_sampler = loader.batch_sampler
    if isinstance(loader.dataset, IterableDataset) or batch_sampler is None:
        return _from_batches(loader, "a DataLoader without indices", limit)
    count = _length(loader.dataset)
    most = limit or max(100 * count, _BATCH)  # a sampler may repeat samples, but not for ever

    def indices() -> list[int]:
        # of the batch sampler, which knows drop_last and may be the caller's own
        return list(islice(chain.from_iterable(batch_sampler), most + (limit is None)))

    first, *others = (indices() for _ in range(_READS))
    if any(first != other for other in others):
        raise DataError(
            "got a DataLoader that shuffles; every pass must see the same samples in one order: "
            "build it with shuffle=False"
        )
    if limit is None and len(first) > most:
        raise DataError(f"got a DataLoader whose sampler goes on after {most} samples of {count}; pass limit=")
    if first == list(range(count)):
        return DatasetSamples(loader.dataset, loader.collate_fn)
    return DatasetSamples(Subset(loader.dataset, first), loader.collate_fn)


def _from_stream(data: Any, what: str, limit: int | None) -> Samples:
    """Samples one after the other, without random access."""
    batch = _BATCH if limit is None else min(_BATCH, limit)
    loader = DataLoader(data, batch_size=batch, collate_fn=collate_entries)
    return _from_batches(loader, what, limit)


def _from_iterable(data: Any, limit: int | None) -> Samples:
    """Neither indices nor a length: of samples or of batches, as the first element shows."""
    what = f"a {type(data).__name__}"
    first = next(iter(data), None)
    if first is None:
        raise DataError(EMPTY)
    if _batch_size(first) is not None:
        return _from_batches(data, what, limit)
    return _from_stream(_Stream(data), what, limit)


class _Stream(IterableDataset[Any]):
    def __init__(self, data: Iterable[Any]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)


def _from_list(data: Sequence[Any], limit: int | None) -> Samples:
    if not data:
        raise DataError(EMPTY)
    sizes = []
    for element in data:
        size = _batch_size(element)
        if size is None:
            return DatasetSamples(data if limit is None else data[:limit])
        sizes.append(size)
    collated = all(isinstance(element, list) for element in data)  # as torch's default collate makes pairs
    ragged = len({*sizes[:-1]}) == 1 and sizes[-1] < sizes[0]  # the last is what was left
    if not collated and not ragged:
        raise DataError(
            f"got a list of {len(data)} pairs whose inputs and targets agree in length, which may be batches or "
            f"samples: {_PAIRS}"
        )
    return _from_batches(data, "a list of batches", limit)


def _batch_size(element: Any) -> int | None:
    """Samples in what looks like a batch: inputs, at least one of two dimensions, as long as the targets."""
    try:
        inputs, targets = split_batch(element)
        tensors = leaves(inputs)
    except DataError:
        return None
    if targets.dim() == 0 or not tensors or all(t.dim() < 2 for t in tensors):
        return None
    sizes = {len(t) if t.dim() else -1 for t in tensors} | {len(targets)}
    return sizes.pop() if len(sizes) == 1 else None


def _from_batches(batches: Iterable[Any], what: str, limit: int | None) -> Samples:
    """No random access: read twice, compare, keep as tensors."""
    first, flat = _read(batches, what, limit)
    if not first:
        raise DataError(EMPTY)
    second, _ = _read(batches, what, limit)
    changed = f"two passes over {what} differ: it shuffles, augments or runs out; make it give the same samples again"
    if len(first) != len(second):
        raise DataError(changed)
    try:
        one, two = (
            TensorSamples(concatenate([x for x, _ in part]), torch.cat([y for _, y in part]), flat)
            for part in (first, second)
        )
    except (RuntimeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = str(error).splitlines()[0]
        raise DataError(f"batches of {what} do not fit together ({reason}); pass tensors or a Dataset") from None
    if not np.array_equal(one.hashes, two.hashes):
        raise DataError(changed)
    return _cut(one, limit)


def _read(batches: Iterable[Any], what: str, limit: int | None) -> tuple[list[tuple[Inputs, Tensor]], int]:
    """The batches until the limit, and the entries of flat tuples."""
    out, count, size, flat = [], 0, 0, 0
    for batch in batches:
        flat = len(batch) - 1 if isinstance(batch, Sequence) and len(batch) > 2 else 0
        inputs, targets = split_batch(batch)
        out.append((inputs, targets))
        count += len(targets) if targets.dim() else 1
        size += sum(t.numel() * t.element_size() for t in [*leaves(inputs), targets])
        if limit is not None and count >= limit:
            break
        if limit is None and size > _MOST:
            raise DataError(
                f"{what} goes on after {count} samples ({size / 2**30:.1f} GiB); pass limit= for the first so many"
            )
    return out, flat
