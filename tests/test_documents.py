"""Documents as untrusted input: what is wrong is said in a few words, and what the system refuses is no damage."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from flatminima import untrusted
from flatminima.errors import ReadFailed, UsageError
from flatminima.untrusted import Unreadable, parsed, read_bytes, read_json, read_text
from hostile import call


def test_a_document_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"ü": [1, None]}), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"ü": [1, None]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "no JSON"),
        (b"\xff\xfe", "not text"),
        (b"[" * 100_000, "too deeply"),
        (b'{"a":' * 100_000, "too deeply"),
        (b"9" * 5000, "no JSON"),
    ],
)
def test_what_is_no_json(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(Unreadable, match=says):
        read_json(tmp_path / "a.json")


def test_numbers_that_json_has_not(tmp_path: Path) -> None:
    for word in ("NaN", "Infinity", "-Infinity"):
        assert parsed(f"[{word}]")
        with pytest.raises(Unreadable, match=word):
            parsed(f"[{word}]", finite=True)


def test_other_kinds_of_files(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="no such file"):
        read_text(tmp_path / "none")
    with pytest.raises(Unreadable, match="a folder"):
        read_text(tmp_path)
    with pytest.raises(Unreadable, match="no regular file"):
        read_text("/dev/null")
    with pytest.raises(Unreadable):
        read_text("a\0b")
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(Unreadable, match="11 bytes, more than the 10"):
        read_bytes(tmp_path / "large", most=10)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE])
def test_what_the_system_refuses_ends_with_1_and_what_is_asked_for_wrongly_with_2(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "measures.json").write_text("{}")

    def refused(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    assert call("report", str(tmp_path))[0] == 2
    monkeypatch.setattr(untrusted, "open", refused, raising=False)
    with pytest.raises(ReadFailed) as caught:
        read_text(tmp_path / "measures.json")
    assert not isinstance(caught.value, UsageError)
    code, said = call("report", str(tmp_path))
    assert code == 1 and said.count("\n") == 1 and os.strerror(number) in said
