"""Weights that a thread has moved for a while: another thread that took them for the real ones would be wrong.

A thread that moves weights waits for a measurement that is under way, and says here what it moved; whoever would use
them from another thread meanwhile is refused. The thread that moved them may do what it likes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from torch import Tensor

from flatminima.core.ambient import SWITCHES_LOCK
from flatminima.errors import UsageError

_moved: dict[int, tuple[int, str]] = {}  # id of a tensor -> the thread that moved it, and its name


def mark_moved(tensors: Iterable[Tensor]) -> list[int]:
    """Note that this thread moves the tensors; to be given to `put_back`.

    Raises:
        UsageError: another thread has moved one of them.
    """
    with SWITCHES_LOCK:
        tensors = list(tensors)
        refuse_moved(tensors)
        me = threading.current_thread()
        new = [id(t) for t in tensors if id(t) not in _moved]
        _moved.update(dict.fromkeys(new, (me.ident or 0, me.name)))
        return new


def put_back(marks: list[int]) -> None:
    """They are back where they were; harmless if they were."""
    with SWITCHES_LOCK:
        while marks:
            _moved.pop(marks.pop(), None)


def refuse_moved(tensors: Iterable[Tensor]) -> None:
    """Refuse weights that another thread has moved.

    Raises:
        UsageError: naming the thread.
    """
    if not _moved:
        return
    for tensor in tensors:
        thread, name = _moved.get(id(tensor), (0, ""))
        if thread and thread != threading.get_ident():
            raise UsageError(
                f"the thread {name!r} has these weights perturbed at the moment: measure, certify or train a network "
                "in one thread at a time, or give each thread a copy"
            )
