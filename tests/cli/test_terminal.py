"""Progress shows on a terminal only, after a moment, and goes away."""

from __future__ import annotations

import io
import sys

import pytest

from flatminima import progress
from flatminima.cli import terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_is_written_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with terminal.bars():
        for i in range(5):
            progress.report("sweep", i + 1, 5)
    assert pipe.getvalue() == ""


def test_a_bar_with_a_remaining_time_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(terminal, "_PATIENCE", -1.0)
    monkeypatch.setenv("TERM", "xterm")
    with terminal.bars():
        progress.report("sweep", 1, 4)
        progress.report("sweep", 2, 4)
    assert "sweep" in screen.getvalue()
    assert "50%" in screen.getvalue()
    assert ":" in screen.getvalue()  # the remaining time, -:--:-- at first


def test_short_work_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with terminal.bars():
        for i in range(4):
            progress.report("sweep", i + 1, 4)
    assert "sweep" not in screen.getvalue()
