"""The pages of docs/how-to are carried out, word by word, in a copy of the repository, and their last commands run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOW_TO = ROOT / "docs" / "how-to"
COPIED = ("src", "tests", "docs", "examples", "pyproject.toml", "mkdocs.yml", "mkdocs_hooks.py", "README.md")
FILES = {"add-a-measure": 4, "add-a-statistic": 2, "add-a-bound": 3, "add-an-optimizer": 4, "add-a-study": 3}

_BLOCK = re.compile(
    r"^(?P<said>(?:New file|In|At the end of) `[^`]+`[^\n]*):\n\n(?P<marks>`{3,})\w*\n(?P<code>.*?)^(?P=marks)$",
    flags=re.DOTALL | re.MULTILINE,
)


def carry_out(page: str, root: Path) -> set[str]:
    """Do what the page says to the files below `root`; returns their names."""
    touched = set()
    for block in _BLOCK.finditer(page):
        said, code = block["said"], block["code"]
        file, *line = re.findall(r"`([^`]+)`", said)
        path = root / file
        touched.add(file)
        if said.startswith("New file"):
            assert not path.exists(), f"{file} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code, encoding="utf-8")
            continue
        text = path.read_text(encoding="utf-8")
        if said.startswith("At the end"):
            path.write_text(text.rstrip("\n") + "\n\n\n" + code, encoding="utf-8")
            continue
        found = text.count(f"\n{line[0]}\n")
        assert found == 1, f"{file} has {found} lines {line[0]!r}"
        new = f"\n{code}{line[0]}\n" if ", before " in said else f"\n{line[0]}\n{code}"
        path.write_text(text.replace(f"\n{line[0]}\n", new), encoding="utf-8")
    return touched


def commands(page: str) -> list[list[str]]:
    """Of the page's sh blocks."""
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
             for line in block.splitlines()]  # fmt: skip
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.apart
@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_what_a_page_says_is_all_that_is_needed(name: str, tmp_path: Path) -> None:
    """Catches a page that has fallen behind the code, and a contract that a newcomer does not pass by these files."""
    page = (HOW_TO / f"{name}.md").read_text(encoding="utf-8")
    for part in COPIED:
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / part, **({"ignore": shutil.ignore_patterns("__pycache__")} if source.is_dir() else {}))
    assert len(carry_out(page, tmp_path)) == FILES[name]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    for words in commands(page):
        assert words[0] == "python"
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (words, done.stdout[-3000:], done.stderr[-2000:])
        if "pytest" in words:
            assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 2, done.stdout[-500:]


def test_every_page_is_carried_out() -> None:
    assert {page.stem for page in HOW_TO.glob("*.md")} == set(FILES)
