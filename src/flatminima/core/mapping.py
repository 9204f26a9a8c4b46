"""The lazy mapping from statistic to value, apart from the network that the values are of.

What has no value is remembered as an `Absent`, never as an exception: a traceback would keep every tensor of the
failed computation alive for as long as the mapping.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar, overload

from flatminima.core.ambient import SWITCHES_LOCK, neutral
from flatminima.core.spent import Lesson, Passes
from flatminima.core.statistic import Fold, Statistic
from flatminima.core.statistic_store import ABSENT, keeper
from flatminima.core.sweep import shared_passes, sweep
from flatminima.errors import Absent, Undefined

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")


def _lasting(key: Statistic[Any]) -> bool:
    """Whether a statistic's text says all of it, in another process too: no address, no tensor."""
    text = repr(key)
    return " at 0x" not in text and "tensor(" not in text and "..." not in text


class StatisticMapping(ABC):
    """Statistic -> value, computed when first asked for and kept."""

    def __init__(self) -> None:
        self._layers: list[dict[Statistic[Any], Any]] = [{}]

    passes: Passes

    @property
    @abstractmethod
    def generation(self) -> int:
        """Changes when values that were made turn out to be wrong."""

    @abstractmethod
    def refuse_stale(self) -> None:
        """Raise `StaleMinimum` where the network is no longer the one that the kept values are of."""

    @abstractmethod
    def open(self) -> AbstractContextManager[None]:
        """The network guarded: whatever happens in the block, afterwards it is as before; nests."""

    @abstractmethod
    def within_memory(self, work: Callable[[], T]) -> T:
        """The value of `work`, begun anew with smaller batches where memory runs out."""

    @abstractmethod
    def can_sweep(self, fold: Fold[Any, Any]) -> bool:
        """Whether the network can hand out what the fold reads of a batch."""

    @abstractmethod
    def lacking(self, statistic: Statistic[Any]) -> Absent | None:
        """Why the network cannot give what `statistic` needs; None: it can."""

    @overload
    def __getitem__(self, key: Statistic[T]) -> T: ...
    @overload
    def __getitem__(self, key: tuple[Statistic[T1], Statistic[T2]]) -> tuple[T1, T2]: ...
    @overload
    def __getitem__(self, key: tuple[Statistic[T1], Statistic[T2], Statistic[T3]]) -> tuple[T1, T2, T3]: ...
    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        with neutral():  # another thread may have weights of its own choice here
            self.refuse_stale()
            while any(k not in self._known for k in keys):  # again, where what was made turns out to be wrong meanwhile
                self.compute(keys)
            values = tuple(self._known[k] for k in keys)
        for value in values:
            if isinstance(value, Absent):
                raise value.raised()
        return values if isinstance(key, tuple) else values[0]

    def __contains__(self, key: object) -> bool:
        with SWITCHES_LOCK:
            return key in self._known

    def __iter__(self) -> Iterator[Statistic[Any]]:
        with SWITCHES_LOCK:
            return iter(list(self._known))

    def __len__(self) -> int:
        with SWITCHES_LOCK:
            return len(self._known)

    def compute(self, keys: Sequence[Statistic[Any]], *, tolerant: bool = False) -> None:
        """Make the missing ones of `keys` known, folds in as few sweeps as possible.

        Args:
            keys: statistics.
            tolerant: an error of one statistic's own, of whatever class, is why that one is absent (until
                `forget_errors`); else it is raised.
        """
        self.refuse_stale()
        missing = [k for k in dict.fromkeys(keys) if k not in self._known]
        for key in missing:
            absent = self.lacking(key)
            if absent is not None:
                self._known[key] = absent
        self._take_kept([k for k in missing if k not in self._known])
        folds = [k for k in missing if isinstance(k, Fold) and k not in self._known and self.can_sweep(k)]
        with self._kept(folds):
            self._known.update(self.sweep(folds, tolerant=tolerant))
        for key in missing:
            if key not in self._known:
                with self._kept([key]):
                    self._known[key] = self._value(key, tolerant)

    def _value(self, key: Statistic[Any], tolerant: bool) -> Any:
        work = key.without_sweep if isinstance(key, Fold) else key.compute
        try:
            return self.within_memory(lambda: work(self))  # type: ignore[arg-type]
        except Undefined as reason:
            return Absent.of(reason)
        except Exception as error:  # of torch or of the user's network: this statistic's alone
            if not tolerant:
                raise
            return Absent.of(error)

    def sweep(self, folds: Sequence[Fold[Any, Any]], *, tolerant: bool = False) -> dict[Any, Any]:
        """Values of `folds` (an `Absent` where one has none), computed anew and not kept."""
        while True:
            generation, out = self.generation, dict[Any, Any]()
            if folds:
                with self.open():
                    for shared in shared_passes(folds):
                        out |= self.within_memory(partial(sweep, self, shared, tolerant=tolerant))  # type: ignore[arg-type]
            if self.generation == generation:
                return out
            for known in self._layers:  # made in a way that turned out to be wrong
                known.clear()
            if (kept := keeper()) is not None:
                kept.lose(self.passes)

    def _take_kept(self, keys: Sequence[Statistic[Any]]) -> None:
        """Know what an earlier run of the same command has kept."""
        kept, content = keeper(), self._content(keys)
        if kept is not None and content is not None:
            for key in keys:
                value = kept.take(f"{content} {key!r}", self) if _lasting(key) else ABSENT
                if value is not ABSENT:
                    self._known[key] = value

    @contextmanager
    def _kept(self, keys: Sequence[Statistic[Any]]) -> Iterator[None]:
        """Keep the values of `keys` that the block makes, where a command keeps what it has finished."""
        kept, content = keeper(), self._content(keys)
        if kept is None or content is None:
            yield
            return
        with kept.accounts.work(self.passes, [f"{content} {key!r}" for key in keys]) as work:
            yield
        content = self._content(keys)  # smaller batches, where memory ran out, are others
        named = {f"{content} {key!r}": key for key in keys}
        known = {name: self._known[key] for name, key in named.items() if key in self._known and _lasting(key)}
        values = {name: value for name, value in known.items() if not isinstance(value, Absent)}
        kept.finish(self, work, values, [name for name in named if name not in values])

    def _content(self, keys: Sequence[Statistic[Any]]) -> str | None:
        """What values depend on; None: they are not to be kept."""
        return self.content() if keys and keeper() is not None and len(self._layers) == 1 else None

    @abstractmethod
    def learnt(self) -> Lesson:
        """Observations of the network that are not repeated."""

    @abstractmethod
    def learn(self, lesson: Lesson) -> None:
        """Take what an earlier run of the same command saw of the same network."""

    @abstractmethod
    def content(self) -> str | None:
        """A hash of all that values depend on beside the statistic; None: it is not known."""

    def forget_errors(self) -> None:
        """Forget unforeseen errors, so that what they stopped may be tried again."""
        for key in [k for k, v in self._known.items() if isinstance(v, Absent) and v.unforeseen]:
            del self._known[key]

    @property
    def _known(self) -> dict[Statistic[Any], Any]:
        return self._layers[-1]

    @contextmanager
    def displaced(self) -> Iterator[None]:
        """A mapping of its own within the block, for values that are not those of the network as it was given."""
        self._layers.append({})
        try:
            yield
        finally:
            self._layers.pop()
