"""Measures: plain functions of a `Minimum` (or any `Statistics`) to an `Estimate`, a row each in the catalogue.

They are loaded here and now: a file may carry its function's name, and a lazy attribute would turn into the module once
that is imported. (`import flatminima` alone does not come here, and so does not import torch.)
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from flatminima.catalog import MEASURES
from flatminima.estimate import Estimate

if TYPE_CHECKING:
    from flatminima.measures.adaptive import *
    from flatminima.measures.conditions import *
    from flatminima.measures.distance import *
    from flatminima.measures.fisher import *
    from flatminima.measures.fisher_rao import *
    from flatminima.measures.gradient_noise import *
    from flatminima.measures.hessian import *
    from flatminima.measures.lipschitz import *
    from flatminima.measures.margin import *
    from flatminima.measures.noise_flatness import *
    from flatminima.measures.norms import *
    from flatminima.measures.pacgen import *
    from flatminima.measures.power_law import *
    from flatminima.measures.robustness import *
    from flatminima.measures.sharpness import *
    from flatminima.measures.spectral_complexity import *
    from flatminima.measures.spectrum import *

__all__ = list(MEASURES)


def __getattr__(name: str) -> Callable[..., Estimate]:
    raise AttributeError(f"no measure {name!r}: `flatminima list` shows all")


def __dir__() -> list[str]:
    return __all__


globals().update({row.name: row.load() for row in MEASURES.values()})
