"""Groups of samples that are not independent of each other: a patient's images, a document's paragraphs.

The groups are the independent draws then, and everything counts them: a whole group is the prior's or the bound's, and
of each of the bound's one sample is drawn, so that losses stay 0 or 1 and n is the number of groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima.certification.rows import Hashes
from flatminima.core.samples import Samples, hash_bytes
from flatminima.errors import DataError

_PICK = b"one sample of a group"  # parts the draw of a group's sample from the draw of the groups


def identifiers(groups: Tensor | Sequence[Any] | np.ndarray[Any, Any], n: int) -> list[Any]:
    """Groups as Python values, one a sample.

    Args:
        groups: numbers or texts. n: samples.

    Raises:
        DataError: another length, or an identifier that is missing (None, NaN).
    """
    given = groups.detach().cpu().tolist() if isinstance(groups, Tensor) else list(groups)
    if len(given) != n:
        raise DataError(f"got {len(given)} groups for {n} samples; give one group identifier a sample")
    values = [value.item() if isinstance(value, np.generic) else value for value in given]
    for i, value in enumerate(values):
        if value is None or value != value or isinstance(value, list):
            raise DataError(
                f"got group {value!r} for sample {i}; give every sample an identifier, one of its own if alone"
            )
    return values


def group_numbers(groups: Tensor | Sequence[Any] | np.ndarray[Any, Any], n: int) -> Tensor:
    """Groups as numbers 0 .. G-1, (n,), in the order in which they occur; errors as of `identifiers`."""
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(value, len(numbers)) for value in identifiers(groups, n)])


def group_order(samples: Samples, numbers: Tensor, seed: int) -> Tensor:
    """A random permutation (G,) of the groups, made from their contents and the seed: any part of it is a fair draw.

    The key of a group is a hash of its samples' sorted content hashes and of the number of equal groups before it.
    """
    contents = group_hashes(samples.hashes, numbers.numpy())
    seen: dict[int, int] = {}
    keys = []
    for content in contents:
        earlier = seen[content] = seen.get(content, -1) + 1
        keys.append(hash_bytes(_eight(content), _eight(earlier), _signed(seed)))
    return torch.from_numpy(np.argsort(np.array(keys, dtype=np.uint64), kind="stable"))


def one_of_each(samples: Samples, numbers: Tensor, chosen: Tensor, seed: int) -> Tensor:
    """Index of one sample of each chosen group, drawn by a keyed hash of contents, independently of `group_order`."""
    wanted = set(chosen.tolist())
    best: dict[int, tuple[int, int]] = {}
    copies: dict[tuple[int, int], int] = {}
    for i, (group, content) in enumerate(zip(numbers.tolist(), samples.hashes.tolist(), strict=True)):
        if group not in wanted:
            continue
        earlier = copies[group, content] = copies.get((group, content), -1) + 1
        key = hash_bytes(_PICK, _eight(content), _eight(earlier), _signed(seed))
        if group not in best or key < best[group][0]:
            best[group] = (key, i)
    return torch.tensor([best[g][1] for g in chosen.tolist()], dtype=torch.int64)


def group_hashes(hashes: Hashes, numbers: np.ndarray[Any, Any]) -> list[int]:
    """A hash of each group's samples, whatever their order, (G,)."""
    order = np.lexsort((hashes, numbers))
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    return [hash_bytes(part.tobytes()) for part in np.split(hashes[order], cuts)]


def _eight(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _signed(seed: int) -> bytes:
    return seed.to_bytes(8, "little", signed=True)
