"""Gram matrices of per-sample gradients, parameter by parameter, with as little of the gradients formed as possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from flatminima.core.layer_rules import convolution_rows


def linear_grams(names: Mapping[str, str], a: Tensor, e: Tensor, groups: int) -> dict[str, Tensor] | None:
    """(A A^T) * (E E^T), and E E^T of a bias; for sequences only where cheaper than forming the gradients."""
    a, e = a.reshape(len(a), -1, a.shape[-1]), e.reshape(len(e), -1, e.shape[-1])
    n, steps, width, out = len(a) // groups, a.shape[1], a.shape[2], e.shape[2]
    if steps > 1 and n * steps * steps * (width + out) > (steps + n) * width * out:
        return None
    a, e = a.reshape(groups, n * steps, width), e.reshape(groups, n * steps, out)
    inner = torch.bmm(e, e.transpose(1, 2)).double()
    found = {}
    if "weight" in names:
        found[names["weight"]] = torch.bmm(a, a.transpose(1, 2)).double() * inner
    if "bias" in names:
        found[names["bias"]] = inner
    return {name: each.view(groups, n, steps, n, steps).sum((2, 4)) for name, each in found.items()}


def convolution_grams(layer: Any, names: Mapping[str, str], a: Tensor, e: Tensor, groups: int) -> dict[str, Tensor]:
    """Gram matrices of the rows of `convolution_rows`: the bias's first, then the weight's in blocks."""
    blocks = convolution_rows(layer, a, e, names)
    found = {}
    if "bias" in names:
        found[names["bias"]] = inner_products(next(blocks), groups)
    if "weight" in names:
        found[names["weight"]] = sum_of(inner_products(rows, groups) for rows in blocks)
    return found


def sum_by_name(parts: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Sums by name."""
    total: dict[str, Tensor] = {}
    for name, part in parts:
        total[name] = total[name] + part if name in total else part
    return total


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """Sum of one tensor or more, of one shape."""
    first, *rest = parts
    for part in rest:
        first = first + part
    return first


def inner_products(rows: Tensor, groups: int) -> Tensor:
    """Inner products of rows (batch, ...) within each of `groups` equal runs, (groups, n, n) float64."""
    rows = rows.reshape(groups, len(rows) // groups, -1)
    return torch.bmm(rows, rows.transpose(1, 2)).double()
