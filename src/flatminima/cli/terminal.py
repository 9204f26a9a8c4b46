"""Shared by the commands: consoles, numbers, and progress on a terminal's stderr."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderHook
from rich.control import Control
from rich.markup import escape
from rich.segment import Segment

from flatminima import progress
from flatminima.escaping import shown, shown_lines

WIDTH = 80
_PATIENCE = 1.0  # seconds before a bar appears
_MINUTE = 60.0  # seconds between two lines in a pipe
_PLAIN = (1e-3, 1e6)  # absolute values written without an exponent
_DIGITS = 6  # after the point, at most


@dataclass(frozen=True)
class _Shown:
    """Something to be printed, its control characters escaped; colours are rich's own and stay."""

    inner: Any

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.inner, options):
            yield segment if segment.control else Segment(shown_lines(segment.text), segment.style)


class _Escaping(RenderHook):
    """Of a console: nothing reaches it but through `_Shown`."""

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        return [each if isinstance(each, Control) else _Shown(each) for each in renderables]


def out() -> Console:
    """stdout, at most 80 columns wide unless the terminal is wider; control characters of names are escaped."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, soft_wrap=False)
    console.push_render_hook(_Escaping())
    return console


def say(*lines: str) -> None:
    """A note on stderr, in lines; a name in one of them breaks none. An empty first line sets it apart."""
    print("\n".join(map(shown, lines)), file=sys.stderr, flush=True)


def say_notes(notes: Iterable[str]) -> None:
    """Print notes on stderr, a line each: a user should know them before the result."""
    for note in notes:
        say(f"Note: {note}")


def tell(text: str) -> None:
    """A line of the result, on stdout."""
    print(shown_lines(text))


def number(value: float, stderr: float | None = None) -> str:
    """A value to four digits, or with its error to the error's second digit.

    Examples:
        >>> number(-519.23, 17.3), number(0.25161, 0.034), number(4600.1234)
        ('-519 +- 17', '0.252 +- 0.034', '4600')
    """
    if not stderr:
        return f"{value:.4g}" + ("" if stderr is None else " +- 0")
    if not _PLAIN[0] <= max(abs(value), stderr) < _PLAIN[1]:
        return _short(f"{value:.2e} +- {stderr:.1e}")
    digits = max(1 - math.floor(math.log10(stderr)), 0)
    return f"{value:.{digits}f} +- {stderr:.{digits}f}" if digits < _DIGITS else _short(f"{value:.4g} +- {stderr:.1e}")


def _short(text: str) -> str:
    return text.replace("e-0", "e-").replace("e+0", "e+")


def animated() -> bool:
    """Whether stderr may be drawn on: a terminal that moves its cursor, and nobody asked for none."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def bars() -> Iterator[None]:
    """Show the library's progress with the time left; where stderr is not a terminal a line a minute."""
    if not animated():
        with progress.listening(_Lines()):
            yield
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns: list[Any] = [TextColumn("{task.description:.36}"), BarColumn(None), TaskProgressColumn()]
    with Progress(*columns, TextColumn("{task.fields[left]}"), console=Console(stderr=True), transient=True) as display:
        tasks: dict[str, Any] = {}
        started: dict[str, tuple[float, float]] = {}

        def listen(task: str, done: float, total: float) -> None:
            now = time.monotonic()
            began, before = started.setdefault(task, (now, done))
            if done >= total:
                started.pop(task)
                if task in tasks:
                    display.remove_task(tasks.pop(task))
                return
            # from the work done since the first report, since sweeps report too seldom for a sliding speed
            left = clock((now - began) * (total - done) / (done - before)) if done > before else "-:--:--"
            if task not in tasks and now - began > _PATIENCE:
                tasks[task] = display.add_task(escape(shown(task)), total=total, left=left)
            if task in tasks:
                display.update(tasks[task], completed=done, total=total, left=left)

        with progress.listening(listen):
            yield


class _Lines:
    """A line a minute of the latest task, for pipes and logs."""

    def __init__(self) -> None:
        self._said = time.monotonic()
        self._began: dict[str, tuple[float, float]] = {}

    def __call__(self, task: str, done: float, total: float) -> None:
        now = time.monotonic()
        began, before = self._began.setdefault(task, (now, done))
        if done >= total:
            del self._began[task]
            return
        if now - self._said < _MINUTE:
            return
        self._said = now
        left = f", {clock((now - began) * (total - done) / (done - before))}" if done > before else ""
        say(f"{task}: {done / total:.0%}{left}")


def clock(seconds: float) -> str:
    """Time left, as on a bar."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02} left"
