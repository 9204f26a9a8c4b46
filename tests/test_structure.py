"""The size and the names of what there is: modules, functions, arguments, and one meaning a public name."""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from functools import cache
from pathlib import Path

import flatminima
from flatminima import catalog

ROOT = Path(flatminima.__file__).parent
LINES, BODY, ARGUMENTS, COMMAND = 400, 60, 10, 250
MEDIAN = 145  # lines of a module; about 110 is the aim

# functions of more arguments: each is public, and its options are its documented contract
MANY = {
    "bounds/neyshabur.py:neyshabur_score": "an argument a symbol of the equation",
    "bounds/truncated.py:truncated_gaussian": "an argument a symbol of the equation",
    "bounds/wang.py:uniform_perturbation": "an argument a symbol of the equation",
    "certification/around.py:certify_around": "the public contract",
    "certification/certifying.py:certify": "the public contract",
    "measures/pacgen.py:pacgen": "the public contract",
    "optim/pertopt.py:PertOPT.__init__": "the public contract",
    "training/loop.py:Training.__init__": "the options of `training.train`, which hands them on",
    "training/minimise.py:train": "public: the options of a training run that are no part of its configuration",
}

# one file stem in several folders: what makes them one family
SHARED_STEMS = {
    "a measure and the statistic it reads": {"adaptive", "conditions", "hessian", "power_law", "spectrum"},
    "a command, or a page, and the library's part that it shows": {
        "around", "candidates", "card", "claims", "demo", "doctor", "output", "studies", "train",
    },
    "the claims of a paper and its bounds": {"jia", "neyshabur", "wang"},
    "the same noun of another kind of thing: data, certificates, tracking, reports": {
        "certificate", "check", "curvature", "evaluate", "huggingface", "layers", "layout", "networks", "outputs",
        "page", "quantities", "reading", "rows", "schedule", "sources", "state", "surface", "table", "tensors",
    },
}  # fmt: skip


@cache
def trees() -> dict[str, tuple[str, ast.Module]]:
    """Path below the package to source and syntax tree."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found[path.relative_to(ROOT).as_posix()] = (text, ast.parse(text))
    return found


def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function by path and qualified name."""
    found = []

    def walk(node: ast.AST, path: str, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append((f"{path}:{prefix}{child.name}", child))
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            walk(child, path, f"{prefix}{child.name}." if named else prefix)

    for path, (_, tree) in trees().items():
        walk(tree, path, "")
    return found


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From the first statement to the last, without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """All but self and cls."""
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([a for a in given if a.arg not in ("self", "cls")])


def test_no_module_is_long() -> None:
    long = {path: n for path, (text, _) in trees().items() if (n := text.count("\n")) > LINES}
    assert not long, f"split by what it does: {long}"


def test_modules_are_of_one_idea_each() -> None:
    """Neither one long file nor a folder of crumbs."""
    lines = sorted(text.count("\n") for path, (text, _) in trees().items() if not path.endswith("__init__.py"))
    assert 80 <= lines[len(lines) // 2] <= MEDIAN


def test_the_commands_files_are_short() -> None:
    long = {p: n for p, (text, _) in trees().items() if p.startswith("cli/") and (n := text.count("\n")) > COMMAND}
    assert not long, f"split by what it does: {long}"


def test_no_function_is_long() -> None:
    long = {name: count for name, function in functions() if (count := body_lines(function)) > BODY}
    assert not long, f"name its parts: {long}"


def test_few_arguments_outside_the_command_line() -> None:
    many = {name for name, function in functions() if arguments(function) > ARGUMENTS and not name.startswith("cli/")}
    assert many == set(MANY), f"give them an options object, or take the reason out of MANY: {many ^ set(MANY)}"


def test_a_stem_in_two_folders_has_a_reason() -> None:
    homes = defaultdict(list)
    for path in trees():
        if not path.endswith(("__init__.py", "__main__.py")):
            homes[Path(path).stem].append(path)
    shared = {stem for stem, paths in homes.items() if len(paths) > 1}
    reasons = set().union(*SHARED_STEMS.values())
    assert shared == reasons, f"without a reason, or a reason without them: {shared ^ reasons}"


TWO_MEANINGS = {"train": "of studies, the one of training that goes on after a kill"}

# Names without an underscore that several modules define; each by its reason. What is listed may only become less: give
# the newcomer another name.
TWICE = {
    "the same callback for two frameworks, each imported from its own module": {"TrackerCallback"},
    "a verb of the contract, `flatminima.data.load` and `flatminima.models.hf.load`": {"load"},
}


def defined(tree: ast.Module) -> set[str]:
    """Names that a module defines at its top, but for type variables and what begins with an underscore."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            value = node.value
            if isinstance(value, ast.Call) and getattr(value.func, "id", "") in ("TypeVar", "ParamSpec"):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def test_a_public_name_is_defined_once() -> None:
    """A command and a notebook's view have the name of what they show, and each study its STUDY and its parts."""
    homes = defaultdict(list)
    for path, (_, tree) in trees().items():
        if not path.startswith(("cli/", "notebook.py", "studies/")):
            for name in defined(tree):
                homes[name].append(path)
    twice = {name for name, paths in homes.items() if len(paths) > 1}
    allowed = set().union(*TWICE.values())
    assert twice <= allowed, {name: homes[name] for name in twice - allowed}
    assert allowed <= twice, f"take out of TWICE: {allowed - twice}"


def test_the_packages_public_names_are_one_thing_each() -> None:
    """What `__all__` of two packages both have is one object."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for package in catalog.surface.PACKAGES:
        module = importlib.import_module(f"flatminima.{package}")
        for name in getattr(module, "__all__", ()):
            if package != "integrations":
                found[name][id(getattr(module, name))] = package
    twice = {name for name, homes in found.items() if len(homes) > 1}
    assert twice == set(TWO_MEANINGS), {name: sorted(found[name].values()) for name in twice ^ set(TWO_MEANINGS)}


def test_the_rules_catch_what_they_are_for() -> None:
    long = ast.parse("def f(" + ", ".join(f"a{i}" for i in range(11)) + "):\n  '''one'''\n" + "  x = 1\n" * 61).body[0]
    assert isinstance(long, ast.FunctionDef)
    assert body_lines(long) == 61 and arguments(long) == 11
    method = ast.parse("class A:\n  def f(self, a): return a").body[0]
    assert isinstance(method, ast.ClassDef) and isinstance(method.body[0], ast.FunctionDef)
    assert arguments(method.body[0]) == 1
