"""A layer's per-sample gradients, from what it was given and what came back, without ever forming a weight gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    linear_rule,
    summed_convolution,
    summed_embedding,
    vmapped,
    weight_rows,
)

_ROW_BYTES = 64 << 20  # of per-sample gradients of a block of weight rows
_HALF = (torch.bfloat16, torch.float16)


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

    def take(self, use: Use, alone: bool) -> None:
        """Add a use; one that is not `alone` and has to be formed is summed now, so that inputs need not be kept."""
        self.uses.append(use)
        if self.summed or not (alone or _rowwise(self.uses)):
            gradients = [self.summed, _sum_forms(self.uses)]
            names = dict.fromkeys(name for g in gradients for name in g)
            self.summed = {n: sum_of(g[n] for g in gradients if n in g) for n in names}
            self.uses.clear()

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
            if unit.rule is linear_rule:
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
            if unit.rule in (linear_rule, convolution):
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
        """Factors of one use of a linear layer on vectors: input a_i and output gradient e_i, g_i = e_i a_i^T."""
        if self.summed or len(self.uses) != 1 or self.uses[0][0].rule is not linear_rule or self.uses[0][1].dim() != 2:
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
    if any(unit.rule not in (linear_rule, embedding) for unit, _, _ in uses):
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
        if unit.rule is linear_rule:
            out = torch.nn.functional.linear(a, own["weight"])
        else:
            out = unit.module._conv_forward(a, own["weight"], None)  # type: ignore[operator]
        total += (out.flatten(1) * e.flatten(1)).double().sum(1)
    if "bias" in own:
        at = e if unit.rule is linear_rule else e.movedim(1, -1)
        total += torch.mv(at.reshape(len(e), -1, at.shape[-1]).sum(1).double(), own["bias"].double())
    return total


def _combined(rows: Tensor, gradients: Tensor) -> Tensor:
    """sum_i rows_i g_i for gradients (batch, *shape)."""
    combined: Tensor = torch.tensordot(rows.to(gradients), gradients, 1)
    return combined


def _weighted(unit: Unit, a: Any, e: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """One use's sum_i rows_i g_i, without a gradient a sample where the layer's own backward formula gives it."""
    scaled = e * rows.to(e).view(-1, *[1] * (e.dim() - 1))
    if unit.rule is linear_rule:
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
