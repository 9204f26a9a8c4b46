"""Everything flatminima raises on purpose. One message says what was seen, what was expected, what to do.

FlatMinimaError
├── UsageError            the caller asked for something that does not exist or does not fit (exit code 2)
│   ├── UnknownName       a measure, data set or model that is not known; suggests the nearest
│   ├── DataError         samples or labels that cannot be used
│   ├── ModelError        a network that cannot be measured as it is
│   ├── CheckpointError   a file that does not hold the weights it should
│   └── MissingExtra      an optional dependency that is not installed
├── FolderInUse           another process is writing there: the same request works later
├── WriteFailed           a file that the system would not write: disk full, no permission
├── ReadFailed            a file that the system would not read: no permission, a failing disk
├── NumericalError        NaN or Inf where a number was due
├── StaleMinimum          the weights changed under a Minimum's feet
└── Undefined             a statistic has no meaning for this network; measures turn it into an Estimate
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from flatminima.escaping import shown


class FlatMinimaError(Exception):
    """Base of all errors of flatminima; one line, in which control characters and line breaks of names are escaped."""

    def __str__(self) -> str:
        return shown(super().__str__())


class UsageError(FlatMinimaError, ValueError):
    """A request that cannot be met as stated; the command line exits with 2."""


class DataError(UsageError):
    """Samples or labels that cannot be used."""


class ModelError(UsageError):
    """A network that cannot be measured as it is."""


class CheckpointError(UsageError):
    """A file that does not hold the weights it should."""


class FolderInUse(FlatMinimaError):
    """A folder that another process is writing to; the same request works when that one ends (exit code 1)."""


class WriteFailed(FlatMinimaError):
    """A file that the system would not write, for want of space or permission (exit code 1)."""


class ReadFailed(FlatMinimaError):
    """A file that the system would not read, for want of permission or by a failing disk (exit code 1)."""


class UnknownName(UsageError):
    """A name that is not in a list; the message suggests the nearest one that is."""

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"unknown {kind} {name!r}: {hint}" + (f" ({remedy})" if remedy else ""))


class MissingExtra(UsageError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package!r}, which is not installed: pip install 'flatminima[{extra}]'")


def optional(package: str, extra: str, purpose: str) -> Any:
    """The module of an optional dependency.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise MissingExtra(package, extra, purpose) from None


class NumericalError(FlatMinimaError, ArithmeticError):
    """NaN or Inf where a number was due; never averaged in."""


class StaleMinimum(FlatMinimaError, RuntimeError):
    """The model's weights changed after its Minimum was made; cached statistics would be wrong."""


class Undefined(FlatMinimaError):
    """A statistic has no meaning for this network or data.

    Args:
        reason: what a reader sees.
        code: the same in one word, for programs.
    """

    def __init__(self, reason: str, code: str = "undefined") -> None:
        super().__init__(reason)
        self.code = code

    @property
    def reason(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Absent:
    """Why a statistic has no value: what is remembered in place of an exception, which would keep its tensors alive.

    Attributes:
        code: ``"undefined"`` or a word that `Undefined` gave, or the class of an error that was not foreseen.
        reason: what a reader sees.
        unforeseen: an error of another class than `Undefined`.
    """

    code: str
    reason: str
    unforeseen: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Absent:
        """The reason of an `Undefined`, or the class and first line of any other error."""
        if isinstance(error, Undefined):
            return cls(error.code, error.reason)
        name, text = type(error).__name__, str(error).strip()
        return cls(name, f"{name}: {text.splitlines()[0]}" if text else name, True)

    def raised(self) -> Undefined:
        """A new `Undefined` with this reason."""
        return Undefined(self.reason, self.code)
