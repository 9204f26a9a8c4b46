"""SECURITY.md says only what a test enforces: each sentence names one, and it exists."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    stray = [
        line for line in TEXT.split("## Not protected")[0].split("\n## ", 1)[1].splitlines()[1:]
        if line and not line.startswith(("- ", "## "))
    ]  # fmt: skip
    assert not stray, f"a sentence outside of the list: {stray[0]}"
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


LOCKED = (ROOT / "requirements-core.txt").read_text(encoding="utf-8")


def locked() -> dict[str, str]:
    """Version by name; every line is one that `pip install --require-hashes` takes."""
    lines = [line for line in LOCKED.replace(" \\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    found = {}
    for line in lines:
        parts = re.fullmatch(r"([\w.-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+)(?: +#.*)?", line.strip())
        assert parts, f"pip refuses, or takes without a hash: {line[:80]}"
        name = canonicalize_name(parts[1])
        assert name not in found, f"{name} is there twice"
        found[name] = parts[2]
    return found


def test_the_locked_file_is_whole() -> None:
    """With --require-hashes pip refuses a dependency that is not locked; --no-deps would leave it out."""
    known_here = locked()
    assert len(known_here) > 20
    for name in known_here:
        try:
            needed = importlib.metadata.requires(name) or []
            if importlib.metadata.version(name) != known_here[name]:  # CUDA's torch needs more
                continue
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in needed:
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                assert canonicalize_name(wanted.name) in known_here, f"{name} needs {wanted.name}, which is not locked"
