"""LookSAM's reuse of SAM's gradient between two ascents (Liu et al. 2022, Algorithm 1).

g_v = g_s - (g . g_s / ||g||^2) g is the part of SAM's gradient that the plain one lacks; it changes slowly. In the steps
between, the gradient is g + alpha (||g|| / ||g_v||) g_v. Sizes of g do not matter to g_v, nor the size of g_v itself, so
scalers and clipping change nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatminima.optim.ascent import products
from flatminima.optim.shards import gradient, is_sharded, like, local


class Reuse:
    """The direction g_v of each parameter."""

    def __init__(self) -> None:
        self.directions: dict[Tensor, Tensor] = {}
        self._first: dict[Tensor, Tensor] = {}  # g of the step's first pass, local

    def remember(self, gradients: list[tuple[Tensor, Tensor]]) -> None:
        """(parameter, its local g at the weights), of which the caller lets go."""
        self._first = dict(gradients)

    def learn(self, parameters: list[Tensor]) -> None:
        """g_v, from the gradients that lie in `.grad` now; nothing if there was no first pass."""
        pairs = [(p, self._first[p], gradient(p)) for p in parameters if p.grad is not None and p in self._first]
        self._first = {}
        if not pairs:
            return
        square = products([(p, g, g) for p, g, _ in pairs])
        share = products(pairs) / square
        share = torch.where(torch.isfinite(share), share, 0.0)
        for p, g, s in pairs:
            held = self._of(p)
            high = held.dtype
            local(held).copy_(s.to(high) - g.to(high) * share.to(g.device, high))

    def add(self, parameters: list[Tensor], alpha: float) -> None:
        """g + alpha (||g|| / ||g_v||) g_v, in place."""
        pairs = [(p, gradient(p), local(self._of(p))) for p in parameters if p.grad is not None and p in self.directions]
        if not pairs or alpha == 0:
            return
        ratio = (products([(p, g, g) for p, g, _ in pairs]) / products([(p, v, v) for p, _, v in pairs])).sqrt()
        ratio = torch.where(torch.isfinite(ratio), ratio, 0.0) * alpha
        for _, g, v in pairs:
            g.add_(v * ratio.to(g.device, v.dtype))

    def blank(self, parameters: list[Tensor]) -> None:
        """Zeros, for a checkpoint to be read into."""
        self.directions = {p: self._zeros(p) for p in parameters if p.requires_grad}

    def tensors(self) -> dict[Tensor, dict[str, Tensor]]:
        """For a checkpoint."""
        return {p: {"direction": v} for p, v in self.directions.items()}

    def load(self, tensors: dict[Tensor, dict[str, Tensor]]) -> None:
        """From a checkpoint; copies."""
        self.directions = {
            p: held["direction"].detach().clone().to(p.device) for p, held in tensors.items() if "direction" in held
        }

    def _of(self, p: Tensor) -> Tensor:
        held = self.directions.get(p)
        if held is None or held.shape != p.shape:
            held = self.directions[p] = self._zeros(p)
        dtype = torch.promote_types(p.dtype, torch.float32)
        if held.dtype != dtype or held.device != p.device or (is_sharded(held) != is_sharded(p)):
            held = self.directions[p] = like(p, held, dtype)
        return held

    def _zeros(self, p: Any) -> Tensor:
        return torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
