"""The command under `torchrun`: several processes, one measurement or training, the first of them speaks."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from flatminima.errors import UsageError

if TYPE_CHECKING:
    from flatminima.core.distributed import Ranks

_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(seconds=15)  # for processes that a launcher starts together; each has to import torch first
_PATIENCE_TORCHRUN = timedelta(seconds=60)
_LATER = timedelta(minutes=30)  # torch's own, for what comes after
_stores: list[Any] = []  # that the processes met by
_REMEDY = "start with torchrun, or unset WORLD_SIZE for one process"


def first() -> bool:
    """Whether this process is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0" or not several()


def several() -> bool:
    """Whether the environment says that this process is one of several."""
    text = os.environ.get("WORLD_SIZE", "1")
    try:
        return int(text) > 1
    except ValueError:
        raise UsageError(f"WORLD_SIZE is {text!r} in the environment, no number of processes: {_REMEDY}") from None


def own_device(name: str | None) -> str | None:
    """The device of this process: with several, "cuda" is the one of its place on the machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" and several() else name


def ranks() -> Ranks | None:
    """The processes that `torchrun` started (its WORLD_SIZE says how many); None for one alone.

    Raises:
        UsageError: the environment speaks of other processes, and they do not come: a launcher's leftovers.
    """
    if not several():
        return None
    import torch.distributed as dist

    from flatminima.core.distributed import Ranks

    if not dist.is_initialized():
        store, rank, size = _met()
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        _stores.append(store)
        atexit.register(dist.destroy_process_group)
    return Ranks()


def leave_together(code: int) -> None:
    """End a process of several when the others are done too, without the end of the interpreter.

    Threads of gloo's that still run when the interpreter's statics are destroyed abort the process, after all is
    written; torchrun then takes a finished run for a failed one.
    """
    if not _stores:
        return
    import torch.distributed as dist

    if code == 0:
        with contextlib.suppress(Exception):  # another that has failed, or is gone, is not waited for
            _stores[-1].set(f"flatminima/done/{dist.get_rank()}", "done")
            _stores[-1].wait([f"flatminima/done/{other}" for other in range(dist.get_world_size())], _PATIENCE)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _met() -> tuple[Any, int, int]:
    """The store that all processes share, once each has said that it is there."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    size = os.environ["WORLD_SIZE"]
    absent = [name for name in _NEEDED if not os.environ.get(name)]
    if absent:
        raise UsageError(f"WORLD_SIZE is {size} in the environment, without {', '.join(absent)}: {_REMEDY}")
    patience = _PATIENCE_TORCHRUN if "TORCHELASTIC_RUN_ID" in os.environ else _PATIENCE
    try:
        store, rank, count = next(rendezvous("env://", timeout=patience))
        store.set(f"flatminima/{rank}", "here")
        store.wait([f"flatminima/{other}" for other in range(count)], patience)
    except (dist.DistError, RuntimeError, ValueError, OSError):
        raise UsageError(
            f"WORLD_SIZE is {size} in the environment, but not all came within {patience.seconds} s: {_REMEDY}"
        ) from None
    store.set_timeout(_LATER)
    return store, rank, count
