"""Values that a forward pass makes of parameters before an activation meets them: effective weights and their origin.

A layer's weights may be a parameter, a view of one, or made from several (weight_norm, LoRA merged into the weights).
Constants are computed as the network does; their origin tells names, and how each parameter enters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def words(text: str) -> frozenset[str]:
    """Names of operations, separated by blanks."""
    return frozenset(text.split())


# linear in each parameter that enters once
_LINEAR = words(
    "t transpose swapaxes swapdims permute movedim moveaxis view reshape view_as flatten unflatten ravel squeeze "
    "unsqueeze expand expand_as broadcast_to contiguous clone to float double half bfloat16 cpu cuda type type_as "
    "__getitem__ select narrow index_select chunk split unbind cat concat stack repeat repeat_interleave tile "
    "add __add__ __radd__ sub __sub__ __rsub__ rsub neg __neg__ sum mean mul __mul__ __rmul__ matmul __matmul__ mm bmm "
    "addmm einsum tensordot outer kron linear tril triu diag diagonal diag_embed flip roll masked_fill where "
    "__get__ data detach div true_divide __truediv__"
)
_DIVISIONS = frozenset(["div", "true_divide", "__truediv__"])
_PARAMETRIZED = re.compile(r"^(?:(?P<path>.*)\.)?parametrizations\.(?P<attribute>[^.]+)\.[^.]+(?:\..*)?$")
_LEGACY = re.compile(r"^(?:(?P<path>.*)\.)?(?P<attribute>weight|bias)_(?:g|v|orig)$")  # of torch.nn.utils.weight_norm


@dataclass(frozen=True)
class Origin:
    """Parameters that a constant is made from.

    Attributes:
        uses: how often each enters.
        nonlinear: for a parameter from which it is made by an operation that is not linear, the operation.
        view: parameter -> constant, where there is one parameter and nothing else.
        met: the library saw it being made, or it is a parameter.
    """

    uses: Counter[str] = field(default_factory=Counter)
    nonlinear: Mapping[str, str] = field(default_factory=dict)
    view: Callable[[Tensor], Tensor] | None = None
    met: bool = True

    @property
    def parameter(self) -> str | None:
        """The holder: a parameter, or an attribute that is parametrized ("conv.weight"); "": nothing; None: several.

        A parameter counts only where nothing but a view of it is taken.
        """
        attributes = {_attribute(name) for name in self.uses}
        if not attributes:
            return ""
        one = len(attributes) == 1 and (self.parametrized or self.view is not None)
        return attributes.pop() if one else None

    @property
    def parametrized(self) -> bool:
        """Whether the weights are made anew from other parameters, and so are none themselves."""
        return any(_attribute(name) != name for name in self.uses)

    def name(self, default: str) -> str:
        """Name of the module or parameter that holds it."""
        if not self.uses:
            return default
        return ", ".join(sorted({_attribute(name).removesuffix(".weight") for name in self.uses}))


def _attribute(name: str) -> str:
    found = _PARAMETRIZED.match(name) or _LEGACY.match(name)
    if found is None:
        return name
    return ".".join(part for part in (found["path"], found["attribute"]) if part)


class Constants:
    """The origins of the tensors that are no activations.

    Args:
        names: of parameters, by id.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._made: dict[int, tuple[Tensor, Origin]] = {}  # with the tensor, so that its id stays its own
        self._foreign: dict[int, Tensor] = {}

    @property
    def foreign(self) -> list[Tensor]:
        """Tensors that are no parameters and were made out of sight, in the order in which they were met."""
        return list(self._foreign.values())

    def made(self, value: object) -> bool:
        """Whether the network made this tensor during this pass."""
        return id(value) in self._made

    def sharing(self, value: Tensor) -> list[Tensor]:
        """A tensor that the network made, and those that share its storage."""
        storage = value.untyped_storage().data_ptr()
        return [t for t, _ in self._made.values() if t.untyped_storage().data_ptr() == storage]

    def of(self, value: object) -> Origin:
        """Origin of a constant."""
        if not isinstance(value, Tensor):
            return Origin()
        if id(value) in self._names:
            return Origin(Counter([self._names[id(value)]]), view=lambda w: w)
        if id(value) in self._made:
            return self._made[id(value)][1]
        if value.is_floating_point():
            self._foreign[id(value)] = value
        return Origin(met=False)

    def run(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of an operation on constants alone, its origin noted."""
        tensors = [t for t in _tensors((args, kwargs)) if t.is_floating_point()]
        origins = [self.of(t) for t in tensors]
        if len({t.dtype for t in tensors}) > 1 and any(t.dtype == torch.float64 for t in tensors):
            # zeros made like an activation are float64, where the network's own would have the weights' dtype
            args, kwargs = _doubled(args), _doubled(kwargs)
        value = func(*args, **kwargs)
        origin = _combined(name, func, args, kwargs, origins)
        for part in _tensors(value):
            if id(part) not in self._names:
                self._made[id(part)] = (part, origin)
        return value

    def note(self, value: Any) -> Any:
        """A constant that the network made by the shape of an activation."""
        for part in _tensors(value):
            self._made[id(part)] = (part, Origin())
        return value


def _combined(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], origins: list[Origin]) -> Origin:
    uses = sum((o.uses for o in origins), Counter[str]())
    nonlinear: dict[str, str] = {}
    for origin in origins:
        nonlinear |= origin.nonlinear
    divisor = origins[1:] if name in _DIVISIONS else []
    if name not in _LINEAR or any(o.uses for o in divisor):
        nonlinear |= dict.fromkeys(uses, name)
    view = None
    if len(origins) == 1 and args and isinstance(args[0], Tensor) and origins[0].view is not None:
        before, rest = origins[0].view, args[1:]

        def view(w: Tensor) -> Tensor:
            return func(before(w), *rest, **kwargs)  # type: ignore[no-any-return]

    return Origin(uses, nonlinear, view)


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        parts = [_doubled(part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return {k: _doubled(v) for k, v in value.items()} if isinstance(value, dict) else value
