"""The data of a study: where a name leads, and tensors that the runs of one process share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from flatminima.data import load_tensors
from flatminima.errors import UsageError
from flatminima.studies.study import Sources

HUB = {
    "mnist": "ylecun/mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "tinyimagenet": "zh-plus/tiny-imagenet",
}


_HUB_NAME = re.compile(r"digits|[\w.-]+/[\w.-]+|\w+://.+")


def find(datasets: Sequence[str], data: str | None = None) -> Sources:
    """Find the data sets of a study.

    Args:
        datasets: their names. data: None for the Hugging Face hub; a folder that holds a folder a data set, each called
            by the data set's name or beginning with it and a dash; or, for a study of one data set, any source that
            `load_tensors` takes. The embedded digits are always there.

    Raises:
        UsageError: several data sets and a folder without one of them; no such folder.

    Examples:
        >>> find(["mnist"])["mnist"]
        'ylecun/mnist'
    """
    found = {"digits": "digits"}
    for name in datasets:
        if data is None:
            found[name] = HUB[name]
            continue
        inside = [p for p in sorted(Path(data).glob(f"{name}*")) if p.name == name or p.name.startswith(f"{name}-")]
        if inside:
            found[name] = os.fspath(inside[0])
        elif len(datasets) == 1 and (Path(data).exists() or _HUB_NAME.fullmatch(data)):
            found[name] = data
        elif not Path(data).exists():
            raise UsageError(f"no folder {data}; name the folder that has {', '.join(datasets)}, or a hub's OWNER/NAME")
        else:
            raise UsageError(f"no folder {name} in {data}; this study reads {', '.join(datasets)} from there")
    return found


_device: ContextVar[str | None] = ContextVar("flatminima_device", default=None)


@contextmanager
def on(device: str | None) -> Iterator[None]:
    """Within the block `images` lie on the device; None: on the CPU."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def images(
    source: str, split: str = "train", limit: int | None = None, size: int | None = None, scaling: str = "unit"
) -> tuple[Tensor, Tensor]:
    """Inputs and targets where the study runs, read once a process; not to be written to.

    Arguments as `load_tensors` takes them. A run moves its network there: ``build(...).to(x.device)``.
    """
    return _read(source, split, limit, size, scaling, _device.get())


def fresh(source: str, count: int, seed: int, size: int | None = None, scaling: str = "unit") -> tuple[Tensor, Tensor]:
    """So many training samples, others for each seed; the first of a longer draw are those of a shorter one.

    Arguments as of `images`; `count` at most all there are.

    Raises:
        UsageError: more samples than the data set has.
    """
    x, y = images(source, "train", None, size, scaling)
    if count > len(x):
        raise UsageError(f"got {count} samples to draw of {len(x)}; ask for fewer")
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count].to(x.device)
    return x[chosen], y[chosen]


@lru_cache(maxsize=6)
def _read(
    source: str, split: str, limit: int | None, size: int | None, scaling: str, device: str | None
) -> tuple[Tensor, Tensor]:
    x, y = load_tensors(source, split, limit=limit, scaling=scaling, image_size=size)
    return (x, y) if device is None else (x.to(device), y.to(device))
