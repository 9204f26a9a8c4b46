"""Measures: plain functions of a `Minimum` (or any `Statistics`) to an `Estimate`; imported when first asked for."""

from typing import Any

from flatminima import catalog

__all__ = sorted(catalog.MEASURES)


def __getattr__(name: str) -> Any:
    if name in catalog.MEASURES:
        return catalog.MEASURES[name].load()
    raise AttributeError(f"module 'flatminima.measures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
