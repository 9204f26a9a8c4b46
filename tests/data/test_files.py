"""Files of the user's own against the arrays that were written: formats, layouts, labels of every kind, splits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from flatminima.data import load, prepare
from flatminima.data.labels import as_targets
from flatminima.errors import DataError, UnknownName

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 5, 6, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3
TABLE = pd.DataFrame({"a": RNG.normal(size=12), "b": np.arange(12), "label": np.array(["no", "yes", "maybe"])[LABELS]})


def write(folder: Path, kind: str) -> Path:
    """The table in one of the formats."""
    path = folder / f"t.{kind}"
    if kind == "csv":
        TABLE.to_csv(path, index=False)
    elif kind == "tsv":
        TABLE.to_csv(path, index=False, sep="\t")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in TABLE.to_dict("records")))
    elif kind == "json":
        path.write_text(json.dumps(TABLE.to_dict("records")))
    elif kind == "parquet":
        TABLE.to_parquet(path)
    elif kind == "npz":
        np.savez(path, a=TABLE["a"], b=TABLE["b"], label=TABLE["label"].to_numpy().astype(str))
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet", "npz"])
def test_a_table_is_the_same_in_every_format(tmp_path: Path, kind: str) -> None:
    found = load(write(tmp_path, kind))
    assert found.classes == ("maybe", "no", "yes")
    assert found.inputs.dtype == torch.float32
    assert np.allclose(found.inputs.numpy(), TABLE[["a", "b"]].to_numpy(), atol=1e-6)
    assert [found.classes[i] for i in found.targets] == TABLE["label"].tolist()


@pytest.mark.parametrize("form", ["hwc", "chw", "tensor", "pair", "keras"])
def test_images_have_their_channels_first(tmp_path: Path, form: str) -> None:
    first = IMAGES.transpose(0, 3, 1, 2)
    path = tmp_path / ("i.npz" if form in ("hwc", "chw", "keras") else "i.pt")
    if form == "hwc":
        np.savez(path, x=IMAGES, y=LABELS)
    elif form == "chw":
        np.savez(path, images=first, labels=LABELS)
    elif form == "keras":
        np.savez(path, x_test=IMAGES[:4], y_test=LABELS[:4], x_train=IMAGES, y_train=LABELS)
    elif form == "tensor":
        torch.save({"x": torch.from_numpy(IMAGES), "y": torch.from_numpy(LABELS)}, path)
    else:
        torch.save((torch.from_numpy(IMAGES), torch.from_numpy(LABELS)), path)
    found = load(path)
    assert np.array_equal(found.inputs.numpy(), first) and found.full_scale == 255
    assert found.targets.tolist() == LABELS.tolist()
    if form == "keras":
        assert len(load(path, "test")) == 4


def test_sixteen_bits_keep_their_values(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (12, 5, 6)).astype(np.uint16)
    np.savez(tmp_path / "d.npz", x=deep, y=LABELS)
    found = prepare(tmp_path / "d.npz")
    assert np.allclose(found.inputs[:, 0].numpy(), deep / 65535, atol=1e-7)


@pytest.mark.parametrize("mode", [None, "L", "RGB"])
def test_sixteen_bit_pictures_are_not_cut_off(tmp_path: Path, mode: str | None) -> None:
    """Pillow's own conversion to 8 bits saturates: 99.6 % of the pixels would be white."""
    datasets = pytest.importorskip("datasets")
    picture = pytest.importorskip("PIL.Image")
    deep = RNG.integers(0, 65536, (3, 5, 6)).astype(np.uint16)
    cells = []
    for image in deep:
        file = io.BytesIO()
        picture.fromarray(image).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 2]}, features=features)
    data.to_parquet(str(tmp_path / "d.parquet"))
    found = prepare(tmp_path / "d.parquet", mode=mode).inputs.numpy()
    assert found.shape[1] == (3 if mode == "RGB" else 1)
    assert np.abs(found[:, 0] - deep / 65535).max() <= (1e-6 if mode is None else 0.5 / 255 + 1e-6)


@pytest.mark.parametrize("several", [True, False])
def test_what_save_to_disk_wrote(tmp_path: Path, several: bool) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"x": RNG.normal(size=(10, 4)).tolist(), "label": ["b", "a"] * 5})
    saved = datasets.DatasetDict({"train": whole, "test": whole.select(range(3))}) if several else whole
    saved.save_to_disk(str(tmp_path / "saved"))
    found = load(tmp_path / "saved", "train[:40%]")
    assert np.allclose(found.inputs.numpy(), np.array(whole["x"][:4], dtype=np.float32))
    assert found.targets.tolist() == [1, 0, 1, 0]
    if several:
        assert load(tmp_path / "saved", "test").targets.tolist() == [1, 0, 1]
    else:
        with pytest.raises(UnknownName, match=r"has train; train\[80%:\] is a part of it"):
            load(tmp_path / "saved", "test")


def test_a_number_means_the_same_class_in_every_split(tmp_path: Path) -> None:
    """A test split without one of the classes: would catch classes counted a split."""
    TABLE.to_csv(tmp_path / "train.csv", index=False)
    TABLE[TABLE["label"] != "maybe"].to_csv(tmp_path / "test.csv", index=False)
    found = load(tmp_path, "test")
    assert found.classes == ("maybe", "no", "yes") and set(found.targets.tolist()) == {1, 2}
    assert load(tmp_path, "test", limit=2).classes == found.classes


LABELLED: list[tuple[Any, dict[str, Any], list[int], tuple[str, ...] | None]] = [
    ([3, 0, 1], {}, [3, 0, 1], None),
    (np.array([[1], [0]]), {}, [1, 0], None),
    ([True, False, True], {}, [1, 0, 1], ("False", "True")),
    (["10", "9", "2"], {}, [2, 1, 0], ("2", "9", "10")),
    (["b", "a"], {"classes": ("b", "a")}, [0, 1], ("b", "a")),
    ([1.0, 0.0, 2.0], {}, [1, 0, 2], None),
    ([-1, 1, -1], {}, [0, 1, 0], ("-1", "1")),
    (np.eye(3)[[2, 0, 1]], {}, [2, 0, 1], None),
    (np.eye(3, dtype=bool)[[2, 0]], {"classes": ("x", "y", "z")}, [2, 0], ("x", "y", "z")),
    ([0, 1], {"names": ("cat", "dog"), "classes": ("dog", "cat")}, [1, 0], ("dog", "cat")),
    ([0, 1], {"classes": ("cat", "dog")}, [0, 1], ("cat", "dog")),
    ([1, 2, 10], {"classes": tuple(map(str, range(1, 11)))}, [0, 1, 9], tuple(map(str, range(1, 11)))),
    ([[0, 1], [1, 0]], {}, [1, 0], None),
    (np.array([7, 9], dtype=object), {}, [7, 9], None),
]


@pytest.mark.parametrize(("values", "options", "numbers", "names"), LABELLED)
def test_labels_of_every_kind(values: Any, options: dict[str, Any], numbers: list[int], names: Any) -> None:
    targets, classes = as_targets(values, range(len(values)), "label", "here", **options)
    assert targets.dtype == torch.int64 and targets.tolist() == numbers and classes == names


def test_numbers_to_predict_stay_numbers() -> None:
    found, names = as_targets([0.5, 2.0], range(2), "price", "here", targets="numbers")
    assert found.tolist() == [[0.5], [2.0]] and names is None and found.dtype == torch.float32
    many, _ = as_targets(np.array([[1, 1, 0], [0, 0, 1]]), range(2), "tags", "here", targets="numbers")
    assert many.shape == (2, 3) and many.dtype == torch.float32


COLUMNS: list[tuple[Any, dict[str, Any], list[float]]] = [
    (np.array([[0.5], [2.0]]), {}, [0.5, 2.0]),
    (np.array([3, -7]), {}, [3.0, -7.0]),
    ([True, False], {}, [1.0, 0.0]),
    (["no", "yes", "no"], {}, [0.0, 1.0, 0.0]),
    (["no", "yes"], {"classes": ("yes", "no")}, [1.0, 0.0]),
    ([1, 0, 1], {"names": ("cat", "dog")}, [1.0, 0.0, 1.0]),
]


@pytest.mark.parametrize(("values", "options", "numbers"), COLUMNS)
def test_one_number_a_sample_is_a_column(values: Any, options: dict[str, Any], numbers: list[float]) -> None:
    """As a network of one output gives it: (n, 1) was flattened, and such a network then refused its targets."""
    found, _ = as_targets(values, range(len(values)), "label", "here", targets="numbers", **options)
    assert found.dtype == torch.float32 and found.tolist() == [[v] for v in numbers]


def test_a_hidden_label_is_no_number() -> None:
    with pytest.raises(DataError, match="row 1 of here has no label"):
        as_targets([3, -1, 2], range(3), "label", "here", targets="numbers")


@pytest.mark.parametrize(
    ("values", "options", "says"),
    [
        ([0.5, 1.0], {}, "row 7 of here has the label 0.5"),
        ([0, -1, 2], {}, "row 8 of here has no label"),
        ([None, "a"], {}, "row 7 of here has no label"),
        ([float("nan"), 1.0], {}, "row 7 of here has no label"),
        (["a", "c"], {"classes": ("a", "b")}, r"row 8 of here has the label 'c' .*not among the classes \(a, b\)"),
        ([0, 5], {"names": ("x", "y"), "classes": ("y", "x")}, "row 8 of here has the label 5"),
        (np.full((2, 3), 0.3), {}, "not one class"),
        (np.eye(3), {"classes": ("a", "b")}, "one-hot over 3 classes; 2 are named"),
        ([{"a": 1}, {"a": 2}], {}, "not a class: pass label_column"),
    ],
)
def test_labels_that_are_none_name_their_row(values: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        as_targets(values, range(7, 7 + len(values)), "label", "here", **options)


def test_columns_that_count_rows_are_no_inputs(tmp_path: Path) -> None:
    """The index that pandas writes would give the answer away in a sorted file."""
    TABLE.to_csv(tmp_path / "t.csv")
    found = prepare(tmp_path / "t.csv")
    assert found.inputs.shape == (12, 2) and "not used: Unnamed: 0" in found.said


def test_standard_scaling_is_of_the_train_split(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "train.csv", index=False)
    TABLE[:5].to_csv(tmp_path / "test.csv", index=False)
    train = TABLE[["a", "b"]].to_numpy()
    found = prepare(tmp_path, "test", scaling="standard").inputs.numpy()
    assert np.allclose(found, (train[:5] - train.mean(0)) / train.std(0), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npz", None),
        ("a.pt", None),
        ("a.safetensors", b"\x00" * 40),
        ("a.csv", b"\xff\xfe\x00"),
        ("a.json", b"[" * 5000),
        ("a.jsonl", b"[1]\n"),
        ("a.tsv", b""),
        ("a.parquet", b"PAR1"),
    ],
)
def test_no_format_runs_or_opens_what_it_names(tmp_path: Path, name: str, content: bytes | None) -> None:
    """Pickles in npz and pt are refused, damaged files are one line."""
    import pickle

    class Canary:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "canary",))

    path = tmp_path / name
    if name.endswith("npz"):
        np.savez(path, x=np.array([Canary()], dtype=object), y=[0])
    elif name.endswith("pt"):
        path.write_bytes(pickle.dumps(Canary()))
    else:
        assert content is not None
        path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        load(path)
    assert "\n" not in str(refused.value) and not (tmp_path / "canary").exists()


@pytest.mark.parametrize("change", ["split", "file"])
def test_a_saved_data_set_names_no_place_outside(tmp_path: Path, change: str) -> None:
    datasets = pytest.importorskip("datasets")
    secret = datasets.Dataset.from_dict({"x": [1.0], "label": [0]})
    secret.save_to_disk(str(tmp_path / "secret"))
    datasets.DatasetDict({"train": secret}).save_to_disk(str(tmp_path / "saved"))
    if change == "split":
        (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["../secret"]}')
    else:
        state = tmp_path / "saved" / "train" / "state.json"
        document = json.loads(state.read_text())
        document["_data_files"] = [{"filename": "../../secret/data-00000-of-00001.arrow"}]
        state.write_text(json.dumps(document))
    with pytest.raises(DataError, match="no file of the folder"):
        load(tmp_path / "saved")
