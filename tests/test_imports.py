"""Imports point downwards only: the layers of docs/architecture.md, proved on the syntax trees."""

import ast
from pathlib import Path

import pytest

import flatminima

ROOT = Path(flatminima.__file__).parent

# From the ground up. A module may import its own row's packages only where the row says so, and every row below it.
LAYERS = [
    (
        "errors",
        "progress",
        "display",
        "output",
        "full_precision",
        "output_graph",
        "distributed",
        "io",
        "escaping",
        "interrupts",
        "identity",
        "sharing",
        "rebinding",
        "scaled_gradients",
        "space",
        "activation_pattern",
        "spent",
        "catalog",
    ),
    ("written",),
    ("ambient", "guard", "untrusted", "moved_weights", "statistic_store"),
    ("estimate", "parameters", "samples", "losses", "chance"),
    ("sharded_parameters",),
    ("layer_rules", "perturbation", "statistic", "table", "budgets"),
    ("layer_grams",),
    ("layer_gradient",),
    ("layers",),
    ("gradient_check",),
    ("batch",),
    ("sweep", "kept_values"),
    ("mapping", "admission"),
    ("network",),
    ("minimum", "fsdp"),
    ("statistics",),
    ("measures", "optim", "measuring", "sharded"),  # never each other
    ("training",),
    ("diagnosis",),
    (
        "report",
        "ranking",
        "rescaling",
        "certification",
    ),  # never each other; a certificate trains its prior
    ("track",),
    ("studies", "integrations", "demo", "landscape", "doctor"),
    ("notebook",),
    ("cli", "testing"),
]
ROW = {name: i for i, row in enumerate(LAYERS) for name in row}
ALONE = {"bounds", "models", "data"}  # import errors, the catalogue and themselves, nothing else of ours
USES_ALONE = {"measures", "ranking", "certification", "training", "report", "studies", "integrations", "demo", "cli"}
# the package's lazy front door may name everything
FRONT = "__init__"
HEAVY = {"torch", "pandas", "matplotlib", "sklearn", "datasets", "transformers"}


def _modules():
    return sorted(ROOT.rglob("*.py"))


def _area(path):
    """'measures' for flatminima/measures/norms.py, 'measuring' for flatminima/measuring.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "core" else parts[0]


def _typing_only(tree):
    """Nodes under `if TYPE_CHECKING:`, which never run."""
    out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                out.update(id(n) for n in ast.walk(child))
    return out


def _names(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide what is imported"
        module = node.module or ""
        return [f"flatminima.{alias.name}" for alias in node.names] if module == "flatminima" else [module]
    return []


def imported(source, nested=True):
    """Modules that the source imports when it runs; `nested`: also within functions."""
    tree = ast.parse(source)
    skip = _typing_only(tree)
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.walk(node)
    }
    return [
        name
        for node in ast.walk(tree)
        if id(node) not in skip and (nested or id(node) not in inside)
        for name in _names(node)
    ]


def ours(source):
    """Areas of flatminima that the source imports."""
    return {_target(name) for name in imported(source) if name.startswith("flatminima.")}


def _target(name):
    """'minimum' for flatminima.core.minimum: the rows of core are the ground that all else stands on."""
    parts = name.split(".")
    return parts[2] if parts[1] == "core" and len(parts) > 2 else parts[1]


def complaint(area, target):
    """Why `area` may not import `target`, or None."""
    if target == area or target in ("errors", "escaping", "untrusted", "catalog", "__version__"):
        return None
    if area in ALONE:
        return f"{area} imports nothing of ours but errors and untrusted"
    if target in ALONE:
        return None if area in USES_ALONE else f"{area} lies below {target}"
    if target not in ROW:
        return f"{target} has no layer: give it one"
    if ROW[target] < ROW[area]:
        return None
    if ROW[target] > ROW[area]:
        return f"{target} lies above {area}"
    return None if len(LAYERS[ROW[area]]) > 1 and ROW[area] in (2, 3) else f"{target} lies beside {area}"


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    area = _area(path)
    if area == FRONT:
        pytest.skip("the front door") if not imported(path.read_text(), nested=False) else None
    assert area in ROW or area in ALONE or area in (FRONT, "__main__", "_version"), f"{area} has no layer: give it one"
    if area in (FRONT, "__main__"):
        return
    wrong = [c for target in sorted(ours(path.read_text())) if (c := complaint(area, target))]
    assert not wrong, wrong


def test_measures_do_not_know_who_runs_them():
    for path in (ROOT / "measures").glob("*.py"):
        assert not ours(path.read_text()) & {"measuring", "table", "minimum", "sweep", "batch"}, path.name


def test_statistics_do_not_know_the_measures():
    for path in (ROOT / "statistics").glob("*.py"):
        assert not ours(path.read_text()) & {"measures", "measuring", "estimate", "catalog"}, path.name


def test_bounds_are_numbers_in_numbers_out():
    for path in (ROOT / "bounds").glob("*.py"):
        top = {name.split(".")[0] for name in imported(path.read_text())}
        assert not top & HEAVY, path.name


LIGHT = [
    "__init__",
    "errors",
    "estimate",
    "progress",
    "table",
    "io",
    *(f"catalog/{p.stem}" for p in (ROOT / "catalog").glob("*.py")),
]


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy_when_they_are_imported(name):
    top = {n.split(".")[0] for n in imported((ROOT / f"{name}.py").read_text(), nested=False)}
    assert not top & (HEAVY | {"numpy", "scipy", "rich"})


def test_nothing_pulls_torchvision():
    """Beside a CPU torch its PyPI build breaks even `import transformers`."""
    for path in _modules():
        assert "torchvision" not in {n.split(".")[0] for n in imported(path.read_text())}, path


def test_the_rules_catch_what_they_are_for():
    """The checker itself: upward, sideways, nested in a function, and hidden from the type checker only."""
    assert ours("def f():\n    from flatminima.measures import margin") == {"measures"}
    assert (
        ours("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from flatminima.core.minimum import Minimum")
        == set()
    )
    assert ours("from flatminima import catalog, errors") == {"catalog", "errors"}
    assert complaint("statistics", "measures") == "measures lies above statistics"
    assert complaint("measures", "measuring") == "measuring lies beside measures"
    assert complaint("measures", "optim") == "optim lies beside measures"
    assert complaint("bounds", "estimate") == "bounds imports nothing of ours but errors and untrusted"
    assert complaint("models", "minimum") == "models imports nothing of ours but errors and untrusted"
    assert complaint("minimum", "data") == "minimum lies below data"
    assert complaint("measures", "newcomer") == "newcomer has no layer: give it one"
    assert complaint("cli", "measuring") is None
    assert complaint("training", "data") is None
