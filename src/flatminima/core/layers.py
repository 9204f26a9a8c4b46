"""The tape: one forward pass that remembers each layer's input, one backward pass that hands out its gradients.

All parameters are frozen meanwhile, so no weight gradient is ever formed; a layer's input is dropped with its graph.
Peak memory is the activations and one layer's per-sample gradients. Weights used more than once (tied, shared) are
summed over their uses before anything quadratic is made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.core.layer_gradient import LayerGradient, Unit
from flatminima.core.layer_rules import (
    rule_for,
)
from flatminima.core.parameters import Parameters
from flatminima.errors import Undefined

COPIES = 2  # the most that a tape copies
_HALF = (torch.bfloat16, torch.float16)


class NoLayerRule(Undefined):
    """A model the tape cannot follow (inputs written in place, batch not first, weights used behind a layer's back)."""


def units_of(model: nn.Module, parameters: Parameters) -> list[Unit]:
    """The layers that own trainable parameters; one without a rule takes its whole subtree."""
    wanted = {id(p): name for name, p in parameters}
    units: list[Unit] = []
    seen: set[int] = set()

    def walk(module: nn.Module, prefix: str) -> None:
        if id(module) in seen:  # used in two places: one unit, whose hook sees every call
            return
        seen.add(id(module))
        own = any(id(p) in wanted for p in module._parameters.values() if p is not None)
        if own or hasattr(module, "parametrizations"):
            rule = rule_for(module)
            found = module.named_parameters(recurse=rule is None, remove_duplicate=False)
            names = {n: wanted[id(p)] for n, p in found if id(p) in wanted}
            if names:
                units.append(Unit(prefix or type(module).__name__, module, rule, names))
            return
        for name, child in module.named_children():
            walk(child, f"{prefix}.{name}" if prefix else name)

    walk(model, "")
    return units


class Tape:
    """Hooks on the units of a model during one forward pass; `backward` replays it for a seed.

    Args:
        units: from `units_of`.
        size: samples in the batch, the first dimension of every layer's output. Parameters are frozen, so that no graph
            to them is kept, but where their gradients are to be checked.
        copies: for models that write in place: 1 clones the outputs of first layers, 2 (`COPIES`) also layer inputs.
        watch: notified when a layer's forward begins and ends (``enter(unit)``, ``leave()``).
    """

    def __init__(self, units: list[Unit], size: int, copies: int = 0, watch: Any = None) -> None:
        self.units, self.size = units, size
        self.copies, self.watch = copies, watch
        self.roots: list[Tensor] = []  # outputs of layers before which there is no other layer
        self.calls: dict[int, int] = {}
        self._listener: Callable[[LayerGradient], None] | None = None
        self._heard: dict[int, int] = {}
        self._pending: dict[int, LayerGradient] = {}
        self._group = _groups(units)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The forward pass goes in here; hooks are gone afterwards."""
        handles = [u.module.register_forward_hook(self._hook(i), with_kwargs=True) for i, u in enumerate(self.units)]
        if self.watch is not None:
            handles += [u.module.register_forward_pre_hook(self._begin(u), prepend=True) for u in self.units]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def release(self) -> None:
        """Let go of the outputs: their hooks hold the tape, a cycle that no garbage collector sees."""
        self.roots.clear()
        self._pending.clear()

    def _begin(self, unit: Unit) -> Callable[..., None]:
        def begin(module: nn.Module, args: Any) -> None:
            self.watch.enter(unit)

        return begin

    def _hook(self, index: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            unit = self.units[index]
            if not isinstance(output, Tensor) or not output.is_floating_point():
                raise NoLayerRule(f"{unit.name} returns {type(output).__name__}")
            spread = unit.rule is not None and output.dim() > 1 and len(output) == 1 < self.size
            if not spread and (output.dim() == 0 or len(output) != self.size):
                raise NoLayerRule(f"{unit.name} returns {tuple(output.shape)} for {self.size} samples")
            if unit.rule is None:
                tensors = [x for x in [*args, *kwargs.values()] if isinstance(x, Tensor)]
                if not tensors or any(len(t) != len(output) for t in tensors if t.dim()):
                    raise NoLayerRule(f"{unit.name} has inputs without the batch in front")
            self.calls[index] = self.calls.get(index, 0) + 1
            source = _inputs(unit, args, kwargs, self.copies == COPIES)
            versions = [t._version for t in _flat(source)]
            if not output.requires_grad or not _asks([*args, *kwargs.values()]):
                if not output.requires_grad:  # parameters are frozen
                    output.requires_grad_()
                self.roots.append(output)
                if self.copies and not spread:
                    output = output.clone()  # the next layer may write into it, which a leaf forbids
            if spread:  # made once for all samples (position embeddings): one row each, as broadcasting would
                if len(source) != 1:
                    raise NoLayerRule(f"{unit.name} returns one row for {len(source)} inputs")
                source, output = (
                    source.expand(self.size, *source.shape[1:]),
                    output.expand(self.size, *output.shape[1:]),
                )
                output = output.clone() if self.copies else output

            def receive(e: Tensor) -> None:
                if self._listener is None:  # a backward pass that is not the tape's
                    return
                if [t._version for t in _flat(source)] != versions:
                    raise NoLayerRule(f"the input of {unit.name} was written in place")
                self._receive(index, source, e)

            output.register_hook(receive)
            if self.watch is not None:
                self.watch.leave()
            return output

        return hook

    def _receive(self, index: int, source: Any, e: Tensor) -> None:
        if self._listener is None:
            return
        unit, group = self.units[index], self._group[index]
        if unit.rule is not None:
            e = e.float() if e.dtype in _HALF else e
            source = source.to(e.dtype) if source.is_floating_point() else source
        members = [i for i, g in enumerate(self._group) if g == group]
        uses = sum(self.calls.get(i, 0) for i in members)
        pending = self._pending.setdefault(group, LayerGradient(unit.name))
        pending.take((unit, source, e), alone=uses <= 1)
        self._heard[group] = self._heard.get(group, 0) + 1
        if self._heard[group] == uses:
            self._listener(self._pending.pop(group))

    def backward(
        self,
        output: Tensor,
        seed: Tensor,
        listener: Callable[[LayerGradient], None] | None,
        inputs: list[Tensor] = [],  # noqa: B006 (never written)
        retain: bool = False,
    ) -> list[Tensor]:
        """Send `seed` back from `output`; each layer's gradients go to `listener`, those of `inputs` are returned."""
        self._listener, self._heard, self._pending = listener, {}, {}
        roots = [*inputs, *self.roots]
        if not roots or not output.requires_grad:
            raise NoLayerRule("no trainable layer was called")
        try:
            grads = torch.autograd.grad(output, roots, seed, retain_graph=retain, allow_unused=True)
            for rest in self._pending.values():  # a use that the output does not depend on
                assert listener is not None
                listener(rest)
        finally:
            self._listener, self._pending = None, {}
        found = zip(inputs, grads, strict=False)
        return [g if g is not None else torch.zeros_like(x) for x, g in found]


def _asks(values: Iterable[Any]) -> bool:
    """Whether a gradient is asked for by any of the nested tensors."""
    for value in values:
        if isinstance(value, Tensor) and value.requires_grad:
            return True
        if isinstance(value, tuple | list) and _asks(value):
            return True
    return False


def _inputs(unit: Unit, args: Any, kwargs: Any, copy: bool) -> Any:
    if unit.rule is not None:
        a = args[0] if args else kwargs["input"]
        return a.detach().clone() if copy else a.detach()

    def keep(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.detach().clone() if copy else x.detach()

    return tuple(keep(x) for x in args), {k: keep(x) for k, x in kwargs.items()}


def _flat(source: Any) -> list[Tensor]:
    if isinstance(source, Tensor):
        return [source]
    return [x for x in [*source[0], *source[1].values()] if isinstance(x, Tensor)]


def _groups(units: list[Unit]) -> list[int]:
    """Units that share a parameter carry the same number."""
    group = list(range(len(units)))
    owner: dict[str, int] = {}
    for i, unit in enumerate(units):
        for name in unit.names.values():
            j = owner.setdefault(name, i)
            if group[j] != group[i]:
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    return group
