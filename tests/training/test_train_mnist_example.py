"""The example as a user runs it, on a tiny folder in MNIST's layout."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flatminima.models import mnist_cnn
from flatminima.training import load_checkpoint

_REPOSITORY = Path(__file__).resolve().parents[2]


def run(arguments: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(_REPOSITORY / "examples" / "train_mnist.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(_REPOSITORY / "src"), "HF_HOME": str(cache)},
    )


def test_it_trains_saves_and_names_the_next_command(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    image_module = pytest.importorskip("PIL.Image")
    rng = np.random.RandomState(0)
    folder = tmp_path / "tiny mnist"
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    for split, n in (("train", 40), ("test", 20)):
        cells = []
        for pixels in rng.randint(0, 256, (n, 28, 28), dtype=np.uint8):
            file = io.BytesIO()
            image_module.fromarray(pixels).save(file, "PNG")
            cells.append({"bytes": file.getvalue(), "path": None})
        table = datasets.Dataset.from_dict({"image": cells, "label": [i % 10 for i in range(n)]}, features=features)
        table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    output = tmp_path / "out"
    done = run(["--data", str(folder), "--output", str(output), "--limit", "30", "--epochs", "1"], tmp_path / "hf")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no bars in a pipe
    weights = output / "mnist_cnn.safetensors"
    assert load_checkpoint(mnist_cnn(), weights) == ()
    assert done.stdout.splitlines()[-1] == (
        f"next: flatminima measure --model flatminima.models:mnist_cnn --checkpoint {weights} "
        f"--data '{folder}' --split train --limit 30"
    )


def test_a_wrong_folder_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = run(["--data", "./nowhere", "--output", str(tmp_path / "out")], tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: the data folder './nowhere' is not there\n"
    assert not (tmp_path / "out").exists()
