"""Releases that compute a run alike, so that an upgrade does not throw away hours of runs."""

from __future__ import annotations

from typing import Any

from flatminima.io import versions

# The oldest release whose runs this one computes alike, but for rounding. Whoever alters what a run computes raises it.
SINCE = "0.1.0"


def computed_by() -> dict[str, str]:
    """The versions that decide a run's numbers, part of its name: releases that compute alike share one."""
    return versions() | {"flatminima": SINCE}


def computed_alike(recorded: Any) -> bool:
    """Whether runs of the recorded versions are what this release computes.

    Raises:
        KeyError, TypeError, ValueError: they are not versions.
    """
    here = versions()
    release = _numbers(recorded["flatminima"])
    return recorded == here | {"flatminima": recorded["flatminima"]} and (
        _numbers(SINCE) <= release <= _numbers(here["flatminima"])
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
