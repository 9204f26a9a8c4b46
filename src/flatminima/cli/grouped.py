"""A command whose options come in groups: each group is a frozen dataclass, each of its fields an option."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer wants it: one parameter an option, made into the groups before the call.

    Args:
        command: its parameters are annotated with dataclasses, whose fields are annotated as typer's options are.
    """
    groups = get_type_hints(command)
    groups.pop("return", None)
    owner: dict[str, str] = {}
    parameters: list[inspect.Parameter] = []
    for name, kind in groups.items():
        if not is_dataclass(kind):
            raise TypeError(f"{command.__name__}({name}) is annotated with {kind}; expected a dataclass of options")
        hints = get_type_hints(kind, include_extras=True)
        for option in fields(kind):
            if option.name in owner:
                raise TypeError(f"{name} and {owner[option.name]} both have an option {option.name}")
            owner[option.name] = name
            parameters.append(_parameter(option, hints[option.name]))
    parameters.sort(key=lambda p: p.default is not inspect.Parameter.empty)  # the required ones first, in --help too

    def called(**given: Any) -> None:
        command(**{
            name: kind(**{option: value for option, value in given.items() if owner[option] == name})
            for name, kind in groups.items()
        })  # fmt: skip

    called.__name__, called.__doc__, called.__module__ = command.__name__, command.__doc__, command.__module__
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def _parameter(option: Field[Any], annotation: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if option.default is MISSING else option.default
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
