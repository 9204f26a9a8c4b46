"""Costs of the values that a command keeps, so that one that goes on counts what one without a stop counts.

The work of a sweep, or of one statistic, is a `Charge`: its passes without those of the work within it, which is an
entry of its own. Whoever takes a kept value pays for its entry and for those within, each once in a command.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from flatminima.errors import Absent


@dataclass
class Passes:
    """Samples that went forward and backward so far; `checks` of them only to check others (either way).

    Attributes:
        forward, backward, checks: counts of samples.
        earlier: seconds of kept work, which an earlier run of the same command did.
    """

    forward: int = 0
    backward: int = 0
    checks: int = 0
    earlier: float = 0.0

    def add(self, other: Passes, sign: int = 1) -> None:
        """Count the other's too, or with the sign -1 no longer."""
        self.forward += sign * other.forward
        self.backward += sign * other.backward
        self.checks += sign * other.checks
        self.earlier += sign * other.earlier


@dataclass(frozen=True)
class Lesson:
    """Observations of a network that are not repeated, as `Network` names them."""

    remarks: tuple[str, ...] = ()
    examined: dict[str, Absent | None] = field(default_factory=dict)
    tried: bool = False
    level: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Charge:
    """One piece of work.

    Attributes:
        name: no other's.
        passes: without those of the work within it; its seconds are `earlier`.
        lacking: names of what it made that is not kept, and is made again at no cost.
    """

    name: str
    passes: Passes
    lacking: tuple[str, ...]


@dataclass
class Work:
    """A piece of work under way, or done.

    Attributes:
        passes: of the network, which count on. before: as they were at the start.
        within: entries of the work within it, the innermost first.
        lost: entries of earlier work whose values turned out to be wrong during this one.
        own: passes without those within.
    """

    passes: Passes
    before: Passes
    within: list[Charge] = field(default_factory=list)
    lost: list[Charge] = field(default_factory=list)
    own: Passes = field(default_factory=Passes)


class Learns(Protocol):
    """A network, as far as its passes and lessons go."""

    passes: Passes

    def learnt(self) -> Lesson: ...
    def learn(self, lesson: Lesson) -> None: ...


class Accounts:
    """The work that a command has paid for."""

    def __init__(self) -> None:
        self._paid: dict[str, tuple[Passes, Charge]] = {}
        self._owed: set[str] = set()  # names of values whose making is paid for already
        self._open: list[Work] = []
        self._losses = 0

    @contextmanager
    def work(self, passes: Passes, names: Iterable[str]) -> Iterator[Work]:
        """The block is one piece of work, which makes the values of these names."""
        found, names = Work(passes, replace(passes)), set(names)
        started = time.perf_counter()
        self._open.append(found)
        try:
            yield found
        finally:
            self._open.pop()
        found.own = replace(passes)
        found.own.earlier += time.perf_counter() - started
        for spent in (found.before, *(entry.passes for entry in found.within)):
            found.own.add(spent, -1)
        if names and names <= self._owed:
            self._owed -= names
            passes.add(replace(found.own, earlier=0.0), -1)
            found.own = Passes()

    def done(self, found: Work, name: str, lacking: Iterable[str]) -> list[Charge]:
        """Entries of a piece of work that is over, its own at the end; the work around it has them within it."""
        entry = Charge(name, found.own, tuple(lacking))
        self._paid[name] = found.passes, entry
        self._hand_on(found.passes, [*found.within, entry], found.lost)
        return [*found.lost, *found.within, entry]

    def pay(self, passes: Passes, entries: Iterable[Charge]) -> None:
        """Count the work behind a value that was taken, unless it is counted already."""
        new = [entry for entry in entries if entry.name not in self._paid]
        for entry in new:
            self._paid[entry.name] = passes, entry
            self._owed.update(entry.lacking)
            passes.add(entry.passes)
        self._hand_on(passes, new)

    def lose(self, passes: Passes) -> None:
        """Charge the work under way with all earlier work, whose values turned out to be wrong and are made anew."""
        self._losses += 1
        self._owed.clear()
        within = {entry.name for work in self._open for entry in (*work.within, *work.lost)}
        before = [self._lost(e) for name, (own, e) in self._paid.items() if own is passes and name not in within]
        for work in self._open:
            work.within = [self._lost(entry) for entry in work.within]
            work.lost = [self._lost(entry) for entry in work.lost]
        self._paid = {(new := self._lost(e)).name: (own, new) for own, e in self._paid.values()}
        if self._open and self._open[-1].passes is passes:
            self._open[-1].lost += before

    def _lost(self, entry: Charge) -> Charge:
        return replace(entry, name=f"lost {self._losses}: {entry.name}", lacking=())

    def _hand_on(self, passes: Passes, within: Iterable[Charge], lost: Iterable[Charge] = ()) -> None:
        if self._open and self._open[-1].passes is passes:
            self._open[-1].within.extend(within)
            self._open[-1].lost.extend(lost)
