"""The tape: one forward pass that remembers each layer's input, one backward pass that hands out its gradients.

All parameters are frozen meanwhile, so no weight gradient is ever formed; a layer's input is dropped with its graph.
Peak memory is the activations and one layer's per-sample gradients. Weights used more than once (tied, shared) are
summed over their uses before anything quadratic is made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.core.layer_grams import convolution_grams, inner_products, linear_grams, sum_by_name, sum_of
from flatminima.core.layer_rules import (
    Rule,
    convolution,
    embedding,
    embedding_rows,
    linear,
    rule_for,
    summed_convolution,
    summed_embedding,
    vmapped,
    weight_rows,
)
from flatminima.core.parameters import Parameters
from flatminima.errors import Undefined

COPIES = 2  # the most that a tape copies
_ROW_BYTES = 64 << 20  # of per-sample gradients of a block of weight rows
_HALF = (torch.bfloat16, torch.float16)


class NoLayerRule(Undefined):
    """A model the tape cannot follow (inputs written in place, batch not first, weights used behind a layer's back)."""


@dataclass(eq=False)
class Unit:
    """A layer that owns trainable parameters."""

    name: str
    module: nn.Module
    rule: Rule | None
    names: dict[str, str]  # name within the layer -> name in the model


Use = tuple[Unit, Any, Tensor]  # a layer, its input, the gradient of its output


@dataclass(eq=False)
class LayerGradient:
    """The per-sample gradients g_i of one layer's parameters, of one batch; formed only as far as needed.

    Several uses (tied embedding and head, a layer called twice) are summed before anything quadratic is made of them.
    """

    name: str
    uses: list[Use] = field(default_factory=list)
    summed: dict[str, Tensor] = field(default_factory=dict)  # filled where they had to be formed

    def per_sample(self) -> dict[str, Tensor]:
        """Gradients by parameter name, (batch, *shape)."""
        if not self.summed:
            self.summed = _sum_forms(self.uses)
        return self.summed

    def gram(self, groups: int = 1) -> Tensor:
        """Inner products <g_i, g_j> within each of `groups` equal runs of the batch, (groups, n, n) float64."""
        return sum_of(self.grams(groups).values())

    def grams(self, groups: int = 1) -> dict[str, Tensor]:
        """`gram` of each parameter's part of the gradients, by name; made on the way to their sum."""
        if not self.summed and len(self.uses) == 1:
            unit, a, e = self.uses[0]
            if unit.rule is linear:
                found = linear_grams(unit.names, a, e, groups)
                if found is not None:
                    return found
            if unit.rule is convolution:
                return convolution_grams(unit.module, unit.names, a, e, groups)
            if unit.rule is embedding:
                return {unit.names["weight"]: inner_products(embedding_rows(unit.module, a, e), groups)}  # type: ignore[arg-type]
        if not self.summed and _rowwise(self.uses):
            return sum_by_name((name, inner_products(rows.flatten(1), groups)) for name, rows in _row_blocks(self.uses))
        return {name: inner_products(g, groups) for name, g in self.per_sample().items()}

    def along(self, vector: Mapping[str, Tensor]) -> Tensor:
        """Inner products <g_i, v> of the batch, (batch,) float64, for v by parameter name in the model."""
        if not self.summed and len(self.uses) == 1:
            unit, a, e = self.uses[0]
            if unit.rule in (linear, convolution):
                return _along(unit, a, e, vector)
        if not self.summed and _rowwise(self.uses):
            total: Any = 0.0
            done: dict[str, int] = {}
            for name, rows in _row_blocks(self.uses):
                start = done.get(name, 0)
                done[name] = start + rows.shape[1]
                total = total + _inner(rows, vector[name][start : done[name]])
            return total  # type: ignore[no-any-return]
        return sum_of(_inner(g, vector[name]) for name, g in self.per_sample().items())

    def weighted_sum(self, rows: Tensor) -> dict[str, Tensor]:
        """sum_i rows_i g_i by parameter name in the model, for rows (batch,)."""
        if self.summed:
            return {name: _combined(rows, g) for name, g in self.summed.items()}
        total: dict[str, Tensor] = {}
        for unit, a, e in self.uses:
            for name, value in _weighted(unit, a, e, rows).items():
                total[name] = total[name] + value if name in total else value
        return total

    def factors(self) -> Use | None:
        """Of one use of a linear layer on vectors: layer, input a_i and output gradient e_i, g_i = e_i a_i^T."""
        if self.summed or len(self.uses) != 1 or self.uses[0][0].rule is not linear or self.uses[0][1].dim() != 2:
            return None
        return self.uses[0]

    def squares(self, weights: Tensor) -> dict[str, Tensor]:
        """sum_i weights_i g_i^2 by parameter name, shaped like the parameter, float64."""
        top = weights.max().clamp_min(torch.finfo(torch.float64).tiny)  # weights may all be far below float32's range
        relative = weights / top

        def weighted(g: Tensor) -> Tensor:
            squares: Tensor = torch.tensordot(relative.to(g.dtype), g.square(), 1)
            return squares.double() * top

        factors = self.factors()
        if factors is not None:
            unit, a, e = factors
            squares = e.square() * relative.to(e.dtype).unsqueeze(1)
            return {k: v * top for k, v in outer_squares(unit, a, squares).items()}
        if not self.summed and _rowwise(self.uses):
            parts: dict[str, list[Tensor]] = {}
            for name, rows in _row_blocks(self.uses):
                parts.setdefault(name, []).append(weighted(rows))
            return {name: torch.cat(found) for name, found in parts.items()}
        return {k: weighted(g) for k, g in self.per_sample().items()}


def outer_squares(unit: Unit, a: Tensor, squares: Tensor) -> dict[str, Tensor]:
    """sum_i (e_i a_i^T)^2 of a linear layer's weight, and its bias's, from squares e_i^2 (batch, out); float64."""
    out = {"weight": squares.T @ a.square(), "bias": squares.sum(0)}
    return {unit.names[k]: v.double() for k, v in out.items() if k in unit.names}


def _rowwise(uses: list[Use]) -> bool:
    """Whether all are linear layers or embeddings of one weight: its gradient can be formed some rows at a time."""
    if any(unit.rule not in (linear, embedding) for unit, _, _ in uses):
        return False
    return len({unit.names.get("weight") for unit, _, _ in uses}) == 1


def _row_blocks(uses: list[Use]) -> Iterator[tuple[str, Tensor]]:
    """Parameter name and gradients (batch, rows, ...) of a block of its rows: a vocabulary's do not fit at once."""
    biases: dict[str, Tensor] = {}
    for unit, _, e in uses:
        if "bias" in unit.names:
            name = unit.names["bias"]
            total = e.reshape(len(e), -1, e.shape[-1]).sum(1)
            biases[name] = biases[name] + total if name in biases else total
    yield from biases.items()
    first, _, e = uses[0]
    if "weight" not in first.names:
        return
    weight: Any = first.module.weight
    step = max(1, _ROW_BYTES // (e.element_size() * len(e) * weight.shape[1]))
    for start in range(0, len(weight), step):
        stop = min(start + step, len(weight))
        parts = (weight_rows(unit.rule, unit.module, a, e, start, stop) for unit, a, e in uses if unit.rule)
        yield first.names["weight"], sum_of(parts)


def _inner(rows: Tensor, vector: Tensor) -> Tensor:
    """(batch, *shape) with (*shape), (batch,) float64."""
    return torch.mv(rows.reshape(len(rows), -1).double(), vector.double().reshape(-1))


def _along(unit: Unit, a: Tensor, e: Tensor, vector: Mapping[str, Tensor]) -> Tensor:
    """The layer is linear in its weights, so <g_i, v> is e_i times its output at the weights v."""
    own = {name: vector[full].to(e.dtype) for name, full in unit.names.items()}
    total = torch.zeros(len(e), dtype=torch.float64, device=e.device)
    if "weight" in own:
        if unit.rule is linear:
            out = torch.nn.functional.linear(a, own["weight"])
        else:
            out = unit.module._conv_forward(a, own["weight"], None)  # type: ignore[operator]
        total += (out.flatten(1) * e.flatten(1)).double().sum(1)
    if "bias" in own:
        at = e if unit.rule is linear else e.movedim(1, -1)
        total += torch.mv(at.reshape(len(e), -1, at.shape[-1]).sum(1).double(), own["bias"].double())
    return total


def _combined(rows: Tensor, gradients: Tensor) -> Tensor:
    """sum_i rows_i g_i for gradients (batch, *shape)."""
    combined: Tensor = torch.tensordot(rows.to(gradients), gradients, 1)
    return combined


def _weighted(unit: Unit, a: Any, e: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """One use's sum_i rows_i g_i, without a gradient a sample where the layer's own backward formula gives it."""
    scaled = e * rows.to(e).view(-1, *[1] * (e.dim() - 1))
    if unit.rule is linear:
        local = {"bias": scaled.reshape(-1, scaled.shape[-1]).sum(0)}
        if "weight" in unit.names:
            local["weight"] = scaled.reshape(-1, scaled.shape[-1]).T @ a.reshape(-1, a.shape[-1])
    elif unit.rule is convolution:
        local = {"bias": scaled.flatten(2).sum((0, 2)), **summed_convolution(unit.module, a, scaled)}
    elif unit.rule is embedding:
        local = summed_embedding(unit.module, a, scaled)  # type: ignore[arg-type]
    else:
        return {name: _combined(rows, g) for name, g in _form(unit, a, e).items()}
    return {unit.names[name]: value for name, value in local.items() if name in unit.names}


def _sum_forms(uses: list[Use]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for use in uses:
        for name, g in _form(*use).items():
            total[name] = total[name] + g if name in total else g
    return total


def _form(unit: Unit, a: Any, e: Tensor | None) -> dict[str, Tensor]:
    assert e is not None
    if unit.rule is None:
        local = vmapped(unit.module, list(unit.names), a[0], a[1], e)
    else:
        local = unit.rule(unit.module, a, e)
    return {unit.names[k]: g.float() if g.dtype in _HALF else g for k, g in local.items() if k in unit.names}


def units_of(model: nn.Module, parameters: Parameters) -> list[Unit]:
    """The layers that own trainable parameters; one without a rule takes its whole subtree."""
    wanted = {id(p): name for name, p in parameters}
    units: list[Unit] = []
    seen: set[int] = set()

    def walk(module: nn.Module, prefix: str) -> None:
        if id(module) in seen:  # used in two places: one unit, whose hook hears every call
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
        watch: told when a layer's forward begins and ends (``enter(unit)``, ``leave()``).
    """

    def __init__(self, units: list[Unit], size: int, copies: int = 0, watch: Any = None) -> None:
        self.units, self.size = units, size
        self.copies, self.watch = copies, watch
        self.roots: list[Tensor] = []  # outputs of layers that no other layer stands before
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
        pending.uses.append((unit, source, e))
        if pending.summed or (
            uses > 1 and not _rowwise(pending.uses)
        ):  # summed as they come, so that inputs need not be kept
            gradients = [pending.summed, _sum_forms(pending.uses)]
            pending.summed = {
                n: sum_of(g[n] for g in gradients if n in g) for n in dict.fromkeys([k for g in gradients for k in g])
            }
            pending.uses.clear()
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
