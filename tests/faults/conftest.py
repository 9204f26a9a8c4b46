"""One set of results for all tests that read some."""

from __future__ import annotations

import pytest

from hostile import Made


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made.at(tmp_path_factory.mktemp("made"))
