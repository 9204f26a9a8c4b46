"""While weights are displaced, whoever would take them for the real ones is refused: no checkpoint holds noise.

An optimizer knows parameters and not the modules that own them. So the first displacement of a process wraps four
methods of `nn.Module`: `state_dict`, `load_state_dict`, `train` (for eval) and `__getstate__` (pickling, deep copies).
The wrapped ones look whether the module owns a displaced parameter, and are the plain ones where nothing is displaced.
They stay: changing a class in every step would throw away Python's attribute caches in every step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx, nn

from flatminima.errors import UsageError

_REMEDY = "leave the `with ....perturbed():` block first"
_displaced: dict[int, frozenset[int]] = {}  # owner -> ids of its displaced parameters


def enter(owner: object, parameters: Iterable[Tensor]) -> None:
    """From now on the parameters are displaced."""
    _install()
    _displaced[id(owner)] = frozenset(map(id, parameters))


def leave(owner: object) -> None:
    """The parameters are themselves again; harmless if they were."""
    _displaced.pop(id(owner), None)


def _owns(module: nn.Module, all_of_them: bool = False) -> bool:
    ids = {id(p) for p in module.parameters()}
    if all_of_them:
        return any(held and held <= ids for held in _displaced.values())
    return any(held & ids for held in _displaced.values())


def _refusing(name: str, what: str, refuses: Callable[..., bool]) -> Callable[..., Any]:
    original = getattr(nn.Module, name)

    @functools.wraps(original)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _displaced and refuses(self, *args, **kwargs):
            raise UsageError(f"{what} of {type(self).__name__} while its weights are perturbed: {_REMEDY}")
        return original(self, *args, **kwargs)

    return method


def _to_eval(module: nn.Module, mode: bool = True) -> bool:
    # a part switched to eval mode, such as a frozen BatchNorm, is no evaluation of the network
    return not mode and module.training and _owns(module, all_of_them=True)


@functools.cache
def _install() -> None:
    for name, what, refuses in (
        ("state_dict", "state_dict()", lambda self, *a, **k: _owns(self)),
        ("load_state_dict", "load_state_dict()", lambda self, *a, **k: _owns(self)),
        ("train", "eval()", _to_eval),
        ("__getstate__", "a copy or pickle", lambda self: not isinstance(self, fx.GraphModule) and _owns(self)),
    ):
        setattr(nn.Module, name, _refusing(name, what, refuses))
