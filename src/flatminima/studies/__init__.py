"""Studies: a figure or table of a paper as runs, with a verdict on every claim."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from flatminima.studies.resumable import train
from flatminima.studies.runner import collect, reproduce
from flatminima.studies.study import SCALES, Study
from flatminima.studies.verdict import Verdict, compare, share, trend

__all__ = ["SCALES", "STUDIES", "Study", "Verdict", "collect", "compare", "reproduce", "share", "train", "trend"]

_FILES = (
    "cohen_edge",
    "jia_augmentation",
    "jia_batch",
    "jia_confusion",
    "jia_regularized_metric",
    "jia_regularizer",
    "minima_over_time",
    "neyshabur_conditions",
    "neyshabur_confusion",
    "neyshabur_random_labels",
    "neyshabur_width",
    "wang_cifar_batch",
    "wang_cifar_lr",
    "wang_mnist_batch",
    "wang_mnist_lr",
    "wang_pertopt",
    "wang_rescaling",
    "wang_toy",
)
_FOUND = [import_module(f"flatminima.studies.{name}").STUDY for name in _FILES]
STUDIES: Mapping[str, Study] = MappingProxyType({study.id: study for study in _FOUND})
