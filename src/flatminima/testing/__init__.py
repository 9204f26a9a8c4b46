"""Tests for authors of a measure, an optimizer or a model: does it leave everything else alone?"""

from flatminima.testing.check import NotUntouched, Report, check_untouched
from flatminima.testing.modes import MODES
from flatminima.testing.state import ITEMS

__all__ = ["ITEMS", "MODES", "NotUntouched", "Report", "check_untouched"]


def __dir__() -> list[str]:
    return __all__
