"""The measures that a statistic is used by, read off the source: no second list that could be wrong."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from flatminima.catalog.measures import MEASURES
from flatminima.catalog.statistics import STATISTICS

_Definition = tuple[str, str]  # module of flatminima, name at its top
_AREAS = ("measures", "statistics")


@cache
def used_by() -> Mapping[str, tuple[str, ...]]:
    """Statistic to the measures that may ask for it, themselves or through another statistic, options included.

    Empty where the sources are not installed.
    """
    spec = find_spec("flatminima")
    root = Path(next(iter(spec.submodule_search_locations or ()))) if spec else Path()
    names: dict[_Definition, frozenset[_Definition]] = {}
    for area in _AREAS:
        for file in sorted((root / area).glob("*.py")):
            names |= _references(f"{area}.{file.stem}", ast.parse(file.read_text(encoding="utf-8")))
    users: dict[str, list[str]] = {name: [] for name in STATISTICS}
    for measure in MEASURES.values():
        reached = _reached((f"measures.{measure.module}", measure.name), names)
        for row in STATISTICS.values():
            if (f"statistics.{row.module}", row.name) in reached:
                users[row.name].append(measure.name)
    return {name: tuple(found) for name, found in users.items()}


def _references(module: str, tree: ast.Module) -> dict[_Definition, frozenset[_Definition]]:
    """Each definition of a module with the definitions of measures and statistics that its body names."""
    homes: dict[str, _Definition] = {}
    bodies: dict[str, list[ast.AST]] = {}
    for statement in tree.body:
        for name in _defined(statement):
            homes[name] = (module, name)
            bodies.setdefault(name, []).append(statement)
    for node in ast.walk(tree):
        source = (node.module or "").removeprefix("flatminima.") if isinstance(node, ast.ImportFrom) else ""
        if isinstance(node, ast.ImportFrom) and source.partition(".")[0] in _AREAS:
            for alias in node.names:
                homes[alias.asname or alias.name] = _home(source, alias.name)
    return {
        (module, name): frozenset(
            homes[n.id] for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in homes
        )
        for name, nodes in bodies.items()
    }


def _home(module: str, name: str) -> _Definition:
    """A name that `flatminima.statistics` hands on lies in the file of its row."""
    if module == "statistics" and name in STATISTICS:
        return f"statistics.{STATISTICS[name].module}", name
    return module, name


def _defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _reached(start: _Definition, names: Mapping[_Definition, frozenset[_Definition]]) -> set[_Definition]:
    seen, todo = {start}, [start]
    while todo:
        for one in names.get(todo.pop(), frozenset()) - seen:
            seen.add(one)
            todo.append(one)
    return seen
