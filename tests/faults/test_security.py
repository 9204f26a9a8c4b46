"""SECURITY.md says only what a test enforces: each sentence names one, and it exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def promises() -> list[str]:
    """The items of the sections that promise something."""
    return re.findall(r"^- (.+)$", TEXT.split("## Not protected")[0], re.MULTILINE)


def known() -> set[str]:
    names = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return names


def test_every_sentence_names_tests_that_exist() -> None:
    tests = known()
    assert len(promises()) > 20
    for sentence in promises():
        found = re.fullmatch(r"[^\[\]]+\. \[([\w, ]+)\]", sentence)
        assert found, f"no test is named: {sentence}"
        absent = [name for name in found[1].split(", ") if name not in tests]
        assert not absent, f"no such test: {absent}"


def test_the_locked_versions_are_the_cores() -> None:
    """Each line of the core's dependencies is in the locked file, with a hash."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = re.findall(r'^  "([\w-]+)>=', project.split("dependencies = [")[1].split("]")[0], re.MULTILINE)
    locked = (ROOT / "requirements-core.txt").read_text(encoding="utf-8")
    assert len(wanted) > 8
    for name in wanted:
        assert re.search(rf"^{name}==[\w.+]+ \\\n    --hash=sha256:", locked, re.MULTILINE | re.IGNORECASE), name
