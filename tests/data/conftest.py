"""Tiny data sets on disk in the Hugging Face layout; the library's cache stays in a temporary folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

_REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write({"train": (cells, labels)}) makes a folder of parquet files, one a split."""
    import datasets

    def make(
        splits: dict[str, tuple[Sequence[object], Sequence[object]]],
        *,
        image: str = "image",
        label: str = "label",
        names: Sequence[str] | None = ("a", "b", "c"),
        extra: dict[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / "pictures"
        folder.mkdir(exist_ok=True)
        kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
        for split, (cells, labels) in splits.items():
            columns = {
                image: [{"bytes": cell, "path": None} for cell in cells],
                label: list(labels),
                **{name: [0] * len(labels) for name in extra or {}},
            }
            features = datasets.Features({image: datasets.Image(), label: kind, **(extra or {})})
            table = datasets.Dataset.from_dict(columns, features=features)
            table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
        return folder

    return make


@pytest.fixture
def shared() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("FLATMINIMA_DATA", _REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set FLATMINIMA_DATA to its folder")
    return folder
