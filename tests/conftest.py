"""One thread, and the guard against mutation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from mutation import Untouched, snapshot

torch.set_num_threads(1)


@pytest.fixture
def untouched() -> Untouched:
    """`with untouched(model):` fails if the block changes anything of the model or the random states."""

    @contextmanager
    def check(model: nn.Module) -> Iterator[None]:
        before = snapshot(model)
        try:
            yield
        finally:
            after = snapshot(model)
            changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
            assert not changed, f"changed: {sorted(changed)}"

    return check
