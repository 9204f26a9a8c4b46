"""Torch's calls in another algebra, as a mode: weights become |w|^p and every path through the network is added up.

An activation is the sum over paths from the inputs and from a constant 1. What each operation does to it is a rule of
`path_linear`, `path_pooling`, `path_activations` or `path_shapes`; an operation without a rule (sigmoid, attention,
LayerNorm, ...) is `Undefined`, named, wherever it is in the code. Tensors that are no activations are computed as
the network computes them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flatminima.errors import Undefined
from flatminima.statistics.network_graph import LinearLayer, Node
from flatminima.statistics.path_constants import Constants, Origin, words

PathRule = Callable[["PathAlgebra", str, Any, tuple[Any, ...], dict[str, Any]], Any]

_INSPECT = words(
    "size dim numel shape stride is_floating_point is_complex __len__ ndimension is_contiguous element_size get_device "
    "nelement requires_grad_ has_torch_function is_cuda dtype device layout requires_grad is_leaf names ndim itemsize "
    "nbytes is_sparse is_nested is_quantized is_meta storage_offset data_ptr retain_grad is_inference "
    "is_mkldnn is_neg is_conj"
)
_SHAPED_LIKE = words("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_tensor")
_VIEWS = frozenset(["T", "mT", "H", "mH", "data", "real"])
_IN_PLACE = words("relu leaky_relu hardtanh relu6 threshold rrelu dropout dropout1d dropout2d dropout3d alpha_dropout")
_CASTS = words("to type float double half bfloat16 type_as cuda cpu")


@dataclass
class Linear:
    """A linear map's result before its bias, so that a BatchNorm or a factor can still be folded in."""

    without_bias: Tensor
    bias: Tensor | None  # of each channel, the values themselves
    layer: int
    channel: int | None  # dimension of the outputs; None: more than one
    source: int


@dataclass
class _Activation:
    value: Tensor  # held, so that its id stays its own
    node: int
    linear: Linear | None = field(default=None)


class PathAlgebra(TorchFunctionMode):
    """The mode in which the network's forward pass adds up paths.

    Args:
        p: power of the weights.
        names: of the parameters, by id.
        rules: what an operation does, by its name.
    """

    def __init__(self, p: float, names: dict[int, str], rules: dict[str, PathRule]) -> None:
        super().__init__()
        self.p, self.rules = p, rules
        self.constants = Constants(names)
        self.layers: list[LinearLayer] = []
        self.factors: list[tuple[str, float]] = []
        self.graph: list[Node] = []
        self.uses: Counter[str] = Counter()
        self.nonlinear: dict[str, str] = {}
        self.folded, self.max_pooled = 0, False
        self._known: dict[int, _Activation] = {}

    # -- activations -------------------------------------------------------------------------------------------------

    def know(self, value: Any, node: int | Node, linear: Linear | None = None) -> Any:
        """Remember a result as an activation, that is, a sum over paths; a `Node` is first added to the graph."""
        if isinstance(node, Node):
            self.graph.append(node)
            node = len(self.graph) - 1
        if isinstance(value, Tensor):
            self._known[id(value)] = _Activation(value, node, linear)
        elif isinstance(value, tuple | list):
            for part in value:
                self.know(part, node)
        return value

    def is_known(self, value: Any) -> bool:
        """Whether it is an activation."""
        return isinstance(value, Tensor) and id(value) in self._known

    def node(self, value: Tensor) -> int:
        """The step that made an activation."""
        return self._known[id(value)].node

    def linear(self, value: Tensor) -> Linear | None:
        """The linear map that made an activation, into which something can still be folded; asked once."""
        known = self._known[id(value)]
        found, known.linear = known.linear, None
        return found

    def use(self, value: Any) -> Origin:
        """Count the parameters that a constant is made from as used by the network."""
        origin = self.constants.of(value)
        self.uses.update(origin.uses)
        self.nonlinear |= origin.nonlinear
        return origin

    def power(self, value: Tensor | float) -> Tensor:
        """|w|^p in float64."""
        t = value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
        return t.detach().double().abs().pow(self.p)

    def stretched(self, func: Any, subject: Tensor, args: tuple[Any, ...] = (), kwargs: Any = None) -> Node:
        """A linear operation without weights: its matrix A >= 0 has ||A||_2^2 <= ||A||_1 ||A||_inf."""
        if self.p != 1:  # the graph of the first run is the one that is read
            return Node("same", (self.node(subject),))
        with torch.enable_grad():
            ones = torch.ones_like(subject).requires_grad_()
            out = func(ones.clone(), *args, **(kwargs or {}))
            parts = out if isinstance(out, tuple | list) else (out,)
            (columns,) = torch.autograd.grad([part.sum() for part in parts], ones)
        rows = max((float(part.max()) for part in parts if part.numel()), default=0.0)
        return Node("same", (self.node(subject),), None, math.sqrt(rows * float(columns.max())), rows)

    def end(self, output: Tensor) -> None:
        """Let the graph end with the output."""
        if not self.is_known(output):
            raise Undefined("the network's output is not made from its input by operations that are seen")
        self.know(output, Node("same", (self.node(output),)))

    # -- operations --------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if not any(self.is_known(t) for t in within((args, kwargs))):
            return self.constants.run(name, func, args, kwargs)
        if name in ("__get__", "__set__"):
            name = getattr(getattr(func, "__self__", None), "__name__", name)
            if name not in _VIEWS or func.__name__ == "__set__":
                if name == "data" and func.__name__ == "__set__":
                    raise Undefined("an activation is put in place of another tensor's data")
                return func(*args, **kwargs)
        if name in _INSPECT:
            return func(*args, **kwargs)
        if name in _SHAPED_LIKE:
            return self.constants.note(func(*args, **kwargs))
        if name in _CASTS:
            return self._cast(name, args, kwargs)
        if kwargs.get("out") is not None:
            raise Undefined(f"{name!r} that writes into a tensor with out= is not read")
        if name.endswith("_") and not name.endswith("__"):
            plain = name.removesuffix("_")
            return self._in_place(plain, getattr(torch.Tensor, plain, func), args, kwargs)
        if kwargs.get("inplace") or (name in _IN_PLACE and args[-1] is True):
            return self._in_place(name, func, args, kwargs)
        return self._rule(name, func, args, kwargs)

    def _rule(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule = self.rules.get(name)
        if rule is None:
            raise Undefined(
                f"{name!r} is not an operation of a ReLU network (piecewise linear, no normalisation by the input)"
            )
        return rule(self, name, func, args, kwargs)

    def _cast(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | str:
        """Path sums stay in float64 whatever the network casts them to."""
        types = [t for t in (*args[1:], *kwargs.values()) if isinstance(t, torch.dtype)]
        if name == "type" and len(args) + len(kwargs) == 1:
            return "torch.DoubleTensor"
        if not self.is_known(args[0]) or any(not t.is_floating_point for t in types):
            raise Undefined(f"{name!r} of an activation to integers is not an operation of a ReLU network")
        subject: Tensor = args[0]
        return subject

    def _in_place(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Write the result where the network does, and let whatever shares that storage follow."""
        subject = args[0] if args else kwargs["input"]
        out = self._rule(name, func, args, kwargs)
        if out is subject:
            return out
        made = self._known[id(out)]
        self.write(subject, made.node, lambda: subject.copy_(out))
        return self.know(subject, made.node, made.linear)

    def write(self, target: Tensor, node: int, assign: Callable[[], object]) -> None:
        """Assign to a tensor that may share its storage with other activations; they change with it."""
        if not self.is_known(target):
            self._claim(target)
        storage = target.untyped_storage().data_ptr()
        sharing = [a for a in self._known.values() if a.value.untyped_storage().data_ptr() == storage]
        assign()
        for activation in sharing:  # what was written over, and the rest
            self.know(activation.value, Node("cat", (activation.node, node)))

    def _claim(self, constant: Tensor) -> None:
        """Make a constant of the network's own making an activation, to be written to."""
        if not self.constants.made(constant) or self.constants.of(constant).uses:
            raise Undefined("an activation is written into a parameter or buffer")
        sharing = self.constants.sharing(constant)
        if len(sharing) == 1:
            constant.data = self.power(constant)
        elif any(not torch.equal(other, self.power(other)) or other.dtype != torch.float64 for other in sharing):
            raise Undefined("an activation is written into a view of a tensor that is not made of float64 zeros")
        for other in sharing:
            self.know(other, Node("add", ()))


def within(value: Any) -> Iterable[Any]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from within(part)
    elif isinstance(value, dict):
        yield from within(tuple(value.values()))
    else:
        yield value
