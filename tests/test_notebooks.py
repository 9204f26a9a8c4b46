"""The notebooks of the two tutorials: made from their pages, and run from the first cell to the last."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "notebooks"
MADE = runpy.run_path(str(FOLDER / "make.py"))


@pytest.mark.parametrize("name", MADE["TUTORIALS"])
def test_the_notebook_is_the_page(name: str) -> None:
    """Run examples/notebooks/make.py after a change of docs/tutorial-*.md."""
    assert (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8") == MADE["text"](name)


@pytest.mark.apart
@pytest.mark.slow
@pytest.mark.parametrize("name", MADE["TUTORIALS"])
def test_the_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own; tables show themselves as HTML there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jupyter's own platform directories
        nbformat = pytest.importorskip("nbformat")
        client = pytest.importorskip("nbclient").NotebookClient
        pytest.importorskip("ipykernel")
        monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        opened = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        done = client(
            opened, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs and not [output for output in outputs if output.output_type == "error"]
