"""`package.module:factory`: model code comes only from an import string that the user typed."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.errors import FlatMinimaError, UsageError

if TYPE_CHECKING:
    from torch import nn

_LITERALS = {"true": True, "false": False, "none": None, "null": None}


class FactoryFailed(FlatMinimaError):
    """The user's factory raised, or returned something else than a module (exit code 1)."""


def split(target: str) -> tuple[str, str]:
    """Module and name of an import string; checked before anything is imported.

    Raises:
        UsageError: not of the form package.module:factory.
    """
    module, colon, name = target.partition(":")
    if not (colon and module and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise UsageError(f"got --model {target!r}; expected package.module:factory, e.g. flatminima.models:mnist_cnn")
    return module, name


def arguments(pairs: list[str], option: str = "--model-arg") -> dict[str, Any]:
    """key=value pairs of an option as keyword arguments: Python literals, true, false and null too, or else text.

    Raises:
        UsageError: a pair without '=', a key given twice.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (equals and key.isidentifier()):
            raise UsageError(f"got {option} {pair!r}; expected key=value")
        if key in out:
            raise UsageError(f"got {option} {key} twice; give each argument once")
        try:
            out[key] = _LITERALS[value.lower()] if value.lower() in _LITERALS else ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            out[key] = value
    return out


def build(target: str, options: dict[str, Any], app_dir: Path | None) -> nn.Module:
    """Call the factory.

    Raises:
        UsageError: the module or the name does not exist, is not callable, or does not take the options.
        FactoryFailed: importing or calling it raised, or it returned no torch.nn.Module.
    """
    from torch import nn

    module_name, name = split(target)
    if app_dir is not None:
        sys.path.insert(0, os.fspath(app_dir.resolve()))
    factory = _find(module_name, name, target, app_dir)
    _check_options(factory, options, target)
    try:
        model = factory(**options)
    except (Exception, SystemExit) as error:
        raise FactoryFailed(f"{target}({_shown(options)}) raised {_oneline(error)}") from error
    if not isinstance(model, nn.Module):
        raise FactoryFailed(f"{target} returned {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _find(module_name: str, name: str, target: str, app_dir: Path | None) -> Any:
    """The callable that the import string names."""
    from torch import nn

    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            where = "" if app_dir else ": for a file in this folder add --app-dir ."
            raise UsageError(f"no module {error.name!r} for --model {target}{where}") from None
        raise FactoryFailed(f"importing {module_name!r} failed: {_oneline(error)}") from error
    except (Exception, SystemExit) as error:
        raise FactoryFailed(f"importing {module_name!r} failed: {_oneline(error)}") from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "check the part of --model after the colon"
        raise UsageError(f"module {module_name!r} has no {name!r}: {hint}")
    factory = getattr(module, name)
    if isinstance(factory, nn.Module):  # calling it would be a forward pass
        raise UsageError(f"{target} is a network already; --model must name a function or class that makes one")
    if not callable(factory):
        raise UsageError(f"{target} is a {type(factory).__name__}; --model must name something that can be called")
    return factory


def _check_options(factory: Any, options: dict[str, Any], target: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # built in C: calling it will tell
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "nothing"
        raise UsageError(f"{target} {error}: it takes {takes}; check --model-arg key=value") from None


def _oneline(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _shown(options: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in options.items())
