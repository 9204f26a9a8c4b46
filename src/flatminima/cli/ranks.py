"""The command under `torchrun`: several processes, one measurement, the first of them speaks."""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatminima.core.distributed import Ranks


def first() -> bool:
    """Whether this process is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def ranks() -> Ranks | None:
    """The processes that `torchrun` started (its WORLD_SIZE says how many); None for one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    import torch.distributed as dist

    from flatminima.core.distributed import Ranks

    if not dist.is_initialized():
        dist.init_process_group("gloo")
        atexit.register(dist.destroy_process_group)
    return Ranks()
