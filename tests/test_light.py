"""The base installation is light: no pandas, no scikit-learn, a small wheel, and nothing that is only a test's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest

from flatminima.data import digits
from flatminima.errors import MissingExtra, optional

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# bytes. The aim is a megabyte. 950,000 are code (no file is over 10,000), 95,000 its 473 entries' names and hashes
MOST = 1_225_000
MOST_OF_DATA = 112_000  # what is no code: the digits, the sentences of the papers and what is said of each, templates


def plain(name: str) -> str:
    """A distribution's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_digits_are_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    found, targets = digits.read_digits()
    assert found.dtype == np.uint8 and found.shape == (1797, 8, 8)
    assert np.array_equal(found.reshape(-1, 64), images) and np.array_equal(targets, labels)


def test_the_wheel_is_small_and_holds_the_digits_and_their_licence(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    path = Path(next(wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    assert path.stat().st_size < MOST
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        data = {e.filename: e.compress_size for e in archive.infolist() if not e.filename.endswith(".py")}
        assert "CC BY 4.0" in archive.read("flatminima/data/digits.md").decode()
    assert "flatminima/data/digits.npz" in names and "flatminima/py.typed" in names
    assert sum(size for name, size in data.items() if "dist-info" not in name) < MOST_OF_DATA, data
    assert not [name for name in names if name.split("/")[0].startswith(("tests", "docs", "results"))]


WITHOUT = """
import importlib, pathlib, pkgutil, sys, tempfile
for name in ("pandas", "sklearn"):
    sys.modules[name] = None
import flatminima
for module in pkgutil.walk_packages(flatminima.__path__, "flatminima."):
    if not module.name.startswith("flatminima.integrations.") and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in flatminima.__all__:
    getattr(flatminima, name)
import torch
from flatminima import demo
from flatminima.data import load_tensors
from flatminima.table import MeasureTable
torch.set_num_threads(1)
x, y = load_tensors("digits", "train", limit=60)
folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
(folder / "networks").mkdir()
network = demo._network(demo.recipes(0, True)[0], x, y, load_tensors("digits", "test"), folder, True, False)
table = MeasureTable.from_dict(network["measures"])
assert len(table) > 8 and all(e.value is not None or e.undefined for e in table.values()), table
(folder / "t.csv").write_text("a,label\\n1,x\\n2,y\\n")
assert load_tensors(folder / "t.csv")[0].tolist() == [[1.0], [2.0]]
try:
    table.to_pandas()
except flatminima.errors.MissingExtra as error:
    assert "pip install 'flatminima[pandas]'" in str(error), error
else:
    raise AssertionError("to_pandas() without pandas")
str(table), table._repr_html_()
"""


def test_everything_is_imported_measured_and_read_without_pandas_and_scikit_learn(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT / "src"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("module", ["flatminima.table", "flatminima.ranking.table", "flatminima.track.table"])
def test_every_to_pandas_names_the_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    if module == "flatminima.track.table":
        from flatminima.track.table import TrackTable

        header = {"format": "x"}
        table = TrackTable(header, ({"step": 1, "values": {"<b>": 2.0}, "stderr": {}, "events": [], "loss": 1.0},))  # type: ignore[arg-type,typeddict-item]
        assert "<pre>" in table._repr_html_() and "&lt;b&gt;" in table._repr_html_()
        call = table.to_pandas
    elif module == "flatminima.table":
        from flatminima.table import MeasureTable

        call = MeasureTable({}, 1, 1, 0.0, 0.0, 0.0, "loss", "data").to_pandas
    else:
        from flatminima.ranking.table import RankTable

        call = RankTable({}, 3).to_pandas
    with pytest.raises(MissingExtra, match=r"to_pandas\(\) needs 'pandas'.*pip install 'flatminima\[pandas\]'"):
        call()


def test_an_optional_module_is_the_module() -> None:
    assert optional("json", "x", "y") is sys.modules["json"]
    with pytest.raises(MissingExtra, match=r"y needs 'no_such'.*flatminima\[x\]"):
        optional("no_such", "x", "y")


def test_the_extras_bring_what_the_base_does_not() -> None:
    base = {re.split(r"[\[><=; ]", name)[0] for name in PROJECT["dependencies"]}
    assert not base & {"pandas", "scikit-learn"} and "scipy" in base
    extras = PROJECT["optional-dependencies"]
    assert any(name.startswith("pandas") for name in extras["pandas"])
    assert {re.split("[><=]", name)[0] for name in extras["parquet"]} == {"pandas", "pyarrow"}


def test_the_lock_holds_the_base_and_nothing_more() -> None:
    """What the installed packages ask for, followed from the base; only where they are the locked ones."""
    requirements = pytest.importorskip("packaging.requirements")
    text = (ROOT / "requirements-core.txt").read_text(encoding="utf-8")
    locked = {plain(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}
    found: set[str] = set()
    waiting = list(PROJECT["dependencies"])
    while waiting:
        wanted = requirements.Requirement(waiting.pop())
        name = plain(wanted.name)
        if name in found or (wanted.marker and not wanted.marker.evaluate({"extra": "", "python_version": "3.11"})):
            continue
        found.add(name)
        assert name in locked, f"{name} is not locked"
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
        if installed.version != locked[name]:
            pytest.skip(f"{name} {installed.version} is installed, {locked[name]} locked")
        waiting += installed.requires or []
    assert not locked.keys() - found, "nothing of the base asks for them"
