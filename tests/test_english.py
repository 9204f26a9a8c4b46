"""The countable part of "English with a rule" (CONTRIBUTING.md): how docstrings begin, words that have a better one."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "flatminima"
FILES = sorted(PACKAGE.rglob("*.py"))
# a docstring begins with a verb or a noun phrase
OPENINGS = ("After", "As", "At", "Behind", "Beside", "Between", "By", "For", "From", "How", "In", "Into", "Of", "On",
            "That", "What", "Where", "Which", "Who", "With")  # fmt: skip
WORDS = {
    "elsewhere": "at perturbed weights, on another device, otherwise",
    "hear": "a listener gets it, it arrives",
    "heard": "it has arrived",
    "hears": "gets",
    "ride": "shared pass",
    "rides": "shares a pass",
    "shelf": "run store",
    "stands": "is, means, represents",
    "The surprise": "Note",
}


def docstrings(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """(name, line, text) of a module's docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", ""), getattr(node, "lineno", 1), text


def comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def complaints(source: str) -> list[str]:
    """What is wrong with the docstrings and comments of a module, line by line."""
    found = []
    texts = [(line, text) for _, line, text in docstrings(ast.parse(source))] + list(comments(source))
    for name, line, text in docstrings(ast.parse(source)):
        if not name.startswith("_") and text.split()[0] in OPENINGS:
            found.append(f"line {line}: a docstring begins with {text.split()[0]!r}: begin with a verb or a noun")
    for line, text in texts:
        words = re.sub(r"`+[^`]*`+|^ *\w+:|^Args:.*", "", text, flags=re.MULTILINE)  # names of the code are names
        for word, better in WORDS.items():
            if re.search(rf"\b{word}\b", words):
                found.append(f"line {line}: {word!r}: write {better}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_docstrings_and_comments_keep_the_rule(path: Path) -> None:
    assert complaints(path.read_text(encoding="utf-8")) == []


def test_the_rule_sees_what_it_is_for() -> None:
    bad = '"""What it is."""\n\ndef f():\n    """Of the weights."""\n    return 1  # a fold hears it\n'
    assert len(complaints(bad)) == 3
    good = '"""The gram matrix."""\n\ndef _f():\n    """Of the weights."""\n    return 1  # `hear` is called\n'
    assert complaints(good) == []
