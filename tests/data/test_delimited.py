"""Comma- and tab-separated text against pandas' reader, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flatminima.data import delimited
from flatminima.data.delimited import read_columns
from flatminima.errors import DataError

TEXTS = {
    "integers": "a,b\n1,-2\n3,4\n",
    "fractions": "a,b\n1.5,2e-3\n-0.25,1E5\n",
    "missing numbers": "a,b\n1,\n,4\nNA,5\nnull,6\n",
    "words": 'a,label\n1,"x, y"\n2,"say ""so"""\n3,\n',
    "words and numbers": "a,label\n1,7\n2,eight\n",
    "truth": "a,b\nTrue,true\nFalse,FALSE\n",
    "truth with a gap": "a,b\nTrue,1\n,2\n",
    "blank lines, spaces": "a, b\n\n1, 2\n\n3, 4\n",
    "a byte order mark": "\ufeffa,b\n1,2\n",
    "windows": "a,b\r\n1,2\r\n3,4\r\n",
    "unnamed and twice": ",a,a\n0,1,2\n1,3,4\n",
    "a line within a cell": 'a,b\n"one\ntwo",1\n',
    "short lines": "a,b,c\n1,2\n3,4,5\n",
    "no number": "a,b\n1_000,2\n3,4\n",
    "infinite": "a,b\ninf,1\n-inf,2\n",
    "an empty table": "a,b\n",
}


def as_before(frame: pd.DataFrame) -> dict[str, Any]:
    """The columns of pandas' frame as numbers, or as lists with None."""
    return {
        str(name): column.to_numpy()
        if column.dtype.kind in "biuf"
        else [None if value is None or value != value else value for value in column.tolist()]
        for name, column in frame.items()
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, column in expected.items():
        if isinstance(column, np.ndarray):
            assert found[name].dtype == column.dtype, name
            np.testing.assert_array_equal(found[name], column)
        elif column:
            assert found[name] == column, name


@pytest.mark.parametrize("rows", [1, 10_000])
@pytest.mark.parametrize("kind", TEXTS)
def test_columns_are_those_of_pandas(kind: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a row a block: a column that begins as numbers and ends as words, or gets its first gap late."""
    path = tmp_path / "t.csv"
    path.write_text(TEXTS[kind], encoding="utf-8", newline="")
    monkeypatch.setattr(delimited, "_ROWS", rows)
    assert_same(read_columns(path, ","), as_before(pd.read_csv(path, skipinitialspace=True)))


def test_numbers_keep_every_digit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-100, 100)
    path = tmp_path / "t.tsv"
    path.write_text("x\ty\n" + "".join(f"{float(v)!r}\t{2**62 + i}\n" for i, v in enumerate(values)))
    found = read_columns(path, "\t")
    assert np.array_equal(found["x"], values) and found["y"].tolist() == [2**62 + i for i in range(200)]


def test_a_long_cell_is_read_and_the_modules_limit_comes_back(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = tmp_path / "t.csv"
    path.write_text("text,label\n" + "a" * (limit + 1) + ",1\n")
    assert len(read_columns(path, ",")["text"][0]) == limit + 1
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"a,b\n1,2\n3,4,5\n", "names 2 columns, .* has 3 cells, beginning '3,4,5'"),
        (b'a,b\n"1,2\n', "no regular CSV: line 2"),
        (b"a,b\n\xff,2\n", "no text in UTF-8"),
    ],
)
def test_what_is_no_regular_table_is_refused(text: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text)
    with pytest.raises(DataError, match=says):
        read_columns(path, ",")
