"""SAM's displacement e = rho T^2 g / ||T g||_2 and the norm in it, over all devices, dtypes and shards.

A gradient of norm 0, infinity or NaN displaces nothing, so that no NaN is ours; the papers' codes add 1e-12 to the norm
instead. Lists of tensors go through foreach kernels: on a small network the calls are what costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatminima.optim.rounding import is_narrow, judge, of_steps
from flatminima.optim.shards import check_dense, gradient, is_sharded, local, process_groups, total

_SMALL = 1 << 18  # elements that are rather copied side by side than looked at one tensor after the other


@dataclass
class Slope:
    """Parameters of one device and dtype that have a gradient; this rank's parts, side by side."""

    parameters: list[Tensor]
    weights: list[Tensor]
    gradients: list[Tensor]
    radii: list[float]  # rho, negative where the base maximises
    scales: list[float | None]  # eta of T = |w| + eta, or None for T = 1

    def scaled(self, power: int) -> list[Tensor]:
        """T^power g, at least float32 where T is not 1; the gradients themselves where it is."""
        if all(eta is None for eta in self.scales):
            return self.gradients
        return [
            g if eta is None else _scaled(w, g, eta, power)
            for w, g, eta in zip(self.weights, self.gradients, self.scales, strict=True)
        ]

    def is_small(self) -> bool:
        """Whether calls cost more than elements."""
        return sum(map(Tensor.numel, self.weights)) <= _SMALL


def slopes(groups: list[dict[str, Any]], rho: Callable[[dict[str, Any]], float], eta: float) -> list[Slope]:
    """Every parameter with a gradient.

    Args:
        rho: group -> radius of the coming step.
        eta: of T = |w| + eta.
    """
    found: dict[tuple[Any, ...], Slope] = {}
    for group in groups:
        radius = -rho(group) if group.get("maximize", False) else rho(group)
        adaptive = group["sam_adaptive"]
        for p in group["params"]:
            g = p.grad
            if g is None:
                continue
            check_dense(g)
            whole = not is_sharded(p)
            key = (p.device, p.dtype, () if whole else process_groups(p))
            slope = found.get(key)
            if slope is None:
                slope = found[key] = Slope([], [], [], [], [])
            slope.parameters.append(p)
            slope.weights.append(p if whole else local(p))
            slope.gradients.append(g if whole else gradient(p))
            slope.radii.append(radius)
            slope.scales.append(None if not adaptive or (adaptive == "matrices" and p.dim() < 2) else eta)
    return list(found.values())


def inverse_norm(held: list[Slope]) -> float | Tensor:
    """1 / ||T g||, or 0 where that is no number; a number where it costs no wait for an accelerator."""
    norms = [(slope, _norm(slope.scaled(1))) for slope in held]
    if len(norms) == 1 and not process_groups(held[0].parameters[0]):
        norm = norms[0][1]
    else:
        norm = total([(slope.parameters[0], n.double().square()) for slope, n in norms]).sqrt()
    if norm.device.type == "cpu":
        value = float(norm)
        return 1.0 / value if 0 < value < math.inf else 0.0
    return torch.where(torch.isfinite(norm) & (norm > 0), 1.0 / norm, 0.0)


def climb(slope: Slope, inverse: float | Tensor) -> None:
    """w = w + e."""
    if isinstance(inverse, float):
        if inverse == 0.0:
            return
        directions = slope.scaled(2)
        if len(set(slope.radii)) == 1 and all(d.dtype == slope.weights[0].dtype for d in directions):
            torch._foreach_add_(slope.weights, directions, alpha=slope.radii[0] * inverse)
            return
        for w, e, radius in zip(slope.weights, directions, slope.radii, strict=True):
            w.add_(e, alpha=radius * inverse)
        return
    directions = [d.to(torch.promote_types(d.dtype, torch.float32), copy=True) for d in slope.scaled(2)]
    torch._foreach_mul_(directions, inverse.to(directions[0]))
    torch._foreach_mul_(directions, slope.radii)
    for w, e in zip(slope.weights, directions, strict=True):
        w.add_(e.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0))  # an infinite gradient times 0


def check_arrival(held: list[Slope], originals: list[Tensor], inverse: float | Tensor, *, refuse: bool) -> bool:
    """Warn, or refuse, after `climb`, where rounding takes e away in weights of few bits; returns whether it warned."""
    rest = iter(originals)
    pairs = [(slope, [next(rest) for _ in slope.weights]) for slope in held]
    narrow = [(slope, before) for slope, before in pairs if is_narrow(slope.weights[0].dtype)]
    sums = [(slope.parameters[0], of_steps(_steps(slope, before, inverse))) for slope, before in narrow]
    there, missed, wanted = (float(total([(p, s[i]) for p, s in sums])) for i in range(3))
    if not 0 < wanted < math.inf or not missed < math.inf:
        return False
    dtypes = [slope.weights[0].dtype for slope, _ in narrow]
    return judge("SAM's displacement", 1.0 - missed / wanted, there / wanted if refuse else 1.0, dtypes, "raise rho")


def _steps(slope: Slope, originals: list[Tensor], inverse: float | Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(weights, what they were, e) of each parameter."""
    parts = zip(slope.weights, originals, slope.gradients, slope.scales, slope.radii, strict=True)
    for w, original, g, eta, radius in parts:
        direction = g if eta is None else _scaled(original, g, eta, 2)
        high = torch.promote_types(w.dtype, torch.float32)
        yield w, original, direction.to(high) * (radius * inverse)


def product(pairs: list[tuple[Tensor, Tensor, Tensor]]) -> float | Tensor:
    """sum <a, b> over (parameter, its local a, its local b), on all ranks; a number where the processor has it."""
    kinds: dict[tuple[Any, ...], list[tuple[Tensor, Tensor, Tensor]]] = {}
    for p, a, b in pairs:
        kinds.setdefault((p.device, p.dtype, process_groups(p)), []).append((p, a, b))
    sums = [(held[0][0], _dot([a for _, a, _ in held], [b for _, _, b in held])) for held in kinds.values()]
    found = sums[0][1] if len(sums) == 1 and not process_groups(sums[0][0]) else total(sums)
    return float(found) if found.device.type == "cpu" else found


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """<a, b> of two lists, in float32 at least."""
    high = torch.promote_types(a[0].dtype, torch.float32)
    if sum(map(Tensor.numel, a)) <= _SMALL:
        a, b = ([torch.cat([t.reshape(-1).to(high) for t in tensors])] for tensors in (a, b))
    parts = [torch.dot(x.reshape(-1).to(high), y.reshape(-1).to(high)) for x, y in zip(a, b, strict=True)]
    return torch.stack(parts).sum() if len(parts) > 1 else parts[0]


def _scaled(w: Tensor, g: Tensor, eta: float, power: int) -> Tensor:
    high = torch.promote_types(w.dtype, torch.float32)
    return w.abs().to(high).add_(eta).pow_(power).mul_(g.to(high))


def _norm(gradients: list[Tensor]) -> Tensor:
    """Joint 2-norm, summed in float32 at least."""
    double = any(t.dtype == torch.float64 for t in gradients)
    dtype = torch.float64 if double else torch.float32
    if len(gradients) > 1 and sum(t.numel() for t in gradients) <= _SMALL:
        found: Tensor = torch.linalg.vector_norm(torch.cat([t.reshape(-1) for t in gradients]), dtype=dtype)
        return found
    parts = torch._foreach_norm(gradients, 2, dtype=dtype)
    joint: Tensor = torch.linalg.vector_norm(torch.stack(list(parts)))
    return joint
