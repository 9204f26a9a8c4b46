"""Every reference in code and documents leads to something in this repository."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from flatminima import catalog

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.py")])
ERRATUM = re.compile(r"\b(?:[Ee]rratum|[Ee]rrata)\s+((?:[WNJ]-[a-z](?:,\s+|\s+and\s+|\s+to\s+)?)+)")


def _headings(page: str) -> list[str]:
    return re.findall(r"^#{2,3} (.+)$", (REFERENCE / page).read_text(encoding="utf-8"), flags=re.MULTILINE)


def _texts() -> list[tuple[str, str]]:
    return [(p.relative_to(ROOT).as_posix(), p.read_text(encoding="utf-8")) for p in SOURCES if p != Path(__file__)]


def test_every_erratum_has_an_entry_with_a_test_or_is_a_misprint() -> None:
    codes = [h for h in _headings("errata.md") if re.fullmatch(r"[WNJ]-[a-z]", h)]
    assert len(codes) == len(set(codes))
    for path, text in _texts():
        for group in ERRATUM.findall(text):
            for code in re.findall(r"[WNJ]-[a-z]", group):
                assert code in codes, f"{path} refers to {code}, of which docs/reference/errata.md knows nothing"
    entries = re.split(r"^### ", (REFERENCE / "errata.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    files = {p.name: p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py")}
    for entry in entries:
        tests = re.findall(r"`(test_\w+\.py)::(test_\w+)`", entry)
        assert tests or "isprint" in entry or "shorthand" in entry, f"{entry[:3]} has no test"
        for file, name in tests:
            assert file in files and f"def {name}(" in files[file], f"{entry[:3]}: no {file}::{name}"


def test_formulas_are_referred_to_by_name() -> None:
    names = set(_headings("formulas.md"))
    seen = 0
    for path, text in _texts():
        assert "performance-notes" not in text and "training-notes" not in text, path
        for match in re.finditer(r"formulas\.md(?:#|,\s+)?([a-z0-9-]*)", text):
            if path.startswith("docs/") and not match.group(1):
                continue  # a link to the page
            seen += 1
            assert match.group(1) in names, f"{path}: formulas.md has no section {match.group(1)!r}"
    assert seen > 15


def test_paper_keys_are_explained() -> None:
    notation = (REFERENCE / "notation.md").read_text(encoding="utf-8")
    known = set(re.findall(r"\| \*\*(\w+)\*\* \|", notation))
    used = {
        key
        for _, text in _texts()
        for key in re.findall(r"\b(?:[A-Z]{1,2}\d{2}|W[12B])\b(?= (?:\(|Thm|Lemma|App|sec))", text)
    }
    assert {"W1", "W2", "N17", "J20"} <= used
    assert used <= known, used - known


def test_every_function_of_the_formulas_exists() -> None:
    import flatminima
    from flatminima import bounds, measures, optim

    homes = (bounds, measures, optim, flatminima)
    named = re.findall(r"`([A-Za-z]\w+)`", (REFERENCE / "formulas.md").read_text(encoding="utf-8"))
    missing = [n for n in named if n not in {"CERT", "SCORE"} and not any(hasattr(home, n) for home in homes)]
    assert not missing
    own = [n for n in bounds.__all__ if "\n\nFormula: " in (inspect.getdoc(getattr(bounds, n)) or "")]
    undescribed = [n for n in bounds.__all__ if n not in (*named, *own)]
    assert not undescribed, f"bounds without a formula: {undescribed}"


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda p: p.relative_to(ROOT / "docs").as_posix()
)
def test_every_page_is_in_the_navigation(page: Path) -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:", 1)[1]
    pages = re.findall(r"^\s*- (?:[^:\n]+: )?(\S+\.md)$", navigation, flags=re.MULTILINE)
    pages += [f"measures/{name}.md" for name in catalog.MEASURES]  # mkdocs_hooks.py adds them
    assert len(pages) == len(set(pages))
    assert page.relative_to(ROOT / "docs").as_posix() in pages
