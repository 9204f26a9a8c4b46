"""Commands as a shell would type them, and what comes of them."""

from __future__ import annotations

import sys

import pytest

from flatminima.cli.app import main

DIGITS = ["--data", "digits", "--limit", "150", "--model-arg", "widths=(64,16,10)", "--subset", "20"]
USER = ["measure", "--data", "digits", "--model"]
MODEL = ["measure", "--model", "a.b:c", "--data", "digits"]
MLP = ["measure", "--model", "flatminima.models:mlp", *DIGITS]


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `main`, as a shell would see them."""
    monkeypatch.setattr(sys, "argv", ["flatminima", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err
