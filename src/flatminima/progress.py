"""The one hook through which long work says how far it is; the command line fills it, libraries ignore it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, float, float], None]  # task, done, total

_listener: ContextVar[Listener | None] = ContextVar("flatminima_progress", default=None)


def report(task: str, done: float, total: float) -> None:
    """Tell whoever listens that `done` of `total` units of `task` are finished."""
    listener = _listener.get()
    if listener is not None:
        listener(task, done, total)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send reports to `listener` within the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
