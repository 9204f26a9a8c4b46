"""`package.module:factory`: model code comes only from an import string that the user typed."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.errors import FlatMinimaError, UsageError

if TYPE_CHECKING:
    from torch import nn


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


def arguments(pairs: list[str]) -> dict[str, Any]:
    """key=value pairs as keyword arguments; values are Python literals, or else text.

    Raises:
        UsageError: a pair without '='.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (equals and key.isidentifier()):
            raise UsageError(f"got --model-arg {pair!r}; expected key=value")
        try:
            out[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[key] = value
    return out


def build(target: str, options: dict[str, Any], app_dir: Path | None) -> nn.Module:
    """Call the factory.

    Raises:
        UsageError: the module or the name does not exist, or is not callable.
        FactoryFailed: importing or calling it raised, or it returned no torch.nn.Module.
    """
    from torch import nn

    module_name, name = split(target)
    if app_dir is not None:
        sys.path.insert(0, os.fspath(app_dir.resolve()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            where = "" if app_dir else ": for a file in this folder add --app-dir ."
            raise UsageError(f"no module {error.name!r} for --model {target}{where}") from None
        raise FactoryFailed(f"importing {module_name!r} failed: {_oneline(error)}") from error
    except Exception as error:
        raise FactoryFailed(f"importing {module_name!r} failed: {_oneline(error)}") from error
    factory = getattr(module, name, None)
    if factory is None:
        raise UsageError(f"module {module_name!r} has no {name!r}: check the part of --model after the colon")
    if not callable(factory):
        raise UsageError(f"{target} is a {type(factory).__name__}; --model must name something that can be called")
    try:
        model = factory(**options)
    except Exception as error:
        raise FactoryFailed(f"{target}({_shown(options)}) raised {_oneline(error)}") from error
    if not isinstance(model, nn.Module):
        raise FactoryFailed(f"{target} returned {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _oneline(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _shown(options: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in options.items())
