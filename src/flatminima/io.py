"""Files that are whole or absent, folders that one process writes, and the keys under which results are kept.

A write goes to a new file of a random name, which is made with O_EXCL and follows no link, is flushed to the disk and
renamed; then the folder is flushed, so that neither a kill nor a power cut leaves half a file or none.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

import flatminima
from flatminima.errors import FolderInUse, UsageError, WriteFailed

LOCK = ".lock"
PATIENCE = 60.0  # seconds for another process that writes its results
GLANCE = 1.0  # seconds for another process that only looks whether a folder is in use, which takes milliseconds
DAY = 86_400.0
_UNDER_WAY = ".tmp"  # ends the name of a file that is being written
_TOKEN_BYTES = 8
# what another command line would not mend: the machine's state, not the user's request
NOT_USAGE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENFILE}
NOT_USAGE |= {errno.EMFILE, errno.ESTALE, errno.ENOLCK}
_REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or ")
_REMEDIES |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "ask for the permission, or ")


def write_whole(path: str | os.PathLike[str], content: str | bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a reader sees all of it or nothing, also after a power cut.

    Args:
        path: of the file, in a folder that exists; a file or a link of that name is replaced, not written through.
        content: text, bytes, or a function that writes to an open file.

    Raises:
        WriteFailed: no space, no permission, a failing disk. UsageError: the path names no place for a file.
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(_TOKEN_BYTES)}{_UNDER_WAY}")
    try:
        with open(temporary, "xb", opener=_opened_without_links) as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns the one into the other
        raise cannot_write(target, error) from None
    finally:
        with contextlib.suppress(OSError):  # after the rename there is nothing left to remove
            temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; it is not flushed to the disk.

    Raises:
        WriteFailed, UsageError: as `write_whole`.
    """
    try:
        with open(path, "a", encoding="utf-8", opener=_opened_without_links) as file:
            file.write(line + "\n")
    except OSError as error:
        raise cannot_write(path, error) from None


def make_folder(folder: Path) -> Path:
    """The folder, with those above it.

    Raises:
        WriteFailed, UsageError: it cannot be made.
    """
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error, to="to ") from None
    return folder


@contextmanager
def claimed(folder: Path, *, wait: float = GLANCE) -> Iterator[Path]:
    """The folder, made if it is not there, for this process alone; the system lets go of it when the process dies.

    Files that a killed process left half written are removed.

    Args:
        wait: seconds for another process to end; `PATIENCE` for what only writes what is known, at a command's end.

    Raises:
        FolderInUse: another process has it. WriteFailed, UsageError: it cannot be written.
    """
    until = time.monotonic() + wait
    while (lock := _locked(folder, until)) is None:
        pass
    try:
        clear_left(folder)
        yield folder
    finally:
        lock.release()


def _locked(folder: Path, until: float) -> FileLock | None:
    """The folder's lock, held; None where the process that had it has meanwhile removed the folder."""
    make_folder(folder)
    lock = FileLock(folder / LOCK)
    try:
        _refuse_link(folder / LOCK)
        lock.acquire(timeout=max(0.0, until - time.monotonic()))
    except Timeout:
        raise FolderInUse(
            f"another process is writing to {folder}: wait until it ends, or choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:  # the second: a file system without locks
        if isinstance(error, FileNotFoundError) and not folder.is_dir():
            return None
        raise cannot_write(folder, error, to="to ") from None
    return lock


def clear_left(folder: Path, older: float = 0.0) -> None:
    """Remove what killed processes left half written; with `older` seconds, where another may be writing."""
    for left in folder.glob(f".{'[0-9a-f]' * 2 * _TOKEN_BYTES}{_UNDER_WAY}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime >= older:
                left.unlink()


def refuse_in_use(folder: Path, wait: float = GLANCE) -> None:
    """Refuse before the work a folder that another process has claimed; leaves nothing behind.

    Args:
        wait: seconds for that process to end.

    Raises:
        FolderInUse: it has.
    """
    if (folder / LOCK).is_file():
        with claimed(folder, wait=wait):
            pass


def cannot_write(path: Path, error: BaseException, to: str = "") -> UsageError | WriteFailed:
    """The error to raise for a path that the system refused to write.

    Args:
        error: an OSError, or what a library made of one. to: "to " for a folder.
    """
    number = _number(error)
    reason = (str(error) or type(error).__name__).splitlines()[0] if number is None else os.strerror(number)
    if number is None and isinstance(error, RuntimeError):  # torch's writer keeps no number, only that it failed
        reason, number = f"the system refused a write ({reason})", errno.EIO
    if number not in NOT_USAGE:
        return UsageError(f"cannot write {to}{path}: {reason}; choose another folder")
    remedy = _REMEDIES.get(number, "")
    return WriteFailed(f"cannot write {to}{path}: {reason}; {remedy}choose another folder")


def sync_folder(folder: Path) -> None:
    """Make a rename itself survive a power cut, where the system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        with contextlib.suppress(OSError):  # a file system that cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def versions() -> dict[str, str]:
    """Versions that results may depend on beside the configuration."""
    import torch

    return {"flatminima": flatminima.__version__, "torch": str(torch.__version__), "python": platform.python_version()}


def json_text(document: Any, indent: int | None = 1, *, finite: bool = True) -> str:
    """A document as JSON in ASCII, in which every control character of a name is escaped; `finite` refuses NaN."""
    return json.dumps(document, indent=indent, allow_nan=not finite).replace("\x7f", "\\u007f")


def run_key(document: Any, *, digest_size: int = 8, content: Path | None = None) -> str:
    """Hexadecimal digits that name a configuration: equal for equal documents, whatever their order of keys.

    Args:
        document: what JSON can hold.
        content: a file whose bytes belong to it too.
    """
    digest = hashlib.blake2b(digest_size=digest_size)
    if content is not None:
        with open(content, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    digest.update(json.dumps(document, sort_keys=True).encode())
    return digest.hexdigest()


def _refuse_link(path: Path) -> None:
    if path.is_symlink():  # a lock is opened, and would empty what the link points to
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _number(error: BaseException | None) -> int | None:
    """errno of an error, or of the one that it was raised while handling."""
    while error is not None:
        number = getattr(error, "errno", None)
        if isinstance(number, int):
            return number
        error = error.__cause__ or error.__context__
    return None


def _opened_without_links(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0), 0o666)
