"""Calculations, seconds in all, that decide theoretical sentences of the papers, by the registry's names for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType

from flatminima.studies.claims.checks import coverage, jia, layers, networks, neyshabur, truncated_noise, wang
from flatminima.studies.claims.checks.outcome import Outcome

__all__ = ["CHECKS", "Outcome"]


def _public(module: ModuleType) -> dict[str, Callable[[], Outcome]]:
    return {
        name: found
        for name, found in vars(module).items()
        if callable(found) and not name.startswith("_") and getattr(found, "__module__", "") == module.__name__
    }


_MODULES = (wang, truncated_noise, coverage, networks, neyshabur, layers, jia)
CHECKS: Mapping[str, Callable[[], Outcome]] = {
    name: found for module in _MODULES for name, found in _public(module).items()
}
