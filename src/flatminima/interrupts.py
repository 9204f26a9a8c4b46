"""SIGINT and SIGTERM: the first lets long work keep its state and stops it, a second one stops the process at once.

The command line installs the handlers. Work that can be gone on with runs within `deferred()` and calls `check()` where
its state is whole; outside of it a signal raises where it arrives, like Ctrl-C. A library's user who installs nothing
sees Python's own behaviour.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = tuple(s for s in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM")) if s is not None)
_SHOW_CURSOR = b"\x1b[?25h"

_EXIT = 128  # and the signal's number: the shell's exit code of a process that it ended

_pending: int | None = None
_deferring = 0
_worker = False
_latest: Interrupted | None = None


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop.

    Args:
        signum: which one; the exit code is 128 more.
        kept: what the work said it has kept, for the user; "" where nothing was.
    """

    def __init__(self, signum: int, kept: str = "") -> None:
        global _latest
        super().__init__(signal.Signals(signum).name)
        self.signum, self.kept = signum, kept
        _latest = self


@contextmanager
def handled() -> Iterator[None]:
    """Within the block signals are handled as this module says; nothing happens outside of the main thread."""
    global _pending, _latest
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in _SIGNALS}
    _pending = _latest = None
    for s in _SIGNALS:
        if before[s] != signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(s, _arrived)
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, signal.SIG_DFL if handler is None else handler)
        _pending = None


def handle_as_worker() -> None:
    """Set the signals of a pool's process: Ctrl-C is the parent's, which sends SIGTERM; its state is kept."""
    global _worker
    _worker = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _arrived)


@contextmanager
def ending_in_silence() -> Iterator[None]:
    """End the process of a worker whose work stopped for a signal: a pool would print a traceback and go on."""
    try:
        raise_if_interrupted()
        yield
    except Interrupted as stop:
        if not _worker:
            raise
        os._exit(_EXIT + stop.signum)


@contextmanager
def deferred() -> Iterator[None]:
    """Within the block a signal waits for the next `raise_if_interrupted`."""
    global _deferring
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1


@contextmanager
def unbroken() -> Iterator[None]:
    """Within the block, which is short, a signal waits for its end, or for a check in the block around it."""
    with deferred():
        yield
    if not _deferring:
        raise_if_interrupted()


def requested() -> bool:
    """Whether a signal is waiting."""
    return _pending is not None


def latest() -> Interrupted | None:
    """The signal that stopped this process, also where a framework has swallowed it; None where nothing did."""
    return _latest


def raise_if_interrupted() -> None:
    """Stop here if a signal is waiting.

    Raises:
        Interrupted: it is.
    """
    if _pending is not None:
        raise Interrupted(_pending)


def stop() -> None:
    """Stop here, for a signal that this process or another of its group got.

    Raises:
        Interrupted: always.
    """
    raise Interrupted(signal.SIGTERM if _pending is None else _pending)


def _arrived(signum: int, _: FrameType | None) -> None:
    global _pending
    _pending = signum
    if not _worker and "TORCHELASTIC_RUN_ID" not in os.environ:
        # a parent passes on what the terminal or the scheduler sent to all already, and kills what does not end
        for s in _SIGNALS:
            if signal.getsignal(s) == _arrived:
                signal.signal(s, signal.SIG_DFL)
    if not _deferring:
        if _worker:
            os._exit(_EXIT + signum)
        raise Interrupted(signum)
    with contextlib.suppress(OSError, ValueError):  # print() may be what was interrupted
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), _SHOW_CURSOR)  # a second signal leaves no time to
        if os.environ.get("RANK", "0") == "0" and not _worker:
            os.write(sys.stderr.fileno(), b"\nflatminima: stopping after this step; once more stops at once\n")
