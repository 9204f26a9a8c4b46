"""`Account`: the part of delta that a certificate has, by what else was computed on the same samples.

Certificates on one data set share one delta. Of a list of K that was fixed before the samples were seen, each takes
delta / K. Without a list the j-th takes delta / (j (j + 1)), which sums to delta over all j: however many follow, and
whenever one stops, all of them together hold with probability 1 - delta. That is kept in a file, the `Ledger`. What one
process computed without either is counted too: its certificates together hold with 1 - their deltas added up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from flatminima.certification.certificate import PAID, Assumption, Certificate
from flatminima.certification.division.reading import RowHashes
from flatminima.certification.pipeline import Confidence, Union
from flatminima.core.samples import Samples
from flatminima.display import ceiled_digits
from flatminima.errors import FolderInUse, UsageError
from flatminima.io import cannot_write, json_text, make_folder, write_whole
from flatminima.untrusted import Unreadable, read_json

_SCHEMA = 1
_WAIT = 30.0  # seconds for another process that is writing a line
_ROUNDED = 1e-9  # of sums of probabilities
_SKETCH = 4_096  # smallest keys of a data set, by which it is known again
_SAME = 0.5  # share of the smaller set that the other holds, from which on they are the same samples
_FEW = 0.9  # share of distinct samples below which sets that are drawn anew have most of them in common


@dataclass(frozen=True)
class Entry:
    """A part of delta that a certificate took: 1 / evaluations. `declared`: from a list of so many."""

    key: str
    evaluations: int
    declared: bool
    what: str


class Ledger:
    """The certificates of one data set, in a file beside them.

    Args:
        path: of the file; it is made at the first certificate.
        fingerprint: of the data set.

    Raises:
        UsageError: a file that is no ledger, or that of other data.
    """

    def __init__(self, path: str | Path, fingerprint: str) -> None:
        self.path, self.fingerprint = Path(path), fingerprint
        self.entries()

    def entries(self) -> list[Entry]:
        """Entries taken so far."""
        if not os.path.lexists(self.path):
            return []
        try:
            document = read_json(self.path)
        except Unreadable as error:
            raise UsageError(
                f"{self.path} is no ledger of certificates ({error}); name a file of its own with --ledger"
            ) from None
        try:
            if document["kind"] != "ledger" or document["schema"] != _SCHEMA:
                raise ValueError("of another kind")
            found = [_entry(e) for e in document["entries"]]
            of = str(document["fingerprint"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(
                f"{self.path} is no ledger of certificates ({error}); name a file of its own with --ledger"
            ) from None
        if of != self.fingerprint:
            raise UsageError(
                f"the ledger {self.path} is of data with fingerprint {of}, these have {self.fingerprint}: a ledger "
                "counts the certificates of one data set; name another file"
            )
        return found

    def take(self, key: str, declared: int | None, what: str) -> Entry:
        """The part of delta of a certificate; one that was computed before has the part that it had.

        Args:
            key: what determines the certificate. declared: size of the list that it is one of, None for no list.
            what: for whoever reads the file.

        Raises:
            UsageError: the certificates computed so far leave nothing for one of such a list.
        """
        make_folder(self.path.absolute().parent)
        with self._locked():
            entries = self.entries()
            for entry in entries:
                if entry.key == key:
                    return entry
            left = 1 - sum((Fraction(1, e.evaluations) for e in entries), Fraction(0))
            if declared is not None:
                if Fraction(1, declared) > left:
                    raise UsageError(
                        f"got evaluations={declared}, but the {len(entries)} certificates in {self.path} have taken "
                        f"{float(1 - left):.4g} of delta: this one cannot be one of {declared}; leave evaluations out, "
                        "or state a number that counts them all"
                    )
                k = declared
            else:
                if left <= 0:
                    raise UsageError(
                        f"the certificates in {self.path} have taken all of delta, as one of a list each: no other can "
                        "be added to the list after it was read"
                    )
                j = 1 + sum(not e.declared for e in entries)
                while Fraction(1, j * (j + 1)) >= left:
                    j += 1
                k = j * (j + 1)
            entry = Entry(key, k, declared is not None, what)
            self._write([*entries, entry])
            return entry

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The ledger for this process alone."""
        name = Path(f"{self.path}.lock")
        if name.is_symlink():
            raise UsageError(f"{name} is a link, and what it points to would be emptied: remove it")
        lock = FileLock(name)
        try:
            lock.acquire(timeout=_WAIT)
        except Timeout:
            raise FolderInUse(f"another process has held {self.path} for {_WAIT:.0f} s: wait until it ends") from None
        except (OSError, NotImplementedError) as error:
            raise cannot_write(name, error) from None
        try:
            yield
        finally:
            lock.release()

    def _write(self, entries: list[Entry]) -> None:
        document: dict[str, Any] = {
            "schema": _SCHEMA,
            "kind": "ledger",
            "fingerprint": self.fingerprint,
            "entries": [vars(e) for e in entries],
        }
        write_whole(self.path, json_text(document, finite=False) + "\n")


def _entry(values: Any) -> Entry:
    entry = Entry(**values)
    if isinstance(entry.evaluations, bool) or not isinstance(entry.evaluations, int) or entry.evaluations < 1:
        raise ValueError(f"an entry with evaluations {entry.evaluations!r}")
    return entry


@dataclass(frozen=True)
class Account:
    """The account from which a certificate's part of delta is taken.

    Args:
        delta, delta_mc: as of `Confidence`, of the whole statement.
        union: of the certificates that could have been chosen; None for this one alone, or for what the ledger counts.
        ledger: its file; None for none.
    """

    delta: float = 0.05
    delta_mc: float | None = None
    union: Union | None = None
    ledger: str | Path | None = None

    @property
    def undivided(self) -> Confidence:
        """Check the request before the ledger is asked; refuses what is out of range."""
        return Confidence(self.delta, self.delta_mc, self.union or Union())

    def take(self, samples: Samples, key: str, what: str) -> Confidence:
        """The confidence of a certificate.

        Args:
            samples: that it was made from. key: what determines it. what: for whoever reads the ledger.
        """
        declared = None if self.union is None else self.union.k
        if self.ledger is None:
            source = "by the caller's count" if declared else "if no other could have been chosen"
            return replace(self.undivided, source=source)
        ledger = Ledger(self.ledger, samples.fingerprint)
        entry = ledger.take(f"{key}-{self.delta!r}-{declared}", declared, what)
        source = "by the caller's count" if entry.declared else "by the ledger; the rest is for others"
        return Confidence(self.delta, self.delta_mc, Union(evaluations=entry.evaluations), source)


@dataclass
class _DataSet:
    """A data set, and the failure probability of its certificates.

    Attributes:
        sketch: smallest keys of its samples. repeats: whether it holds copies. totals: of the certificates up to each
            one, by key.
    """

    sketch: RowHashes
    repeats: bool
    totals: dict[str, Fraction] = field(default_factory=dict)
    spent: Fraction = Fraction(0)


class Computed:
    """The certificates that this process has computed, by their samples."""

    def __init__(self) -> None:
        self._sets: list[_DataSet] = []
        self._lock = Lock()

    def add(self, samples: Samples, key: str, delta: float) -> tuple[float, int]:
        """Failure probability of the certificates of these samples up to this one, and how many they are.

        Sets are the same samples where one holds half of the other, or all of it where samples repeat, as categories
        do that are drawn anew. The same certificate again counts once.

        Args:
            key: what determines the certificate. delta: its own failure probability.
        """
        distinct = len(np.unique(samples.hashes))
        new = _DataSet(np.sort(samples.keys)[:_SKETCH], distinct < _FEW * len(samples))
        with self._lock:
            same = [s for s in self._sets if _alike(s, new)]
            own = next((s for s in same if np.array_equal(s.sketch, new.sketch)), None)
            if own is None:
                own = new
                self._sets.append(own)
                same.append(own)
            if key not in own.totals:
                exact = Fraction(repr(float(delta)))  # sums of floats would be off by what is then rounded up
                own.totals[key] = exact + sum((s.spent for s in same), Fraction(0))
                own.spent += exact
            return float(own.totals[key]), sum(len(s.totals) for s in same)

    def forget(self) -> None:
        """Forget all entries, as a new process would."""
        with self._lock:
            self._sets.clear()


COMPUTED = Computed()


def with_others(certificate: Certificate, samples: Samples, key: str) -> Certificate:
    """The certificate with what was computed on its samples in this process, where nothing has paid for it.

    Where the failure probabilities add up to 1, nothing is left: the number then is a score.

    Args:
        samples: that it was made from. key: what determines it.
    """
    if certificate.standing == "score":
        return certificate
    own = certificate.delta / (certificate.candidates * certificate.evaluations)
    total, count = COMPUTED.add(samples, key, own)
    if total <= certificate.delta * (1 + _ROUNDED):
        return certificate
    more = (
        f"{count} certificates of these samples in this process, {ceiled_digits(total):.4g} of failure probability "
        "together"
    )
    left = total < 1 - _ROUNDED
    listed = tuple(
        Assumption(a.text, left, f"{a.evidence}; {more}: give evaluations=, or ledger=") if a.text == PAID else a
        for a in certificate.assumptions
    )
    return replace(certificate, together=total, assumptions=listed)


def _alike(one: _DataSet, other: _DataSet) -> bool:
    """Whether they are the same samples, by their smallest keys."""
    a, b = one.sketch, other.sketch
    cut = [int(s[-1]) for s in (a, b) if len(s) == _SKETCH]  # beyond it a sketch knows nothing
    if cut:
        a, b = (s[s <= np.uint64(min(cut))] for s in (a, b))
    shared = len(np.intersect1d(a, b, assume_unique=True))
    share = 1.0 if one.repeats or other.repeats else _SAME
    return shared >= share * max(1, min(len(a), len(b)))
