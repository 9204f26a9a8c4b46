"""`Samples`: training data with random access, whatever it came as, in an order that does not depend on its order.

Each sample has a content hash, and a key made of it and of the number of equal samples before it. The random order of a
seed sorts by (key, seed), so subsets, and therefore every sampled measure, stay the same when the data arrives shuffled
or in other batches. Copies of a sample have keys of their own: by content alone they would be neighbours in every
order, and a subset a draw of clusters. The sorted hashes identify the data set in the report.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from flatminima.errors import DataError

Inputs = Any  # a tensor, or a tuple, list or mapping of them
_PROBE = 8  # samples read more than once to detect augmentation
_READS = 4  # times that they are read: a flip that happens half of the time hides in none of 8 x 3 comparisons
_HASH_CHUNK = 512


class Samples(ABC):
    """n samples of inputs and targets."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """The samples at `indices` (k,), inputs and targets with leading dimension k."""

    @cached_property
    def hashes(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """A 64-bit content hash of each sample, (n,)."""
        out = np.empty(len(self), dtype=np.uint64)
        for start in range(0, len(self), _HASH_CHUNK):
            indices = torch.arange(start, min(start + _HASH_CHUNK, len(self)))
            out[start : start + len(indices)] = content_hashes(*self.take(indices))
        return out

    @cached_property
    def input_hashes(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """A 64-bit hash of each sample's inputs alone, (n,): equal where only the target differs."""
        out = np.empty(len(self), dtype=np.uint64)
        for start in range(0, len(self), _HASH_CHUNK):
            inputs = self.take(torch.arange(start, min(start + _HASH_CHUNK, len(self))))[0]
            count = min(_HASH_CHUNK, len(self) - start)
            out[start : start + count] = content_hashes(inputs, torch.zeros(count, dtype=torch.int64))
        return out

    @property
    def fingerprint(self) -> str:
        """Hash of the data set as a set: the same for any order."""
        return hashlib.blake2b(np.sort(self.hashes).tobytes(), digest_size=8).hexdigest()

    @cached_property
    def keys(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """hash(content, number of equal samples before it), (n,): the content hash for a first occurrence.

        Copies are interchangeable, so the keys as a set depend on the contents alone, whatever the order of the data.
        """
        repeats = _earlier_copies(self.hashes)
        return np.where(repeats == 0, self.hashes, _splitmix(self.hashes ^ _splitmix(repeats)))

    def order(self, seed: int) -> Tensor:
        """A random permutation (n,) made from the samples' keys and the seed: any part of it is a fair draw."""
        salt = np.uint64(hash_bytes(seed.to_bytes(8, "little", signed=True)))
        return torch.from_numpy(np.argsort(_splitmix(self.keys ^ salt), kind="stable"))


class TensorSamples(Samples):
    """Samples held as tensors."""

    def __init__(self, inputs: Inputs, targets: Tensor) -> None:
        tensors = [*leaves(inputs), targets]
        if any(t.dim() == 0 for t in tensors):
            raise DataError("got an input or target without dimensions; the first dimension counts the samples")
        sizes = {len(t) for t in tensors}
        if len(sizes) != 1:
            raise DataError(f"got inputs and targets of different lengths {sorted(sizes)}; give one target a sample")
        self.inputs, self.targets = inputs, targets
        if len(targets) == 0:
            raise DataError(_EMPTY)
        for t, what in [*((t, "input") for t in leaves(inputs)), (targets, "target")]:
            if t.is_floating_point() and not bool(torch.isfinite(t).all()):
                bad = int((~torch.isfinite(t)).reshape(len(t), -1).any(1).nonzero()[0])
                raise DataError(f"sample {bad} holds NaN or Inf in its {what}; clean or drop it")

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        return map_tensors(lambda t: t[indices.to(t.device)], self.inputs), self.targets[
            indices.to(self.targets.device)
        ]


class DatasetSamples(Samples):
    """A map-style Dataset, read by index each time."""

    def __init__(self, dataset: Any, collate: Any = default_collate) -> None:
        self.dataset, self.collate = dataset, collate
        if len(dataset) == 0:
            raise DataError(_EMPTY)
        _refuse_changing(self)

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        return split_batch(self.collate([self.dataset[i] for i in indices.tolist()]))


_EMPTY = "got no samples in data; a Minimum needs at least 1 (check the split, drop_last and filters)"


def as_samples(data: Any) -> Samples:
    """Tensors (x, y), a Dataset or a DataLoader as Samples.

    Raises:
        DataError: no samples, a loader that shuffles or augments, a one-pass iterator, lengths that differ.
    """
    if isinstance(data, Samples):
        return data
    if isinstance(data, DataLoader):
        return _from_loader(data)
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[1], Tensor):
        return TensorSamples(data[0], data[1])
    if isinstance(data, tuple) and len(data) == 2:
        raise DataError(
            f"got a pair of {type(data[0]).__name__} and {type(data[1]).__name__}; expected tensors (inputs, targets): "
            "convert with torch.as_tensor"
        )
    if isinstance(data, Mapping):
        return TensorSamples(*split_batch(data))
    if isinstance(data, IterableDataset):
        return _from_batches(DataLoader(data, batch_size=_HASH_CHUNK), "an IterableDataset")
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return DatasetSamples(data)
    if isinstance(data, Iterator):
        raise DataError(
            f"got a one-pass {type(data).__name__}; statistics need several passes: pass list(...) of batches "
            "concatenated to tensors, a Dataset or a DataLoader"
        )
    raise DataError(f"got data of type {type(data).__name__}; expected (inputs, targets), a Dataset or a DataLoader")


def _from_loader(loader: DataLoader[Any]) -> Samples:
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return _from_batches(loader, "a DataLoader without indices")
    # of the batch sampler, which knows drop_last and may be the caller's own
    first, *others = ([i for batch in loader.batch_sampler for i in batch] for _ in range(_READS))
    if any(first != other for other in others):
        raise DataError(
            "got a DataLoader that shuffles; every pass must see the same samples in one order: "
            "build it with shuffle=False"
        )
    if first == list(range(len(loader.dataset))):  # type: ignore[arg-type]
        return DatasetSamples(loader.dataset, loader.collate_fn)
    return DatasetSamples(Subset(loader.dataset, first), loader.collate_fn)


def _from_batches(batches: Iterable[Any], what: str) -> Samples:
    """No random access: read twice, compare, keep as tensors."""
    first = [split_batch(b) for b in batches]
    if not first:
        raise DataError(_EMPTY)
    second = [split_batch(b) for b in batches]
    changed = f"two passes over {what} differ: it shuffles, augments or runs out; make it give the same samples again"
    if len(first) != len(second):
        raise DataError(changed)
    try:
        one, two = (
            TensorSamples(_concatenate([x for x, _ in part]), torch.cat([y for _, y in part]))
            for part in (first, second)
        )
    except (RuntimeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"batches of {what} do not fit together ({error}); pass tensors or a Dataset") from None
    if not np.array_equal(one.hashes, two.hashes):
        raise DataError(changed)
    return one


def _refuse_changing(samples: Samples) -> None:
    probe = torch.linspace(0, len(samples) - 1, min(_PROBE, len(samples))).long()
    one = content_hashes(*samples.take(probe))
    for _ in range(_READS - 1):
        two = content_hashes(*samples.take(probe))
        if not np.array_equal(one, two):
            i = int(probe[int(np.flatnonzero(one != two)[0])])
            raise DataError(
                f"sample {i} differs when read twice: the data is augmented or random; pass it without augmentation"
            )


def split_batch(batch: Any) -> tuple[Inputs, Tensor]:
    """(inputs, targets) from a collated batch: a pair, a longer tuple (last is the target), or a dict with labels."""
    if isinstance(batch, Mapping):
        for key in ("labels", "label", "targets", "target"):
            if key in batch:
                return {k: v for k, v in batch.items() if k != key}, _targets(batch[key])
        raise DataError(f"got a batch with keys {sorted(batch)}; expected one of labels, label, targets, target")
    if isinstance(batch, Sequence) and len(batch) >= 2:
        inputs = batch[0] if len(batch) == 2 else tuple(batch[:-1])
        return inputs, _targets(batch[-1])
    raise DataError(f"got a batch of type {type(batch).__name__}; expected (inputs, targets) or a dict with labels")


def _targets(targets: Any) -> Tensor:
    try:
        return torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"got targets of type {type(targets).__name__} that are no tensor: encode classes as integers"
        ) from None


def leaves(inputs: Inputs) -> list[Tensor]:
    """The tensors of nested inputs."""
    if isinstance(inputs, Tensor):
        return [inputs]
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    if isinstance(inputs, str) or not isinstance(values, Iterable):
        raise DataError(f"got an input of type {type(inputs).__name__}; expected tensors")
    return [leaf for value in values for leaf in leaves(value)]


def map_tensors(function: Any, inputs: Inputs) -> Inputs:
    """Nested inputs with `function` applied to each tensor."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {k: map_tensors(function, v) for k, v in inputs.items()}
    return tuple(map_tensors(function, v) for v in inputs)


def _concatenate(parts: list[Inputs]) -> Inputs:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], Mapping):
        return {k: _concatenate([p[k] for p in parts]) for k in parts[0]}
    return tuple(_concatenate(list(group)) for group in zip(*parts, strict=True))


def content_hashes(inputs: Inputs, targets: Tensor) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """One 64-bit hash a sample, of the bytes of its inputs and target."""
    whole = not targets.is_floating_point() and targets.dtype != torch.bool  # labels may come as any integer
    rows = [_bytes(t) for t in [*leaves(inputs), targets.long() if whole else targets]]
    hashes = [hash_bytes(*(r[i].data for r in rows)) for i in range(len(targets))]
    return np.array(hashes, dtype=np.uint64)


def hash_bytes(*parts: Any) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little")


def _bytes(tensor: Tensor) -> np.ndarray[Any, Any]:
    t = tensor.detach().cpu()
    t = (t.float() if t.is_floating_point() else t).contiguous()  # float64 copies of float32 data hash alike
    return t.view(len(t), -1).view(torch.uint8).numpy() if t.dim() > 1 else t.view(-1, 1).view(torch.uint8).numpy()


def _earlier_copies(hashes: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """How many entries before each one are equal to it, (n,)."""
    by_content = np.argsort(hashes, kind="stable")
    ordered = hashes[by_content]
    places = np.arange(len(hashes))
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    run = places - np.maximum.accumulate(np.where(first, places, 0))
    earlier = np.empty(len(hashes), dtype=np.uint64)
    earlier[by_content] = run
    return earlier


def _splitmix(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))
