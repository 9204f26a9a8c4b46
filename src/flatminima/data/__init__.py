"""Labelled data as tensors: sources, scaling, augmentation and label noise.

Imports `torch` and `numpy` only; `datasets` and Pillow are imported when a source needs them.
`load_tensors` is the one call the command line makes: the same source, split, limit and scaling give the same
tensors on every machine.
"""

from __future__ import annotations

from flatminima.data.augment import augmentation, random_crop, random_flip, random_shift
from flatminima.data.corrupt import append_confusion, corrupt_labels, random_labels
from flatminima.data.labelled import LabelledData
from flatminima.data.reading import Reading
from flatminima.data.sources import load
from flatminima.data.tensors import Normalisation, Prepared, load_tensors, normalise, prepare

__all__ = [
    "LabelledData",
    "Normalisation",
    "Prepared",
    "Reading",
    "append_confusion",
    "augmentation",
    "corrupt_labels",
    "load",
    "load_tensors",
    "normalise",
    "prepare",
    "random_crop",
    "random_flip",
    "random_labels",
    "random_shift",
]


def __dir__() -> list[str]:
    return __all__
