"""Sharpness-aware minimization (Foret et al. 2021, Algorithm 1) and its adaptive form (Kwon et al. 2021, eq. 8).

e = rho g / ||g||_2 over all parameters; adaptive: e = rho T^2 g / ||T g||_2 with T = |w|. The step is taken from w
with the gradient at w + e. A gradient of norm 0, infinity or NaN displaces nothing, so that no NaN is ours; the
papers' codes add 1e-12 to the norm instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatminima.errors import UsageError
from flatminima.optim.running_statistics import kept
from flatminima.optim.wrapper import Wrapper


class SAM(Wrapper):
    """SAM around any base optimizer; two backward passes a step.

    `opt.step(closure)` runs the closure twice. By hand: backward at the weights, then `with opt.perturbed():` clears
    those gradients and a second backward pass fills them, then `opt.step()`. With a scaler, unscale after the block,
    once: the direction does not depend on the scale.

    Under DistributedDataParallel the norm comes from synchronised gradients. For a displacement per rank, run the
    first backward pass under `no_sync()`.

    Args:
        base: the optimizer that steps. Its groups may set `sam_rho` and `sam_adaptive` of their own.
        rho: radius, finite and >= 0. Where it is 0 for all groups the closure runs once: exactly the base.
        adaptive: scale each coordinate by |w|.
        model: whose running statistics the second pass must leave alone. Without it they are found as layers are
            called, which a model compiled in place (`model.compile()`) hides.

    Source: Foret, Kleiner, Mobahi, Neyshabur, arXiv 2010.01412; Kwon, Kim, Park, Choi, arXiv 2102.11600.

    Examples:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> opt = SAM(torch.optim.SGD([w], lr=1.0), rho=0.5)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (w @ w) / 2
        ...     loss.backward()
        ...     return loss
        >>> _ = opt.step(closure)        # gradient at w + 0.5 w / 5 is 1.1 w
        >>> [round(v, 4) for v in w.tolist()]
        [-0.3, -0.4]
    """

    name = "sam"

    def __init__(
        self, base: Optimizer, rho: float = 0.05, adaptive: bool = False, *, model: nn.Module | None = None
    ) -> None:
        self.model = model
        self._backup: dict[Tensor, Tensor] = {}
        super().__init__(base, {"sam_rho": rho, "sam_adaptive": adaptive})

    def backward(self, closure: Callable[[], Any]) -> Any:
        """Fill the gradients with those at w + e, running the closure at w and there; returns the loss at w."""
        self._complete()
        with torch.enable_grad():
            loss = closure()
        if all(group["sam_rho"] == 0 for group in self.param_groups):
            self._entered = True
            return loss
        with self.perturbed(), torch.enable_grad():
            closure()
        return loss

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """The second pass: weights w + e, gradients cleared, running statistics kept."""
        with kept(self.model), super().perturbed():
            yield

    def _displace(self) -> None:
        with_gradient = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not with_gradient:
            raise UsageError("no gradients, along which SAM displaces: call backward() before perturbed()")
        lists: dict[torch.device, list[tuple[dict[str, Any], Tensor]]] = {}
        for group, p in with_gradient:
            if p.grad is not None and p.grad.layout != torch.strided:
                raise UsageError("got a sparse gradient; make the embedding with sparse=False")
            lists.setdefault(p.device, []).append((group, p))
        norms = {device: _norm(held) for device, held in lists.items()}
        home = next(iter(norms))
        norm = torch.linalg.vector_norm(torch.stack([n.to(home) for n in norms.values()]))
        inverse = torch.where(torch.isfinite(norm) & (norm > 0), 1.0 / norm, 0.0)
        for device, held in lists.items():
            self._move([(g, p) for g, p in held if g["sam_rho"] > 0], inverse.to(device))
        for p in self._parameters():
            p.grad = None

    def _move(self, held: list[tuple[dict[str, Any], Tensor]], inverse: Tensor) -> None:
        if not held:
            return
        weights = [p.detach() for _, p in held]
        directions = [_direction(group, p, 2) for group, p in held]
        torch._foreach_mul_(directions, inverse)
        torch._foreach_mul_(directions, [float(group["sam_rho"]) for group, _ in held])
        originals = [self._original(p) for _, p in held]
        torch._foreach_copy_(originals, weights)
        self._moved = [*self._moved, *zip(weights, originals, strict=True)]
        for w, e in zip(weights, directions, strict=True):
            w.add_(e.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0))  # an infinite gradient times 0

    def _original(self, p: Tensor) -> Tensor:
        held = self._backup.get(p)
        if held is None or held.shape != p.shape or held.device != p.device or held.dtype != p.dtype:
            held = self._backup[p] = torch.empty_like(p, requires_grad=False)
        return held

    def _check(self, group: dict[str, Any]) -> None:
        rho = group["sam_rho"]
        if not (isinstance(rho, int | float) and math.isfinite(rho) and rho >= 0):
            raise UsageError(f"got sam_rho={rho!r}; the radius is finite and >= 0")


def _direction(group: dict[str, Any], p: Tensor, power: int) -> Tensor:
    """g, or |w|^power g if adaptive; at least float32, and a tensor of its own."""
    assert p.grad is not None
    g = p.grad.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
    return g.mul_(p.detach().abs().to(g.dtype).pow_(power)) if group["sam_adaptive"] else g


def _norm(held: list[tuple[dict[str, Any], Tensor]]) -> Tensor:
    """Joint 2-norm of g, or of |w| g, on one device; summed in float32 at least."""
    scaled = [_direction(g, p, 1) if g["sam_adaptive"] else p.grad.detach() for g, p in held if p.grad is not None]
    double = any(t.dtype == torch.float64 for t in scaled)
    parts = torch._foreach_norm(scaled, 2, dtype=torch.float64 if double else torch.float32)
    found: Tensor = torch.linalg.vector_norm(torch.stack(list(parts)))
    return found
