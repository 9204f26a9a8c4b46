"""`Ledger`: what was computed on the same samples, and the part of delta that the next certificate has.

Certificates on one data set share one delta. Of a list of K that was fixed before the samples were seen, each takes
delta / K. Without a list the j-th takes delta / (j (j + 1)), which sums to delta over all j: however many follow, and
whenever one stops, all of them together hold with probability 1 - delta.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flatminima.errors import FolderInUse, UsageError
from flatminima.io import cannot_write, json_text, make_folder, write_whole
from flatminima.reading import Unreadable, read_json

SCHEMA = 1
_WAIT = 30.0  # seconds for another process that is writing a line


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
        """What was taken so far."""
        if not os.path.lexists(self.path):
            return []
        try:
            document = read_json(self.path)
        except Unreadable as error:
            raise UsageError(
                f"{self.path} is no ledger of certificates ({error}); name a file of its own with --ledger"
            ) from None
        try:
            if document["kind"] != "ledger" or document["schema"] != SCHEMA:
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
            "schema": SCHEMA,
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
