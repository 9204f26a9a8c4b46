"""Commands in processes of their own, forked from one that has imported the library: imports are half of a short one.

Each is the leader of a group, as a shell's job is, and may be killed at any of its operations on files: between two
of those a kill leaves the same files behind.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_PRELOADED = (
    "processes",
    "flatminima",
    "flatminima.cli.app",
    "flatminima.certification",
    "flatminima.demo",
    "flatminima.ranking",
    "flatminima.report",
    "flatminima.studies",
    "flatminima.training",
)
FSDP2_ON_CPU = tuple(int(n) for n in version("torch").split(".")[:2]) >= (2, 7)  # has a backward pass there
_WRITES = ("open", "os.rename", "os.mkdir", "os.remove", "os.truncate")


def context() -> ForkServerContext:
    """Processes forked from one that has imported the library, and nothing of this one."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(_PRELOADED))
    return found


def _watch(folder: Path, kill_at: int | None) -> Callable[[], int]:
    """Count operations on what is in the folder; the process kills itself just before number `kill_at`."""
    seen = 0

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in _WRITES and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)
    return lambda: seen


def _run(
    arguments: list[str],
    folder: Path | None,
    kill_at: int | None,
    streams: tuple[Path | None, Path | None],
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for number, path in zip((1, 2), streams, strict=True):
        os.dup2(os.open(path or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    import torch

    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    sys.argv = ["flatminima", *arguments]
    count = _watch(folder, kill_at) if folder is not None else None
    from flatminima.cli import main

    try:
        main()
    finally:
        if count is not None and folder is not None:
            Path(f"{folder}.operations").write_text(str(count()))


def start(
    *arguments: str,
    folder: Path | None = None,
    kill_at: int | None = None,
    stdout: Path | None = None,
    stderr: Path | None = None,
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> BaseProcess:
    """Start ``flatminima ARGUMENTS``.

    Args:
        arguments: of the command.
        folder: where its operations on files are counted, for `operations`.
        kill_at: the number of the operation there before which the process is killed.
        stdout, stderr: files that take what it prints; None: nobody sees it.
        environment: added to this process's.
        prepare: called in the process before the command, a function of a module.
    """
    given = {**os.environ, **(environment or {})}
    process = context().Process(target=_run, args=(list(arguments), folder, kill_at, (stdout, stderr), given, prepare))
    process.start()
    return process


def run(*arguments: str, timeout: float = 600, **options: object) -> int:
    """Its exit code, negative for the signal that ended it; arguments as for `start`."""
    process = start(*arguments, **options)  # type: ignore[arg-type]
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"flatminima {' '.join(arguments)} took more than {timeout} s")
    return process.exitcode


def fork_workers() -> None:
    """To `prepare` with: a pool's processes are forks of the command's, which has no threads; spawned, each imports."""
    forked = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: forked  # type: ignore[assignment,misc]


def ranks(worker: Callable[..., None], *arguments: object) -> None:
    """worker(rank, *arguments) in two processes, as by `torch.multiprocessing.spawn`."""
    import torch.multiprocessing

    context()
    torch.multiprocessing.start_processes(worker, arguments, nprocs=2, start_method="forkserver")


def results_of_ranks(worker: Callable[..., None], folder: Path) -> list[Any]:
    """What worker(rank, port, folder) saved as folder/RANK.pt, in two processes."""
    import torch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks(worker, port, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@contextmanager
def process_group(rank: int, port: int) -> Iterator[None]:
    """One of two ranks of gloo, which waits for the other at the end."""
    import torch
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def operations(folder: Path) -> int:
    """How many operations on files the last command that ended by itself did in the folder."""
    return int(Path(f"{folder}.operations").read_text())
