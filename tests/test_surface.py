"""The public surface is a list: sorted, importable, typed, and light until it is used."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flatminima
from flatminima import catalog, measures

PACKAGE = Path(flatminima.__file__).parent
ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "scipy", "pandas", "matplotlib", "sklearn", "rich")


def _in_a_fresh_python(code):
    """What `code` prints as JSON."""
    path = os.pathsep.join([str(PACKAGE.parent), *sys.path])
    command = [sys.executable, "-c", f"import json\n{code}"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=True, timeout=120
    )
    return json.loads(done.stdout)


def test_the_names_are_sorted_and_importable():
    assert flatminima.__all__ == sorted(flatminima.__all__)
    for name in flatminima.__all__:
        assert getattr(flatminima, name) is not None
    assert set(flatminima.__all__) <= set(dir(flatminima))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flatminima.nothing  # noqa: B018


def test_the_contract_is_part_of_the_surface():
    assert {"Estimate", "MeasureTable", "Minimum", "bounds", "measure", "measures", "plan"} <= set(flatminima.__all__)
    assert list(inspect.signature(flatminima.Minimum).parameters) == [
        "model", "data", "loss", "batch_size", "device", "seed", "ranks", "limit", "output",
    ]  # fmt: skip
    for function in (flatminima.measure, flatminima.plan):
        assert list(inspect.signature(function).parameters) == ["minimum", "measures", "budget"]


@pytest.mark.parametrize("module", ["flatminima", "flatminima.catalog", "flatminima.errors", "flatminima.estimate"])
def test_importing_it_imports_no_torch(module):
    found = _in_a_fresh_python(f"import sys, {module}\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))")
    assert found == []


def test_public_names_are_not_shadowed_by_modules():
    """`measures.margin` was the function once, and the module of that name from the second time on."""
    found = _in_a_fresh_python(
        "import flatminima\n"
        "from flatminima import measures\n"
        "for name in measures.__all__ * 2: getattr(measures, name)\n"
        "import flatminima.measuring, flatminima.measures.margin, flatminima.measures.pacgen\n"
        "wrong = [n for n in measures.__all__ if not callable(getattr(measures, n))]\n"
        "wrong += [n for n in ('measure', 'plan') if not callable(getattr(flatminima, n))]\n"
        "print(json.dumps(wrong))"
    )
    assert found == []


def _packages():
    return [name for name in catalog.surface.PACKAGES if name != "errors"]


def test_everything_public_is_an_attribute_and_no_more():
    """`flatminima.<tab>`: the catalogue's names and packages, each there, none of it a private module."""
    assert set(flatminima.__all__) == {*catalog.surface.NAMES, *catalog.surface.PACKAGES}
    assert set(dir(flatminima)) == {*flatminima.__all__, "__version__"}
    for name in flatminima.__all__:
        assert inspect.ismodule(getattr(flatminima, name)) == (name in catalog.surface.PACKAGES), name
        assert (inspect.getdoc(getattr(flatminima, name)) or "").strip(), f"help({name}) says nothing"
    # what a type checker sees is written down beside it
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(flatminima.__all__)


@pytest.mark.parametrize("package", _packages())
def test_a_packages_names_are_its_public_ones(package):
    """`dir(flatminima.measures)` shows functions; the modules that hold them are private, but for the integrations."""
    module = importlib.import_module(f"flatminima.{package}")
    assert sorted(dir(module)) == sorted(module.__all__)
    assert module.__doc__
    for name in module.__all__:
        if package == "integrations":
            assert (PACKAGE / package / f"{name}.py").is_file()
        else:
            assert not inspect.ismodule(getattr(module, name)), name
        value = None if package == "integrations" else getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"help({package}.{name}) says nothing"


USERS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "measures").glob("*.md"),
         *(ROOT / "examples").rglob("*.py"), *(ROOT / "examples").rglob("*.ipynb")]  # fmt: skip
CONTRIBUTORS = {"architecture.md"}  # and docs/how-to, which name private modules


def test_users_are_shown_public_modules_only():
    """A page or example that imports from a private module makes it public, whatever the reference says."""
    public = {f"flatminima.{name}" for name in (*catalog.surface.PACKAGES, *catalog.surface.MODULES)} | {"flatminima"}
    imports = re.compile(r"(?:from|import) (flatminima[a-z_.]*)")
    shown = {m for f in USERS if f.name not in CONTRIBUTORS for m in imports.findall(f.read_text(encoding="utf-8"))}
    assert shown <= public, f"private, or a row of surface.MODULES: {shown - public}"
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for name in catalog.surface.MODULES:
        assert importlib.util.find_spec(f"flatminima.{name}") is not None
        assert name.startswith("integrations.") or f"`{name}`" in reference


def test_no_module_takes_a_lazy_functions_name():
    """The package's own names are lazy: a module `measure.py` would replace the function on import."""
    modules = {module.name for module in pkgutil.iter_modules([str(PACKAGE)])}
    functions = {n for n in flatminima.__all__ if not inspect.ismodule(getattr(flatminima, n))}
    assert not modules & (functions | {"certify", "rank"} if "certify" in functions else functions)


def test_every_measure_of_the_catalogue_exists_and_every_measure_is_in_it():
    found = {}
    for module in pkgutil.iter_modules(measures.__path__):
        if module.name.startswith("_"):
            continue
        loaded = importlib.import_module(f"flatminima.measures.{module.name}")
        for name, value in vars(loaded).items():
            if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == loaded.__name__:
                found[name] = module.name
    assert found == {name: entry.module for name, entry in catalog.MEASURES.items()}
    for name, entry in catalog.MEASURES.items():
        assert entry.name == name
        assert entry.load() is getattr(measures, name)


def test_the_catalogue_is_sorted_and_says_something_of_each():
    assert list(catalog.MEASURES) == sorted(catalog.MEASURES) == measures.__all__
    for entry in catalog.MEASURES.values():
        for text in (entry.summary, str(entry.paper), entry.equation, entry.needs):
            assert text.strip() == text != ""
        assert len(entry.summary) <= 80
        assert entry.direction in ("lower", "higher")


def test_the_contracts_first_measures_are_there():
    assert set(catalog.MEASURES) >= {
        "expected_sharpness", "fisher_frobenius", "fisher_logdet", "fisher_spectral_radius", "fisher_trace",
        "frobenius_norm", "margin", "pacgen", "parameter_count", "path_norm", "robustness", "spectral_norm",
    }  # fmt: skip


@pytest.mark.parametrize("package", [p for p in _packages() if p != "integrations"])
def test_packages_list_their_names_sorted_and_keep_them(package):
    module = importlib.import_module(f"flatminima.{package}")
    names = module.__all__
    assert list(names) == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))  # as ruff sorts them
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(module, name) is not None


EXAMPLES = [p for p in sorted(PACKAGE.rglob("*.py")) if ">>> " in p.read_text() and "bounds" not in p.parts]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_examples_in_docstrings_are_true(path):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_the_version_is_one():
    assert flatminima.__version__.count(".") == 2
