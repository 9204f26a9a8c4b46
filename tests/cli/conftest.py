"""The command line as a function of its arguments."""

from __future__ import annotations

import pytest
from command_line import run


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)
