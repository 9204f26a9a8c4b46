"""LookSAM's reuse of SAM's gradient between two ascents (Liu et al. 2022, Algorithm 1).

g_v = g_s - (g . g_s / ||g||^2) g is the part of SAM's gradient that the plain one lacks; it changes slowly. In the
steps between, the gradient is g + alpha (||g|| / ||g_v||) g_v. Sizes of g do not matter to g_v, nor the size of g_v
itself, so scalers and clipping change nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flatminima.optim.ascent import product
from flatminima.optim.shards import gradient, is_sharded, like, local


class Reuse:
    """The direction g_v of each parameter."""

    def __init__(self) -> None:
        self.directions: dict[Tensor, Tensor] = {}
        self._first: dict[Tensor, Tensor] = {}  # g of the step's first pass, local
        self._square: float | Tensor | None = None  # ||g_v||^2

    def remember(self, gradients: list[tuple[Tensor, Tensor]]) -> None:
        """(parameter, its local g at the weights), of which the caller lets go."""
        self._first = dict(gradients)

    def learn(self, parameters: list[Tensor]) -> None:
        """g_v, from the gradients that lie in `.grad` now; nothing if there was no first pass."""
        pairs = [(p, self._first[p], gradient(p)) for p in parameters if p.grad is not None and p in self._first]
        self._first, self._square = {}, None
        if not pairs:
            return
        share = _ratio(product(pairs), product([(p, g, g) for p, g, _ in pairs]))
        for p, g, s in pairs:
            held = self._of(p)
            along = g.to(held.dtype) * (share if isinstance(share, float) else share.to(g.device, held.dtype))
            torch.sub(s.to(held.dtype), along, out=local(held))

    def add(self, parameters: list[Tensor], alpha: float) -> None:
        """g + alpha (||g|| / ||g_v||) g_v, in place."""
        pairs = [
            (p, gradient(p), local(self._of(p))) for p in parameters if p.grad is not None and p in self.directions
        ]
        if not pairs:
            return
        if self._square is None or len(pairs) != len(self.directions):  # else it is that of the last step
            self._square = product([(p, v, v) for p, _, v in pairs])
        ratio = _ratio(product([(p, g, g) for p, g, _ in pairs]), self._square)
        factor = alpha * ratio**0.5
        if isinstance(factor, float) and all(v.dtype == g.dtype for _, g, v in pairs):
            torch._foreach_add_([g for _, g, _ in pairs], [v for *_, v in pairs], alpha=factor)
            return
        for _, g, v in pairs:
            g.add_(v * (factor if isinstance(factor, float) else factor.to(g.device, v.dtype)))

    def blank(self, parameters: list[Tensor]) -> None:
        """Zeros, for a checkpoint to be read into."""
        self.directions = {p: self._zeros(p) for p in parameters if p.requires_grad}

    def tensors(self) -> dict[Tensor, dict[str, Tensor]]:
        """Tensors for a checkpoint."""
        return {p: {"direction": v} for p, v in self.directions.items()}

    def load(self, tensors: dict[Tensor, dict[str, Tensor]]) -> None:
        """Load from a checkpoint; copies."""
        self._square = None
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


def _ratio(a: Any, b: Any) -> Any:
    """a / b, or 0 where that is no number."""
    if isinstance(a, float) and isinstance(b, float):
        return a / b if 0 < b < math.inf and math.isfinite(a) else 0.0
    found = torch.as_tensor(a) / b
    return torch.where(torch.isfinite(found), found, 0.0)
