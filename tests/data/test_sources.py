"""Sources against arrays that were written by the test, and messages for everything that can be wrong."""

from __future__ import annotations

import builtins
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flatminima.data import LabelledData, load
from flatminima.data.sources import subset
from flatminima.errors import DataError, MissingExtra, UnknownName

RNG = np.random.RandomState(0)
GREY = RNG.randint(0, 256, (12, 5, 4), dtype=np.uint8)
COLOUR = RNG.randint(0, 256, (12, 6, 7, 3), dtype=np.uint8)
LABELS = [0, 1, 2] * 4

Write = Callable[..., Path]


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    """Pixels (height, width) or (height, width, 3), uint8, as the bytes of a PNG file."""
    image_module = pytest.importorskip("PIL.Image")
    image = image_module.fromarray(pixels)
    if mode is not None:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_digits_are_split_within_each_class_and_lose_nothing() -> None:
    """Would catch a split that overlaps, drops samples or is not stratified."""
    from sklearn.datasets import load_digits

    train, test = load("digits"), load("digits", "test")
    assert (len(train), len(test)) == (1258, 539)
    assert train.inputs.shape[1:] == (1, 8, 8) and train.inputs.dtype == torch.uint8
    together = torch.cat([train.inputs, test.inputs]).flatten(1).double()
    images, labels = load_digits(return_X_y=True)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, images.tolist()))
    assert torch.bincount(test.targets).tolist() == [round(0.3 * n) for n in np.bincount(labels)]
    assert train.full_scale == 16 == int(train.inputs.max())


def test_digits_slices_follow_python() -> None:
    whole = load("digits")
    assert load("digits", "train[10:20]").targets.equal(whole.targets[10:20])
    assert load("digits", "train[:10%]").targets.equal(whole.targets[:126])
    assert load("digits", "train[-5:]+test[:3]").targets.equal(
        torch.cat([whole.targets[-5:], load("digits", "test").targets[:3]])
    )


@pytest.mark.parametrize(("images", "shape"), [(GREY, (12, 1, 5, 4)), (COLOUR, (12, 3, 6, 7))])
def test_a_parquet_folder_gives_the_pixels_that_were_stored(
    write: Write, images: np.ndarray, shape: tuple[int, ...]
) -> None:
    """Would catch height and width or channels exchanged."""
    folder = write({"train": ([png(image) for image in images], LABELS)})
    data = load(folder)
    assert data.inputs.shape == shape and data.inputs.dtype == torch.uint8
    truth = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    assert np.array_equal(data.inputs.numpy(), truth)
    assert data.targets.tolist() == LABELS
    assert data.classes == ("a", "b", "c") and data.n_classes == 3


def test_splits_slices_and_the_names_of_validation(write: Write) -> None:
    cells = [png(image) for image in GREY]
    folder = write({"train": (cells, LABELS), "valid": (cells[:5], LABELS[:5])})
    assert len(load(folder, "valid")) == len(load(folder, "validation")) == len(load(folder, "val")) == 5
    assert load(folder, "train[2:6]").targets.tolist() == LABELS[2:6]
    assert len(load(folder, "train[:50%]+valid")) == 11
    with pytest.raises(UnknownName, match=r"'test'.*has train, validation"):
        load(folder, "test")
    with pytest.raises(DataError, match="not understood"):
        load(folder, "train[[")


def test_an_image_folder_is_read_class_by_class(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(3):
            (tmp_path / "train" / name / f"{index}.png").write_bytes(png(GREY[3 * label + index]))
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert np.array_equal(data.inputs[:, 0].numpy(), GREY[:6])
    assert data.targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_relative_folder_may_be_called_like_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` would take a bare "csv" or "text" for one of its own readers."""
    (tmp_path / "csv" / "train" / "a").mkdir(parents=True)
    (tmp_path / "csv" / "train" / "a" / "0.png").write_bytes(png(GREY[0]))
    (tmp_path / "csv" / "train" / "b").mkdir()
    (tmp_path / "csv" / "train" / "b" / "1.png").write_bytes(png(GREY[1]))
    monkeypatch.chdir(tmp_path)
    assert load("csv").targets.tolist() == [0, 1]


def test_limit_is_a_nested_fixed_subset_in_stored_order(write: Write) -> None:
    """Would catch "the first rows": of a folder sorted by class those are one class."""
    assert subset(1000, 100).tolist() == sorted(subset(1000, 100).tolist())
    assert set(subset(1000, 100)) < set(subset(1000, 300))
    assert subset(1000, 100).max() > 900
    assert subset(5, 9).tolist() == subset(5, None).tolist() == [0, 1, 2, 3, 4]
    folder = write({"train": ([png(image) for image in GREY], LABELS)})
    kept = load(folder, limit=5)
    assert np.array_equal(kept.inputs[:, 0].numpy(), GREY[subset(12, 5)])
    assert kept.fingerprint == load(folder, limit=5).fingerprint != load(folder).fingerprint
    with pytest.raises(DataError, match="limit=0"):
        load(folder, limit=0)


def test_columns_are_guessed_or_named(write: Write) -> None:
    import datasets

    cells = [png(image) for image in GREY]
    coarse = {"coarse_label": datasets.ClassLabel(names=["x"])}
    folder = write({"train": (cells, LABELS)}, image="img", label="fine_label", extra=coarse)
    assert load(folder).targets.tolist() == LABELS
    assert load(folder, label_column="coarse_label").targets.tolist() == [0] * 12
    with pytest.raises(UnknownName, match=r"column 'nope'.*has img, fine_label, coarse_label"):
        load(folder, label_column="nope")


def test_columns_that_cannot_be_guessed(write: Write) -> None:
    folder = write({"train": ([png(GREY[0])], [1])}, label="which", names=None)
    with pytest.raises(DataError, match=r"no label column.*image, which.*label_column"):
        load(folder)
    data = load(folder, label_column="which")
    assert data.classes is None and data.n_classes == 2


def test_mixed_images_name_the_row_and_the_remedy(write: Write) -> None:
    cells = [png(GREY[0]), png(GREY[1]), png(GREY[2][:3])]
    folder = write({"train": (cells, [0, 1, 2])})
    with pytest.raises(DataError, match=r"row 2 .*4x3 grey but row 0 is 4x5 grey.*image_size"):
        load(folder)
    assert load(folder, image_size=6).inputs.shape == (3, 1, 6, 6)


def test_mixed_modes_name_the_row_and_the_remedy(write: Write) -> None:
    cells = [png(GREY[0]), png(np.repeat(GREY[1][..., None], 3, axis=2)), png(GREY[2], "P")]
    folder = write({"train": (cells, [0, 1, 2])})
    with pytest.raises(DataError, match=r"row 1 .*4x5 RGB but row 0 is 4x5 grey.*mode='RGB'"):
        load(folder)
    data = load(folder, mode="RGB")
    assert np.array_equal(data.inputs[:2, 0].numpy(), GREY[:2])
    with pytest.raises(DataError, match="mode='CMYK'"):
        load(folder, mode="CMYK")


def test_transparent_images_are_not_flattened_silently(write: Write) -> None:
    folder = write({"train": ([png(GREY[0], "RGBA")], [0])})
    with pytest.raises(DataError, match=r"row 0 .*'RGBA'.*mode='RGB'"):
        load(folder)


@pytest.mark.parametrize("cell", [b"no image at all", png(GREY[0])[:40], b"%!PS-Adobe-3.0 EPSF-3.0", b""])
def test_an_image_that_does_not_decode_names_its_row(write: Write, cell: bytes) -> None:
    folder = write({"train": ([png(GREY[0]), cell], [0, 1])})
    with pytest.raises(DataError, match=r"row 1 of .* is not an image that decodes") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_an_error(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 15)  # between it and twice it, Pillow only warns
    folder = write({"train": ([png(GREY[0])], [0])})
    with pytest.raises(DataError, match=r"row 0 .*decompression bomb"):
        load(folder)


def test_hidden_and_absent_labels_name_their_row(write: Write) -> None:
    cells = [png(GREY[0]), png(GREY[1])]
    with pytest.raises(DataError, match=r"row 1 .*has no label"):
        load(write({"train": (cells, [0, -1])}))
    with pytest.raises(DataError, match=r"row 1 .*holds None"):
        load(write({"train": (cells, [0, None])}))


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("./nowhere", "is not there"),
        ("/a/b/c/d", "is not there"),
        (__file__, "is a .py file: data is read from .npz"),
        ("", "is not there"),
        ("minst", "organisation/name"),
        ("https:example", "organisation/name"),
        ("org/na me", "organisation/name"),
    ],
)
def test_folders_that_are_not(source: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        load(source)


@pytest.mark.parametrize("name", ["someone/something"])
def test_offline_a_hub_name_fails_at_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Would catch the 23 seconds of retries of `datasets`, and its bars left off afterwards."""
    import datasets
    from huggingface_hub import HfApi

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"no folder .* did not answer") as caught:
        load(name)
    assert time.perf_counter() - began < 5 and "\n" not in str(caught.value)
    assert not datasets.are_progress_bars_disabled()


def test_a_name_server_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    monkeypatch.setattr("flatminima.data.huggingface._HUB_TIMEOUT", 0.2)
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: time.sleep(3))
    began = time.perf_counter()
    with pytest.raises(DataError, match="did not answer"):
        load("someone/something")
    assert time.perf_counter() - began < 2


def test_offline_a_bare_name_never_finds_a_cached_local_folder(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` files folders under their last name, so the name alone would bring back somebody's folder."""
    from huggingface_hub import HfApi

    folder = write({"train": ([png(GREY[0])], [0])})
    assert len(load(folder)) == 1

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    with pytest.raises(DataError, match="pass a local folder"):
        load(folder.name)


def test_without_the_extra_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def blocked(name: str, *rest: object, **options: object) -> object:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingExtra, match=r"flatminima\[data\]"):
        load(tmp_path)


def test_changed_files_are_read_again(write: Write) -> None:
    """Would catch a cache that knows a folder by its name only."""
    assert load(write({"train": ([png(GREY[0])], [0])})).targets.tolist() == [0]
    again = load(write({"train": ([png(GREY[1])], [2])}))
    assert again.targets.tolist() == [2]
    assert np.array_equal(again.inputs[0, 0].numpy(), GREY[1])


def test_progress_counts_to_the_end(write: Write) -> None:
    seen: list[tuple[int, int]] = []
    folder = write({"train": ([png(image) for image in GREY], LABELS)})
    load(folder, limit=7, progress=lambda done, total, text: seen.append((done, total)))
    assert seen[-1] == (7, 7)


def test_digits_refuse_options_and_splits_they_do_not_have() -> None:
    with pytest.raises(DataError, match="digits take no"):
        load("digits", image_size=16)
    with pytest.raises(UnknownName, match="digits has train and test"):
        load("digits", "validation")
    with pytest.raises(DataError, match="not understood"):
        load("digits", "train[1:2:3]")
    with pytest.raises(DataError, match="no samples"):
        load("digits", "train[5:5]")


def test_labelled_data_checks_labels() -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"sample 1 .* label 7; labels are 0 to 1"):
        LabelledData(images, torch.tensor([0, 7, 1]), ("a", "b"))
    with pytest.raises(DataError, match="one int64 label a sample"):
        LabelledData(images, torch.tensor([0, 1]))
    assert "3x1x2x2" in repr(LabelledData(images, torch.tensor([0, 1, 1])))


def test_fingerprint_is_of_the_content() -> None:
    images, targets = torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1])
    one, same = LabelledData(images, targets, name="x"), LabelledData(images.clone(), targets, name="y")
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != LabelledData(images, targets.flip(0)).fingerprint
    assert one.fingerprint != LabelledData(images.view(2, 1, 4, 1), targets).fingerprint


def test_real_mnist_has_its_known_counts(shared: Path) -> None:
    """Counts of the ten test digits as published on the MNIST page."""
    data = load(shared / "mnist", "test")
    assert data.inputs.shape == (10_000, 1, 28, 28)
    assert torch.bincount(data.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize("source", ["tests/minst", "src/mnist"])
def test_a_mistyped_folder_beside_others_is_not_sent_to_the_hub(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    asked: list[object] = []
    monkeypatch.setattr(HfApi, "dataset_info", lambda *a, **_: asked.append(a))
    monkeypatch.chdir(tmp_path)
    (tmp_path / source.split("/")[0]).mkdir()
    with pytest.raises(DataError, match="the hub was not asked"):
        load(source)
    assert not asked


def test_a_path_in_a_table_is_not_opened(write: Write, tmp_path: Path) -> None:
    """A Parquet cell that named a file of this machine was read from its disk."""
    import datasets

    foreign = tmp_path / "foreign.png"
    foreign.write_bytes(png(GREY[0]))
    folder = write({"train": ([png(GREY[0])], [0])})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    cells = {"image": [{"bytes": None, "path": str(foreign)}], "label": [0]}
    table = datasets.Dataset.from_dict(cells, features=features)
    import pyarrow.parquet as pq

    pq.write_table(table.with_format("arrow")[:], folder / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="a table names no file"):
        load(folder)


def test_metadata_of_an_image_folder_names_no_file_outside(tmp_path: Path) -> None:
    (tmp_path / "foreign.png").write_bytes(png(GREY[0]))
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "own.png").write_bytes(png(GREY[1]))
    (folder / "metadata.jsonl").write_text('{"file_name": "../foreign.png", "label": 0}\n')
    with pytest.raises(DataError):
        load(folder)


@pytest.mark.parametrize(
    "place", ["https://example.org/x.parquet", "/etc/passwd", "../other/*.parquet", "~/x", "zip://a::b"]
)
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_a_card_names_no_place_outside_of_its_folder(write: Write, place: str, card: str) -> None:
    """`datasets` fetched an address that a README named."""
    folder = write({"train": ([png(GREY[0])], [0])})
    header = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {place!r}\n"
    (folder / card).write_text(f"---\n{header}---\n# Data\n" if card.endswith("md") else header)
    with pytest.raises(DataError, match="names no address"):
        load(folder)


def test_an_honest_card_is_followed(write: Write) -> None:
    folder = write({"train": ([png(GREY[0])], [0])})
    header = "configs:\n- config_name: default\n  data_files:\n  - split: other\n    path: train-*\n"
    (folder / "README.md").write_text(f"---\n{header}---\nfrom https://example.org/\n")
    assert len(load(folder, "other")) == 1


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl", "data.txt", "task.toml"])
def test_other_kinds_of_folders_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"image": {"path": "/etc/passwd", "bytes": null}, "label": 0}\n')
    with pytest.raises(DataError):
        load(tmp_path)


def test_a_large_image_takes_an_option(write: Write) -> None:
    """81 megapixels of one colour are 100 kB; they took 243 MB, and 20 such a cell each."""
    large = np.zeros((4100, 4100), dtype=np.uint8)
    folder = write({"train": ([png(large)], [0])})
    with pytest.raises(DataError, match=r"4100x4100 pixels.*max_pixels"):
        load(folder)
    assert load(folder, max_pixels=1 << 25, image_size=8).inputs.shape == (1, 1, 8, 8)
