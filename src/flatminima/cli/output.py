"""`--output`: whether a folder can be written, before the work, and what is kept there meanwhile."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from flatminima.errors import UsageError, WriteFailed

T = TypeVar("T")


@contextmanager
def kept_for(output: Path | None, asked: dict[str, Any]) -> Iterator[None]:
    """Within the block what is finished is kept below the folder, for the same command."""
    if output is None:
        yield
        return
    from flatminima.core.statistic_store import keeping
    from flatminima.io import run_key

    with keeping(output, run_key(asked)):
        yield


def forget(output: Path | None) -> None:
    """Delete the statistics that were kept for results that are written now."""
    if output is not None:
        from flatminima.core.statistic_store import done

        done(output)


def in_place_of_kept(output: Path | None, write: Callable[[], T]) -> T:
    """Write results, and delete the statistics that were kept for them: before, where both do not fit on the disk.

    Raises:
        WriteFailed: they do not fit without these either.
    """
    try:
        written = write()
    except WriteFailed as error:
        number = getattr(error.__context__, "errno", None)
        if output is None or number not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise
        forget(output)
        written = write()
    forget(output)
    return written


def writable(output: Path, files: tuple[str, ...], *, shared: bool = False) -> None:
    """Refuse before the work what would fail after it, leaving nothing behind.

    Args:
        shared: several processes write to the folder, one at a time: wait for one that does.

    Raises:
        WriteFailed: the folder, or where it would be made, cannot be written.
        FolderInUse: another process writes there. UsageError: a folder has the name of a file.
    """
    from flatminima.io import GLANCE, PATIENCE, cannot_write, refuse_in_use

    refuse_in_use(output, wait=PATIENCE if shared else GLANCE)
    try:
        folder = output.absolute()
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
        taken = [name for name in files if (output / name).is_dir()]
    except OSError as error:
        raise cannot_write(output, error, to="to ") from None
    if taken:
        raise UsageError(f"cannot write to {output}: {taken[0]} is a folder there; choose another --output")
