"""`package.module:factory`: model code comes only from an import string that the user typed."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.errors import FlatMinimaError, UsageError

if TYPE_CHECKING:
    from torch import nn

_SOURCE = ".py"
_LITERALS = {"true": True, "false": False, "none": None, "null": None}


class FactoryFailed(FlatMinimaError):
    """The user's factory raised, or returned something else than a module (exit code 1)."""


def split(target: str, option: str = "--model") -> tuple[str, str]:
    """Module (or file) and name of an import string; checked before anything is imported.

    Raises:
        UsageError: not of the form package.module:factory or file.py:factory.
    """
    module, colon, name = target.rpartition(":")
    if colon and name.isidentifier() and module.endswith(_SOURCE):
        if not Path(module).is_file():
            raise UsageError(f"no file {module} for {option} {target}; check the path")
        return module, name
    if not (colon and module and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        example = "flatminima.models:mnist_cnn, or file.py:factory" if option == "--model" else "my_data:load"
        raise UsageError(f"got {option} {target!r}; expected package.module:factory, e.g. {example}")
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


def build(target: str, options: dict[str, Any], app_dir: Path | None, config: Path | None = None) -> nn.Module:
    """Call the factory of a network.

    Args:
        target: import string. options: keyword arguments. app_dir: folder to import from.
        config: file of further arguments, or of the one configuration object that the factory takes.

    Raises:
        UsageError: the module or the name does not exist, is not callable, or does not take the options.
        FactoryFailed: importing or calling it raised, or it returned no torch.nn.Module.
    """
    from torch import nn

    factory = named(target, app_dir)
    if isinstance(factory, nn.Module):  # calling it would be a forward pass
        raise UsageError(f"{target} is a network already; --model must name a function or class that makes one")
    if not callable(factory):
        raise UsageError(f"{target} is a {type(factory).__name__}; --model must name something that can be called")
    if config is not None:
        from flatminima.cli.configuration import arguments_of

        options = arguments_of(factory, config) | options
    model = call(factory, options, target)
    if not isinstance(model, nn.Module):
        raise FactoryFailed(f"{target} returned {type(model).__name__}; it must return a torch.nn.Module")
    return model


def call(factory: Any, options: dict[str, Any], target: str, option: str = "--model-arg") -> Any:
    """Call the factory. Raises UsageError for arguments that it does not take, FactoryFailed if it raised."""
    _check_options(factory, options, target, option)
    try:
        return factory(**options)
    except (Exception, SystemExit) as error:
        raise FactoryFailed(f"{target}({_shown(options)}) raised {_oneline(error)}") from error


def named(target: str, app_dir: Path | None, option: str = "--model") -> Any:
    """Import the object that an import string names.

    Raises:
        UsageError: no such module, file or name. FactoryFailed: importing it raised.
    """
    module_name, name = split(target, option)
    if app_dir is not None:
        sys.path.insert(0, os.fspath(app_dir.resolve()))
    try:
        module = (
            _from_file(Path(module_name)) if module_name.endswith(_SOURCE) else importlib.import_module(module_name)
        )
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            where = "" if app_dir else ": for a file in this folder add --app-dir ."
            raise UsageError(f"no module {error.name!r} for {option} {target}{where}") from None
        raise FactoryFailed(f"importing {module_name!r} failed: {_oneline(error)}") from error
    except (Exception, SystemExit) as error:
        raise FactoryFailed(f"importing {module_name!r} failed: {_oneline(error)}") from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"check the part of {option} after the colon"
        raise UsageError(f"module {module_name!r} has no {name!r}: {hint}")
    return getattr(module, name)


def _from_file(path: Path) -> Any:
    """The module in a file, whatever its name, once a process; its folder is on the path, as of a script."""
    path = path.resolve()
    name = f"{path.stem.replace('-', '_')}_{abs(hash(str(path))):x}"
    if name not in sys.modules:
        sys.path.insert(0, os.fspath(path.parent))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _check_options(factory: Any, options: dict[str, Any], target: str, option: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # built in C: calling it will tell
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "nothing"
        raise UsageError(f"{target} {error}: it takes {takes}; check {option} key=value") from None


def _oneline(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _shown(options: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in options.items())
