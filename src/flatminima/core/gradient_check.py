"""Whether gradients layer by layer are those of the network: checked on every sweep, parameter by parameter.

The tape records a layer's input and the gradient of its output; what reaches a weight behind its layer's back (a
functional call, a tied branch, rows in another order) it does not see. Three checks find that:

- a `Watch` sees every torch function that takes a trainable parameter outside of the layer that owns it, and in the
  graph of the outputs every other operation that does (a custom autograd function, whose gradient may be zero here);
- on some batches of each sweep (the first, second, fourth, ...) and on every batch that takes a route not seen
  before, ``sum_i r_i g_i`` from the layers is compared with an ordinary backward pass, relative to the gradient of
  each parameter; the ``r_i`` are signed powers of two, so that seeds scale without rounding and rows that changed
  places show;
- a parameter that no layer reported must have the gradient zero.

Where one fails, the network is followed with copied inputs, then by one backward pass a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flatminima.core.layer_gradient import LayerGradient, Unit
from flatminima.core.layers import COPIES, NoLayerRule
from flatminima.core.output_graph import nodes_of
from flatminima.errors import Absent, FlatMinimaError

_RELATIVE = {torch.float64: 1e-8, torch.float32: 5e-3}  # of a parameter's gradient, summed in another order
_RELATIVE_HALF = 5e-2
_FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6}  # of the whole gradient: a sum that cancels to rounding noise
_FLOOR_HALF = 5e-3
_BLOCK = 1 << 20  # entries at a time
_POWERS = 8  # different sizes of r
_LONGEST_INDEX = 1 << 16  # entries of an index that the route remembers
_HARMLESS = {"detach", "data", "grad", "zeros_like", "ones_like", "empty_like", "rand_like", "randn_like", "full_like"}
_HARMLESS |= {"new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}


class LayersDisagree(Exception):
    """The tape's gradients are not those of autograd, for the reason in its text; the sweep begins anew."""


class Following:
    """The way a network's per-sample gradients are made, and what of it has been checked.

    Attributes:
        level: 0 to `COPIES`: layer by layer, with so much copied; above: one backward pass a sample.
        reason: why not level 0, for the reader of a table.
        generation: counts changes of level after values had been made, which are then made anew.
    """

    def __init__(self) -> None:
        self.level = 0
        self.reason = ""
        self.generation = 0
        self.tried = False  # whether a first small batch has chosen the level
        self._batches = 0
        self._routes: set[int] = set()
        self._asked: int | None = None
        self._made = False

    @property
    def by_layers(self) -> bool:
        return self.level <= COPIES

    def begin(self) -> None:
        """A sweep begins: its first batch is to be checked, whatever others have shown."""
        self._batches = 0
        self._routes.clear()
        self._asked = None

    def skip(self) -> None:
        """The next batch is not checked, as most are not."""
        self._batches = 2

    def due(self) -> bool:
        """Whether the next batch is one of those that every sweep checks; counts it."""
        self._batches += 1
        return self._batches & (self._batches - 1) == 0

    def unseen(self, route: int) -> bool:
        """Whether no batch of this sweep has taken the route."""
        self._asked = route
        return route not in self._routes

    def passed(self, route: int) -> None:
        """A batch with this route was checked, or looks like one that was."""
        self._routes.add(route)
        if self._asked is not None:  # where weights ask for gradients, the graph of the same batch may have other nodes
            self._routes.add(self._asked)
        self._made = True

    def degrade(self, reason: str) -> None:
        """The next level: more copies, then one backward pass a sample."""
        self.level += 1
        self.reason = reason
        if self._made:
            self.generation += 1
            self._made = False


class Watch(TorchFunctionMode):
    """Sees parameters that are used outside of their layers, and the route that a batch takes through the network.

    Attributes:
        behind: name of a parameter -> the function that took it outside of its layer.
    """

    def __init__(self, units: Iterable[Unit], size: int) -> None:
        super().__init__()
        self.size = size
        self.behind: dict[str, str] = {}
        self._owned: dict[int, str] = {}
        for unit in units:
            for local, name in unit.names.items():
                owner: Any = unit.module
                for part in local.split("."):
                    owner = getattr(owner, part)
                self._owned[id(owner)] = name
        self._within: list[frozenset[str]] = []
        self._trace: list[Any] = []
        self._first = 0
        self._begun: list[int] = []
        self._spans: list[tuple[int, int, frozenset[str]]] = []  # numbers of the graph's nodes that a layer made
        self._last: Tensor | None = None

    @property
    def route(self) -> int:
        """Hash of the functions called, in order, of the rows that were picked and of how many nodes the graph got."""
        return hash(tuple(self._trace))

    def enter(self, unit: Unit) -> None:
        """A layer's forward begins."""
        self._trace.append(unit.name)
        self._within.append(frozenset(unit.names.values()))
        self._begun.append(_next_node())

    def leave(self) -> None:
        """A layer's forward is over."""
        if self._within:
            self._spans.append((self._begun.pop(), _next_node(), self._within.pop()))

    def __enter__(self) -> Self:
        self._first = _next_node()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        output, self._last = self._last, None  # let go of: its graph knows the tape, and the tape knows this
        layers = _outermost((a, b) for a, b, _ in self._spans)
        self._trace.append(_next_node() - self._first - sum(b - a for a, b in layers))
        if output is not None and not any(error):
            self._look_behind(output)

    def _look_behind(self, output: Tensor) -> None:
        """Operations in the graph that take a parameter, made outside of its layers."""
        for node in nodes_of(output):
            for following, _ in node.next_functions:
                name = self._owned.get(id(getattr(following, "variable", None)))
                if name is None or name in self.behind:
                    continue
                number = node._sequence_nr()
                if not any(a <= number < b and name in names for a, b, names in self._spans):
                    self.behind[name] = node.name().removesuffix("Backward")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if args and isinstance(args[0], Tensor):
            self._last = args[0]  # in the end the network's output, whose samples are counted
        if name == "__get__" or not self._is_tensor(out):
            return out
        if not self._within:
            self._trace.append(name)
        if torch.is_grad_enabled() and name not in _HARMLESS:
            for value in _flat([*args, *kwargs.values()]):
                owned = self._owned.get(id(value))
                if owned is not None and not any(owned in names for names in self._within):
                    self.behind.setdefault(owned, name)
                elif not self._within:
                    self._remember(value)
        return out

    def _remember(self, value: Tensor) -> None:
        """Rows that an index or mask picks are part of the route."""
        if value.is_floating_point() or value.is_complex() or value.dim() != 1 or value.numel() > _LONGEST_INDEX:
            return
        if value.numel() == self.size and not value.is_meta:
            self._trace.append(value.detach().cpu().numpy().tobytes())

    @staticmethod
    def _is_tensor(out: Any) -> bool:
        return isinstance(out, Tensor) or (isinstance(out, tuple | list) and any(isinstance(x, Tensor) for x in out))


def _next_node() -> int:
    """The number that the next node of a graph gets."""
    return int(torch._C._autograd._get_sequence_nr())


def _outermost(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans that lie in no other."""
    end = -1
    for a, b in sorted(spans, key=lambda span: (span[0], -span[1])):
        if b > end:
            yield a, b
            end = b


def watchable(model: nn.Module) -> bool:
    """Whether a function mode may stand around the forward pass: compiled parts would be compiled anew."""
    return not any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())


@contextmanager
def watching(watch: Watch | None) -> Iterator[None]:
    """The mode around a forward pass, where there is one."""
    if watch is None:
        yield
        return
    with watch:
        yield


def _flat(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _flat(value)


def row_weights(size: int, seed: int = 0) -> Tensor:
    """Signed powers of two, one a row (size,) float64; rows near each other have different ones."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(size, generator=generator)
    signs = torch.randint(0, 2, (size,), generator=generator) * 2 - 1
    return signs.double() * 2.0 ** (places.remainder(_POWERS).double() - _POWERS // 2)


class LayerComparison:
    """Listens to the layers of one backward pass, each compared at once with autograd and let go of.

    Args:
        rows (batch,): r_i. truth: gradient of ``sum_i r_i loss_i`` by parameter name, from an ordinary backward pass;
            let go of as the layers come, each once.
        precision: that the network computes in.
    """

    def __init__(self, rows: Tensor, truth: Mapping[str, Tensor], precision: torch.dtype) -> None:
        self.rows, self.truth = rows, dict(truth)
        self._relative = _RELATIVE.get(precision, _RELATIVE_HALF)
        self._norms = {name: _norm(g) for name, g in truth.items()}
        self._floor = _FLOOR.get(precision, _FLOOR_HALF) * sum(n * n for n in self._norms.values()) ** 0.5
        self._reported: set[str] = set()
        self._wrong: str | None = None

    def __call__(self, layer: LayerGradient) -> None:
        for name, value in layer.weighted_sum(self.rows).items():
            self._reported.add(name)
            truth = self.truth.pop(name, None)
            gap = math.inf if truth is None else _norm(value.to(truth.dtype).sub_(truth))
            if not gap <= self._relative * self._norms.get(name, 0.0) + self._floor:
                self._wrong = self._wrong or name

    def disagreement(self) -> str | None:
        """Name a parameter whose gradient from the layers is not autograd's; None: all agree.

        One that no layer reported must have the gradient zero.
        """
        unheard = (n for n, norm in self._norms.items() if n not in self._reported and not norm <= self._floor)
        name = self._wrong or next(unheard, None)
        return None if name is None else f"the gradient of {name!r} from its layer is not autograd's"


class RowSums:
    """Listens to the layers of one backward pass: ``sum_i r_i g_i`` by parameter name."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.sums: dict[str, Tensor] = {}

    def __call__(self, layer: LayerGradient) -> None:
        self.sums.update(layer.weighted_sum(self.rows))


def _norm(tensor: Tensor) -> float:
    """Euclidean, summed in float64 without a copy of that size."""
    return math.sqrt(sum(float(part.double().square().sum()) for part in tensor.reshape(-1).split(_BLOCK)))


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: CUDA's has a type, the CPU allocator's only its words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def following_errors() -> Iterator[None]:
    """Turn the errors of a tape into the sign that another way must be taken.

    Raises:
        LayersDisagree: in place of errors of torch, of the network, and `NoLayerRule`.
    """
    try:
        yield
    except NoLayerRule as reason:
        raise LayersDisagree(reason.reason) from None
    except FlatMinimaError:
        raise
    except Exception as error:  # whatever it is, one backward pass a sample needs none of this
        if out_of_memory(error):
            raise
        raise LayersDisagree(Absent.of(error).reason) from None
