"""`--model-config FILE`: arguments of a factory, or the one configuration object that it takes, from a file.

A file holds plain values: JSON, TOML or YAML (read without tags, which could name code).
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from flatminima.errors import MissingExtra, UsageError
from flatminima.untrusted import parsed, parsed_yaml, read_text

_MOST = 1 << 22  # bytes of a configuration
_REQUIRED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Configuration(dict[str, Any]):
    """A mapping whose entries are attributes too, at every level, as configuration libraries have it."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the configuration has no {name!r}; it has {', '.join(self)}") from None

    @classmethod
    def of(cls, value: Any) -> Any:
        """Plain values with every mapping made a Configuration."""
        if isinstance(value, Mapping):
            return cls({str(k): cls.of(v) for k, v in value.items()})
        return [cls.of(v) for v in value] if isinstance(value, list) else value


def arguments_of(factory: Any, path: Path) -> dict[str, Any]:
    """Keyword arguments for the factory.

    Where its parameters are the keys of the file, these; where it takes one object, that: a dataclass if its parameter
    is annotated with one, else a `Configuration`.

    Raises:
        UsageError: a file that is no mapping, or keys that the factory does not take.
    """
    values = read(path)
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return values
    if any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters.values()) or values.keys() <= parameters.keys():
        return values
    needed = [p for p in parameters.values() if p.default is inspect.Parameter.empty and p.kind in _REQUIRED]
    only = needed[0] if len(needed) == 1 else next(iter(parameters.values())) if len(parameters) == 1 else None
    if only is None:
        lost = ", ".join(sorted(values.keys() - parameters.keys())[:5])
        takes = ", ".join(parameters) or "nothing"
        raise UsageError(f"{path} has {lost}, which the factory does not take: it takes {takes}")
    return {only.name: _object(factory, only.name, values, path)}


def _object(factory: Any, name: str, values: dict[str, Any], path: Path) -> Any:
    try:
        kind = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory).get(name)
    except (NameError, TypeError):
        kind = None
    if not (isinstance(kind, type) and is_dataclass(kind)):
        try:
            return Configuration.of(values)
        except RecursionError:
            raise UsageError(f"{path} is nested too deeply") from None
    known = {f.name for f in fields(kind)}
    lost = sorted(values.keys() - known)
    if lost:
        names = ", ".join(sorted(known))
        raise UsageError(f"{path} has {', '.join(lost[:5])}, which {kind.__name__} does not have: it has {names}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path} makes no {kind.__name__}: {error}") from None


def read(path: Path) -> dict[str, Any]:
    """The mapping in the file."""
    try:
        found = _parsed(read_text(path, _MOST), path)
    except (ValueError, RecursionError) as error:  # Unreadable, or of tomllib
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} cannot be read as {path.suffix or 'JSON'}: {said}") from None
    if not isinstance(found, Mapping):
        raise UsageError(f'{path} holds a {type(found).__name__}; expected names and values, as {{"width": 64}}')
    return {str(k): v for k, v in found.items()}


def _parsed(text: str, path: Path) -> Any:
    if path.suffix == ".toml":
        return tomllib.loads(text)
    if path.suffix in (".yaml", ".yml"):
        try:
            import yaml  # noqa: F401
        except ImportError:
            raise MissingExtra("pyyaml", "data", f"reading {path}") from None
        return parsed_yaml(text)
    return parsed(text)
