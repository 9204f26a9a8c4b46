"""A command whose options come in groups: each group is a frozen dataclass, each of its fields an option.

Parameters that are no dataclass stay options of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, cast, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer wants it: one parameter an option, made into the groups before the call.

    Args:
        command: parameters annotated with dataclasses, whose fields are annotated as typer's options are, and options.
    """
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters
    groups = {name: kind for name, kind in hints.items() if name != "return" and is_dataclass(kind)}
    owner: dict[str, str] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        kind = groups[name]
        types = get_type_hints(kind, include_extras=True)
        for option in fields(kind):
            if option.name in owner or (option.name in own and option.name not in groups):
                raise TypeError(f"{name} and {owner.get(option.name, 'the command')} both have an option {option.name}")
            owner[option.name] = name
            parameters.append(_parameter(option, types[option.name]))
    parameters.sort(key=lambda p: p.default is not inspect.Parameter.empty)  # the required ones first, in --help too

    def called(**given: Any) -> None:
        made = {
            name: cast(Any, kind)(**{option: value for option, value in given.items() if owner.get(option) == name})
            for name, kind in groups.items()
        }
        command(**{name: value for name, value in given.items() if name not in owner}, **made)

    called.__name__, called.__doc__, called.__module__ = command.__name__, command.__doc__, command.__module__
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def _parameter(option: Field[Any], annotation: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if option.default is MISSING else option.default
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
