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
    assert "-:--:--" in screen.getvalue()  # the time left, unknown at first
    assert "0:00:00 left" in screen.getvalue()


def test_short_work_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with terminal.bars():
        for i in range(4):
            progress.report("sweep", i + 1, 4)
    assert "sweep" not in screen.getvalue()


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
def test_nothing_is_drawn_where_nobody_wants_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(terminal, "_PATIENCE", -1.0)
    monkeypatch.setenv(name, "dumb")
    with terminal.bars():
        progress.report("sweep", 1, 4)
    assert screen.getvalue() == ""


NUMBERS = [
    ((-519.23, 17.3), "-519 +- 17"),
    ((0.25161, 0.034), "0.252 +- 0.034"),
    ((62.3, 99.7), "62 +- 100"),
    ((5.699e-5, 1.03e-5), "5.70e-5 +- 1.0e-5"),
    ((12.0, 1e-9), "12 +- 1.0e-9"),
    ((0.0, 0.1), "0.00 +- 0.10"),
    ((4600.1234, None), "4600"),
    ((4600.0, 0.0), "4600 +- 0"),
]


@pytest.mark.parametrize(("number", "text"), NUMBERS, ids=[text for _, text in NUMBERS])
def test_numbers_show_what_their_error_lets_them(number: tuple[float, float | None], text: str) -> None:
    assert terminal.number(*number) == text
