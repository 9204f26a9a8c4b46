"""What the commands share: consoles, and progress on a terminal's stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from flatminima import progress

WIDTH = 80
_PATIENCE = 1.0  # seconds before a bar appears


def out() -> Console:
    """stdout, at most 80 columns wide unless the terminal is wider."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, soft_wrap=False)


def say(text: str) -> None:
    """A note on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def bars() -> Iterator[None]:
    """Show the library's progress with an ETA; nothing where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns: list[Any] = [TextColumn("{task.description:.36}"), BarColumn(None), TaskProgressColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as display:
        tasks: dict[str, Any] = {}
        started: dict[str, float] = {}

        def listen(task: str, done: float, total: float) -> None:
            now = time.monotonic()
            began = started.setdefault(task, now)
            if done >= total:
                started.pop(task)
                if task in tasks:
                    display.remove_task(tasks.pop(task))
                return
            if task not in tasks and now - began > _PATIENCE:
                tasks[task] = display.add_task(task, total=total)
            if task in tasks:
                display.update(tasks[task], completed=done, total=total)

        with progress.listening(listen):
            yield
