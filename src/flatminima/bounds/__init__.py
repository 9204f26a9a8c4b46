"""PAC-Bayes bounds and divergences: float64 numbers in, numbers out; no torch. They broadcast over arrays.

Every docstring says whether its number is a CERT, true with probability 1 - delta under the listed
conditions, or a SCORE, fit for ranking only. Papers' variants and corrected ones stand side by side.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flatminima.catalog.bounds import BOUNDS, PARTS

if TYPE_CHECKING:
    from flatminima.bounds.certificate import *
    from flatminima.bounds.divergence import *
    from flatminima.bounds.hoeffding import *
    from flatminima.bounds.jia import *
    from flatminima.bounds.kl import *
    from flatminima.bounds.laplace import *
    from flatminima.bounds.losses import *
    from flatminima.bounds.neyshabur import *
    from flatminima.bounds.pac_bayes import *
    from flatminima.bounds.top_eigenvalue import *
    from flatminima.bounds.truncated import *
    from flatminima.bounds.wang import *
    from flatminima.bounds.wang_grid import *

_HOME = {row.name: row.module for row in BOUNDS.values()}
_HOME |= {name: file for file, names in PARTS.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Callable[..., Any]:
    raise AttributeError(f"no bound {name!r}: `flatminima list` shows all")


def __dir__() -> list[str]:
    return __all__


# all of them, here and now: a file may carry its function's name, and would replace it once it is imported
globals().update({name: getattr(import_module(f"flatminima.bounds.{file}"), name) for name, file in _HOME.items()})
