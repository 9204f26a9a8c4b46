"""The README's and the documents' Python is run as it stands."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

import flatminima
from flatminima import catalog

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def _blocks(path: Path) -> list[str]:
    text = re.sub(
        r"^````.*?^````$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )  # pages in pages
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def _run(path: Path) -> None:
    """All ```python blocks of a page, one after the other, in one namespace; ```py marks what is only to be read."""
    names: dict[str, object] = {"__name__": path.stem}
    for code in _blocks(path):
        exec(compile(code, path.name, "exec"), names)


def test_the_readmes_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _run(ROOT / "README.md")
    assert "fisher_logdet" in capsys.readouterr().out


@pytest.mark.apart
@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p)], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_documents_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _run(page)


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("*.md")), *PAGES], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_readmes_two_commands_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo:", makefile, flags=re.MULTILINE)
    assert re.search(r"^test:", makefile, flags=re.MULTILINE)


def test_every_measure_has_a_page_and_no_page_is_of_none() -> None:
    pages = {p.stem for p in (ROOT / "docs" / "measures").glob("*.md")}
    assert set(catalog.MEASURES) <= pages, sorted(set(catalog.MEASURES) - pages)
    for name in catalog.MEASURES:
        assert _blocks(ROOT / "docs" / "measures" / f"{name}.md"), f"{name} has no worked example"


def test_the_sites_navigation_leads_somewhere() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = re.findall(r"- ([\w-]+\.md)$", text, flags=re.MULTILINE)
    assert "index.md" in pages
    for page in pages:
        assert (ROOT / "docs" / page).exists(), page


def test_the_reference_names_what_there_is() -> None:
    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), re.MULTILINE):
        try:
            import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            assert hasattr(import_module(module), attribute), name


def test_the_architecture_names_what_there_is() -> None:
    """Of each line of "Where things are" the names before the description are files or folders of the package."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = page.split("## Where things are", 1)[1].split("```")[1]
    there = {p.stem.lstrip("_") for p in (ROOT / "src" / "flatminima").rglob("*") if p.is_dir() or p.suffix == ".py"}
    named = [name.rstrip("/") for line in block.splitlines() for name in line[:45].split()]
    assert len(named) > 50
    assert [name for name in named if name not in there] == []


def test_the_version_is_the_same_wherever_a_user_copies_it() -> None:
    said = []
    for file in ("action.yml", ".pre-commit-hooks.yaml", "docs/sharing.md"):
        text = (ROOT / file).read_text(encoding="utf-8")
        said += [(file, version) for version in re.findall(r"(?:@|rev: )v(\d+\.\d+\.\d+)", text)]
    assert len(said) == 4 and {version for _, version in said} == {flatminima.__version__}, said
    newest = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert flatminima.__version__ in newest[:2]
