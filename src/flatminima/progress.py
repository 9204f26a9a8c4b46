"""The one hook through which long work says how far it is; the command line fills it, libraries ignore it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module

_Listener = Callable[[str, float, float], None]  # task, done, total

_listener: ContextVar[_Listener | None] = ContextVar("flatminima_progress", default=None)


def report(task: str, done: float, total: float) -> None:
    """Tell whoever listens that `done` of `total` units of `task` are finished."""
    listener = _listener.get() or _in_a_notebook()
    if listener is not None:
        listener(task, done, total)


@cache
def _in_a_notebook() -> _Listener | None:
    """A notebook's own bars, where this process is its kernel; one that imported ipykernel only is none."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if getattr(shell, "kernel", None) is None:
        return None
    found: _Listener | None = import_module("flatminima.notebook").bars()
    return found


@contextmanager
def listening(listener: _Listener) -> Iterator[None]:
    """Send reports to `listener` within the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
