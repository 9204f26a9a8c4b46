"""The catalogue against what it speaks of: functions, classes, registries, pages."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
from measure_networks import NETWORKS as NETWORKS_OF_THE_CONTRACT

import flatminima
from flatminima import bounds, catalog, certification, data, models, optim, studies
from flatminima.catalog import choices
from flatminima.core.losses.recognise import BUILT_IN
from flatminima.errors import UnknownName

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
KINDS = (catalog.MEASURES, catalog.STATISTICS, catalog.BOUNDS, catalog.OPTIMIZERS, catalog.NETWORKS)


def test_what_may_be_chosen_is_what_the_library_has() -> None:
    """The command line offers the catalogue's names; catches one that nothing answers to, and one that is missing."""
    assert set(choices.LOSSES) == set(BUILT_IN)
    assert tuple(sorted(certification.OBJECTIVES)) == choices.OBJECTIVE_NAMES
    assert set(choices.AUGMENTATIONS) == set(data.augment._SCHEMES)
    assert set(choices.METHODS) == {"plain", *catalog.OPTIMIZERS}
    assert studies.SCALES is choices.SCALES


@pytest.mark.parametrize("kind", KINDS, ids=["measures", "statistics", "bounds", "optimizers", "networks"])
def test_rows_are_sorted_and_of_known_papers(kind) -> None:  # type: ignore[no-untyped-def]
    assert list(kind) == sorted(kind)
    for name, row in kind.items():
        assert row.name == name and row.summary and len(row.summary) <= 80
        assert row.paper is None or catalog.PAPERS[row.paper.key] is row.paper


def test_every_optimizer_network_and_study_is_where_its_row_says() -> None:
    for row in catalog.OPTIMIZERS.values():
        assert row.load() is getattr(optim, row.attribute)
    assert set(models.MODELS) == set(catalog.NETWORKS)
    assert {name: study.id for name, study in studies.STUDIES.items()} == {name: name for name in catalog.STUDY_FILES}
    files = {p.stem for p in (Path(flatminima.__file__).parent / "studies").glob("*.py") if "STUDY = " in p.read_text()}
    assert files == set(catalog.STUDY_FILES.values())


def test_every_bound_is_of_its_file() -> None:
    for name, row in catalog.BOUNDS.items():
        assert getattr(bounds, name).__module__ == f"flatminima.bounds.{row.module}"


@pytest.mark.parametrize("name", catalog.MEASURES)
def test_counts_and_small_options_are_options(name: str) -> None:
    row = catalog.MEASURES[name]
    takes = inspect.signature(row.load()).parameters
    for options in (row.fast, row.thorough, row.small):
        assert set(options) <= set(takes)


def test_a_measure_without_a_value_somewhere_says_where() -> None:
    """`flatminima list` says in words what a measure is not defined for."""
    for network in NETWORKS_OF_THE_CONTRACT.values():
        for name, reason in network.undefined.items():
            assert not reason or catalog.MEASURES[name].undefined, name


def test_papers_are_the_notations_and_errata_the_pages() -> None:
    notation = (REFERENCE / "notation.md").read_text(encoding="utf-8")
    explained = dict(re.findall(r"^\| \*\*(\w+)\*\* \| (.+) \|$", notation, flags=re.MULTILINE))
    assert {key for key, row in catalog.PAPERS.items() if row.claims} <= set(explained) <= set(catalog.PAPERS)
    for key, text in explained.items():
        assert key == "WB" or catalog.PAPERS[key].title in text
    errata = re.findall(r"^### ([WNJ]-[a-z])$", (REFERENCE / "errata.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert errata == [code for row in catalog.PAPERS.values() for code in row.errata]


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'margin'"):
        catalog.measure_row("margins")
    with pytest.raises(UnknownName, match="did you mean 'J20'"):
        catalog.paper("J2O")
    for package in (bounds, models, flatminima.measures):
        with pytest.raises(AttributeError, match="flatminima list"):
            package.nothing  # noqa: B018


def test_the_site_has_a_page_and_a_row_for_each_measure() -> None:
    """mkdocs itself is not here: the hooks are functions of what it hands them."""
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", REFERENCE.parents[1] / "mkdocs_hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    nav = hooks.on_config({"nav": ["index.md", {"Measures": ["measures/index.md"]}]})["nav"]
    assert nav[1]["Measures"] == ["measures/index.md", *(f"measures/{name}.md" for name in catalog.MEASURES)]
    page = (REFERENCE.parent / "measures" / "index.md").read_text(encoding="utf-8")
    table = hooks.on_page_markdown(page)
    assert all(f"[{name}]({name}.md)" in table for name in catalog.MEASURES)
    page = (REFERENCE.parent / "statistics.md").read_text(encoding="utf-8")
    table = hooks.on_page_markdown(page)
    assert all(f"| `{name}` | {row.summary} | {row.cost} |" in table for name, row in catalog.STATISTICS.items())
    named = hooks.on_page_markdown("::: flatminima.bounds\n::: flatminima.optim\n").split("\n")
    assert "::: flatminima.bounds.kl.kl_inverse" in named and "::: flatminima.optim" in named
    assert len(named) == len(bounds.__all__) + 2
