"""The table, its formats, the page and the command."""

import json
import re

import pytest
from typer.testing import CliRunner

from flatminima.cli.app import app
from flatminima.errors import UsageError
from flatminima.track import TrackTable
from flatminima.track.events import events
from flatminima.track.log import Log
from flatminima.track.page import page, summary_sentences

HEADER = {
    "kind": "header", "schema": 1, "model": "<Net>", "parameters": 10, "samples": 5, "loss_function": "mse",
    "mode": "eval", "intervals": {"eigenvalue": 10}, "optimizer": "SGD", "tolerance": 0.01, "versions": {"torch": "2"},
}  # fmt: skip


def _row(step, eigenvalue=1.0, loss=1.0, threshold=2.0, **values):
    return {
        "step": step, "values": {"eigenvalue": eigenvalue, "preconditioned": eigenvalue, "trace": 5.0, **values},
        "stderr": {"trace": 0.5}, "undefined": {} if eigenvalue else {"eigenvalue": "not converged after 60 products"},
        "details": {}, "loss": loss, "loss_last": loss, "loss_max": loss, "lr": 1.0, "threshold": threshold,
        "thresholds": [threshold], "edge": None if eigenvalue is None else eigenvalue / threshold, "events": [],
        "products": 3, "seconds": 0.1,
    }  # fmt: skip


def _rows(*edges):
    rows = []
    for i, edge in enumerate(edges):
        row = _row(10 * i, 2.0 * edge)
        row["events"] = events(row, rows)
        rows.append(row)
    return rows


def test_entering_and_leaving_the_edge_is_said_once():
    rows = _rows(0.5, 0.8, 1.02, 0.95, 1.01, 0.5, 0.99)
    assert [row["step"] for row in rows if row["events"]] == [20, 50, 60]
    assert rows[2]["events"] == ["the run enters the edge of stability (eigenvalue 2.04, threshold 2)"]
    assert "leaves the edge" in rows[5]["events"][0]
    assert "begins at or above" in _rows(1.5, 1.4)[0]["events"][0]


def test_spikes_and_noise_are_said():
    before = [_row(i) for i in range(5)]
    assert events(_row(6, loss=3.5), before) == ["the loss spikes to 3.5, 3.5 times what it was"]
    assert events(_row(6, loss=2.5), before) == []
    lost = _row(6) | {"loss_not_finite": True}
    assert events(lost, before) == ["the training loss is not finite"]
    assert events(lost, [*before, lost]) == []  # said once
    noisy = _row(6, **{"pertopt/relative_noise": 1.7})
    assert "longer than the weights (1.7 times)" in events(noisy, before)[0]
    assert events(noisy, [*before, noisy]) == []


def test_pandas_parquet_and_text(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = TrackTable(HEADER, (_row(0), _row(10, None)))
    frame = table.to_pandas()
    assert list(frame.index) == [0, 10] and frame["trace_stderr"].tolist() == [0.5, 0.5]
    assert frame["eigenvalue"].isna().tolist() == [False, True]
    assert "eigenvalue" in str(table) and "<table" in table._repr_html_()
    assert max(map(len, str(table).splitlines())) <= 80
    pytest.importorskip("pyarrow")
    table.to_parquet(tmp_path / "a.parquet")
    assert pandas.read_parquet(tmp_path / "a.parquet").equals(frame)


def test_the_page_says_it_in_words_and_loads_nothing():
    rows = [_row(0), *(_row(10 * i, 2.0 + 0.01 * i) for i in range(1, 9)), _row(100, None)]
    for i, row in enumerate(rows):
        row["events"] = events(row, rows[:i])
    table = TrackTable(HEADER, tuple(rows))
    text = page(table)
    assert "&lt;Net&gt;" in text and "<Net>" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert text.count("<svg") >= 3 and "threshold of stability" in text
    assert "the run enters the edge of stability" in text
    said = " ".join(summary_sentences(table))
    assert "10 checks" in said and "of the optimizer's threshold of stability 2" in said and "not converged" in said


def test_groups_that_bear_more_have_a_line_of_their_own_and_train_mode_is_said():
    rows = [_row(10 * i, 1.0) | {"thresholds": [2.0, 8.0, None]} for i in range(3)]
    text = page(TrackTable(HEADER | {"mode": "train"}, tuple(rows)))
    assert "of parameter group 1 alone" in text and "group 0 alone" not in text and "group 2 alone" not in text
    assert "parameter group" not in page(TrackTable(HEADER, ({**rows[0], "thresholds": [2.0 * (1 + 1e-16)]},)))
    assert "one fixed dropout mask" in text and "running statistics" not in text


def test_after_a_run_that_was_lost_the_threshold_is_that_of_the_last_number():
    lost = _row(20, None) | {"threshold": None, "thresholds": None, "edge": None, "loss": None}
    said = " ".join(summary_sentences(TrackTable(HEADER, (_row(0, 0.001), lost))))
    assert "At step 0 the eigenvalue is 0.05% of the optimizer's threshold of stability 2;" in said


@pytest.mark.parametrize("rows", [(), (_row(0, None),)])
def test_a_run_that_has_hardly_begun_has_a_page(rows):
    assert "<html" in page(TrackTable(HEADER, rows))


def test_the_command(tmp_path):
    log = Log(tmp_path / "track.jsonl", HEADER)
    for row in _rows(0.5, 1.0):
        log.write(row)
    for argument in (tmp_path / "track.jsonl", tmp_path):
        done = CliRunner().invoke(app, ["track", str(argument)])
        assert done.exit_code == 0 and "2 checks" in done.output
    assert "<svg" in (tmp_path / "track.html").read_text()
    done = CliRunner().invoke(app, ["track", str(tmp_path), "--json", "--output", str(tmp_path / "b.html")])
    assert [row["step"] for row in json.loads(done.stdout)["rows"]] == [0, 10] and (tmp_path / "b.html").exists()
    (tmp_path / "other.jsonl").write_text('{"epoch": 1}\n')
    for wrong, words in ((tmp_path / "none.jsonl", "no file"), (tmp_path / "other.jsonl", "no log of a tracker")):
        with pytest.raises(UsageError, match=words):
            CliRunner().invoke(app, ["track", str(wrong)], catch_exceptions=False)
