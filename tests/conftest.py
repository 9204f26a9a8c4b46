"""One thread, the guard against mutation, and which tests go to one worker."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from mutation import Untouched, snapshot

torch.set_num_threads(1)
_SEED = int(os.environ.get("FLATMINIMA_TEST_SEED", "0"))  # another one shows which tests rest on their draws


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A file's tests share what it keeps, so they are a group of one worker, unless they are marked `apart`.

    Where there are workers, groups with slow tests begin first: the last to end are then short.
    """
    groups = [_group(item) for item in items]
    for item, group in zip(items, groups, strict=True):
        if group != item.nodeid and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(group))
    if hasattr(config, "workerinput"):
        slow = Counter(g for item, g in zip(items, groups, strict=True) if item.get_closest_marker("slow"))
        order = sorted(range(len(items)), key=lambda i: -slow[groups[i]])
        items[:] = [items[i] for i in order]


def pytest_collection_finish() -> None:
    """What was imported stays: later collections of garbage need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before the fixtures of a module draw
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test draws the same numbers whatever ran before it, so that one which rests on them fails everywhere."""
    torch.manual_seed(_SEED)
    random.seed(_SEED)
    np.random.seed(_SEED)


def _group(item: pytest.Item) -> str:
    chosen = item.get_closest_marker("xdist_group")
    if chosen is not None:
        return str(chosen.args[0])
    return item.nodeid if item.get_closest_marker("apart") else item.nodeid.partition("::")[0]


@pytest.fixture(autouse=True)
def certificates_counted_for_each_test() -> None:
    """Certificates of one process share what is left of a probability; each test is a process of its own."""
    ledger = sys.modules.get("flatminima.certification.ledger")
    if ledger is not None:
        ledger.COMPUTED.forget()


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
