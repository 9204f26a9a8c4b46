"""Studies: a figure or table of a paper as runs, with a verdict on every claim."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from flatminima.catalog.choices import SCALES
from flatminima.catalog.studies import STUDY_FILES
from flatminima.studies.resumable import train
from flatminima.studies.runner import collect, reproduce
from flatminima.studies.study import Study
from flatminima.studies.verdict import Verdict, compare, share, trend

__all__ = ["SCALES", "STUDIES", "Study", "Verdict", "collect", "compare", "reproduce", "share", "train", "trend"]

_FOUND = [import_module(f"flatminima.studies.{file}").STUDY for file in STUDY_FILES.values()]
STUDIES: Mapping[str, Study] = MappingProxyType({study.id: study for study in _FOUND})


def __dir__() -> list[str]:
    return __all__
