"""`MeasureTable`: what it shows, and what it writes, whole or not at all."""

import json
import math
import pickle

import pandas as pd
import pytest

from flatminima import Estimate, MeasureTable
from flatminima.errors import UsageError, WriteFailed
from flatminima.io import write_whole

LONG = "the margin is not positive (-0.751 at 5%): the capacity is infinite, and so on at some length " * 2


def make(estimates=None, **fields):
    rows = estimates or {
        "fisher_logdet": Estimate(-979.123456, 1.25, {"layers": {"a": 1.0}}),
        "margin": Estimate(0.5, direction="higher"),
        "path_norm": Estimate.missing("the margin is not positive"),
    }
    options = {
        "samples": 300,
        "parameters": 1234,
        "forward_passes": 1.02,
        "backward_passes": 1.0,
        "seconds": 0.25,
        "loss": "cross_entropy",
        "data": "0123456789abcdef",
        "notes": ("weights in float32; sums in float64",),
    }
    return MeasureTable(rows, **(options | fields))


def test_it_is_a_mapping_of_names_to_estimates():
    table = make()
    assert list(table) == ["fisher_logdet", "margin", "path_norm"]
    assert len(table) == 3
    assert table["margin"].value == 0.5
    assert "nothing" not in table
    with pytest.raises(KeyError):
        table["nothing"]
    assert pickle.loads(pickle.dumps(table)) == table


def test_pandas_has_floats_and_nan_for_what_is_undefined():
    frame = make().to_pandas()
    assert list(frame.index) == ["fisher_logdet", "margin", "path_norm"]
    assert list(frame.columns) == ["value", "stderr", "direction", "kind", "undefined"]
    assert frame.value.dtype == float
    assert frame.value["fisher_logdet"] == -979.123456
    assert math.isnan(frame.value["path_norm"])
    assert math.isnan(frame.stderr["margin"])
    assert frame.undefined["path_norm"] == "the margin is not positive"
    assert pd.isna(frame.undefined["margin"])
    assert frame.direction["margin"] == "higher"


def test_pandas_keeps_its_types_where_nothing_is_defined():
    frame = make({"a": Estimate.missing("why")}).to_pandas()
    assert (frame.value.dtype, frame.stderr.dtype) == (float, float)


def test_json_is_strict_and_complete():
    def refuse(constant):
        raise AssertionError(constant)

    estimates = {"a": Estimate(1.0, details={"condition": math.inf}), "b": Estimate.missing("why")}
    document = json.loads(make(estimates).to_json(), parse_constant=refuse)
    assert document["schema"] == 1
    assert document["measures"]["a"]["details"] == {"condition": None}
    assert document["measures"]["b"]["value"] is None
    assert document["measures"]["b"]["undefined"] == "why"
    assert document["notes"] == ["weights in float32; sums in float64"]
    keys = ("samples", "parameters", "forward_passes", "backward_passes", "seconds", "loss", "data")
    assert [document[k] for k in keys] == [300, 1234, 1.02, 1.0, 0.25, "cross_entropy", "0123456789abcdef"]


def test_json_goes_to_a_file_whole(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    text = make().to_json(path)
    assert path.read_text() == text + "\n"
    assert make().to_json(str(path)) == text
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_path_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder").mkdir()
    bad = [
        tmp_path / "missing" / "results.json",
        tmp_path / "file" / "results.json",
        tmp_path / "folder",
        tmp_path / ("x" * 300),
    ]
    for path in bad:
        with pytest.raises(UsageError, match=r"cannot write .*; choose another folder"):
            make().to_json(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert list((tmp_path / "folder").iterdir()) == []
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_write_that_fails_midway_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "a lone surrogate: \udcff")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_rename_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    """Catches writing straight into the file that a reader may be reading."""
    path = tmp_path / "results.json"
    path.write_text("old")

    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(WriteFailed, match=r"cannot write .*Permission denied"):
        make().to_json(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_nan_outside_the_estimates_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        make(seconds=math.nan).to_json(tmp_path / "results.json")
    assert list(tmp_path.iterdir()) == []


def test_text_of_a_table():
    text = str(make())
    lines = text.splitlines()
    assert lines[0].split() == ["measure", "value", "+-", "stderr", "better", "note"]
    assert lines[2].split() == ["fisher_logdet", "-979.12", "1.2", "lower", "score"]
    assert lines[3].split() == ["margin", "0.5", "-", "higher", "score"]
    assert "undefined: the margin is not positive" in " ".join(text.split())
    assert "300 samples, 1234 parameters, loss cross_entropy; 1.0 forward and 1.0 backward" in text
    assert lines[-1] == "- weights in float32; sums in float64"


def test_text_fits_80_columns_and_loses_nothing():
    long = "pacgen(diagonal=batch_gradient, rho=paper, noise=gaussian, variant=lemma3, eta=1000.0)"
    estimates = {
        long: Estimate(-1.23456e-300, 1.2345e-300),
        "expected_sharpness": Estimate.missing(LONG),
        "x" * 90: Estimate.missing("a_word_" * 20),
    }
    text = str(make(estimates, notes=("vmapped gradients for " + ", ".join(["SomeLayer"] * 20),)))
    assert max(map(len, text.splitlines())) <= 80
    assert "-1.2346e-300" in text
    names = "".join(line.split("  ")[0] for line in text.splitlines()).replace(" ", "")  # the first column
    assert long.replace(" ", "") in names
    assert "x" * 90 in names
    assert "".join(text.split()).count("SomeLayer") == 20


def test_reasons_are_text_and_not_markup():
    """rich would swallow [bold] and turn :smile: into a face."""
    estimates = {"f[a]": Estimate.missing("tensor[red] of shape [2, 3] :smile:")}
    text = str(make(estimates, notes=("see [bold] :smile:",), loss="loss[x]"))
    for part in ("f[a]", "tensor[red]", "[2, 3]", "see [bold] :smile:", "loss[x]"):
        assert part in text
    assert ":smile:" in text.partition("300 samples")[0]


def test_show_prints_it(capsys):
    make().show()
    assert capsys.readouterr().out == str(make()) + "\n"


def test_the_column_tells_exact_from_sampled_and_over_what():
    estimates = {
        "a": Estimate(1.0, details={"error_of": "exact"}),
        "b": Estimate(2.0, 0.5, {"error_of": "both", "note": "subset 7, of fewer than 100 samples"}),
        "c": Estimate(2.0, 1e-7, {"error_of": "rounding"}),
        "d": Estimate(3.0, None, {"error_of": "draws"}),
    }
    text = str(make(estimates))
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["a"][1:] == ["1", "exact", "lower", "score"]
    assert rows["b"][1:4] == ["2", "0.5", "lower"] and "over data and draws; subset 7, of" in " ".join(text.split())
    assert rows["c"][2] == "1e-07" and rows["d"][2] == "-"
    for said in ("exact: nothing was drawn", "over draws:", "over data and draws:", "of rounding:"):
        assert said in " ".join(text.split())
    assert "over new data:" not in text and max(map(len, text.splitlines())) <= 80


def test_layers_in_a_table_of_80_columns():
    import io

    from rich.console import Console

    from flatminima.table import render_layers

    names = ["encoder.layers.11.attention.output.dense.weight" * 2, "head.bias"]
    details = {"layers": dict.fromkeys(names, -1.23456e-100), "layer_stderrs": {names[0]: 2e-101, names[1]: None}}
    estimates = {f"measure_number_{i}_of_many": Estimate(1.0, 0.1, details) for i in range(4)}
    buffer = io.StringIO()
    render_layers(make(estimates), Console(file=buffer, width=80))
    text = buffer.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("-1.23e-100 +- 2e-101") == 4 and text.count("head.bias") == 2
    assert "..." not in text and "\u2026" not in text
    buffer.truncate(0)
    render_layers(make({"margin": Estimate(1.0)}), Console(file=buffer, width=80))
    assert "no measure here is given by parameter" in buffer.getvalue()
