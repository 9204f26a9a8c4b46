"""Results as a notebook shows them: each class asks here, and the page's code is imported only then."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def html(kind: str, value: Any) -> str:
    """HTML of a result, by the function of `flatminima.notebook` that is named after its kind."""
    found: str = getattr(import_module("flatminima.notebook"), kind)(value)
    return found
