"""One process at a time writes a run's folder: two would mix their lines and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from flatminima.errors import FolderInUse, UsageError

LOCK = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder, made if it is not there, for this process alone; the system lets go of it when the process dies.

    Raises:
        FolderInUse: another process has it. UsageError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUse(
            f"another process is writing to {folder}: wait until it ends, or choose another folder"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from None
    try:
        yield folder
    finally:
        lock.release()
