"""PertOPT's memory: for each parameter h, the previous weights, and a buffer that holds |h_t - h_{t-1}|, then sigma.

Between two steps the buffer holds the drift of h and `previous` holds w_{t-1}, from which sigma_t is made when the
noise is drawn, with the epoch of that moment; afterwards they hold sigma_t and w_t, the backup. So three tensors do for
seven.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from flatminima.optim.blocks import Block, blocks, limit_for
from flatminima.optim.kernels import kernel


@dataclass
class Part:
    """Parameters of one group, device, dtype and kind of h, with their lists side by side."""

    number: int  # of the group
    group: dict[str, Any]
    device: torch.device
    shared: bool
    weights: list[Tensor]
    previous: list[Tensor]
    h: list[Tensor]
    drift: list[Tensor]
    blocks: list[Block]


class Curvature:
    """The tensors of all parameters that have had a gradient."""

    def __init__(self, base: Optimizer, backend: str | None) -> None:
        self.base = base
        self.backend = backend
        self.live: dict[Tensor, dict[str, Tensor]] = {}
        self.distance: Tensor | None = None  # ||w_t - w_{t-1}||^2, () float64
        self._plans: dict[tuple[Any, ...], list[Block]] = {}

    def call(self, name: str, *arguments: Any) -> Any:
        """A kernel, compiled if asked for."""
        return kernel(name, self.backend)(*arguments)

    def pull(self, like: Tensor) -> Tensor:
        """1 / ||w_t - w_{t-1}||, or 0 where nothing moved: then nothing tells how fast curvature changes."""
        if self.distance is None:
            return torch.zeros((), dtype=like.dtype, device=like.device)
        norm = self.distance.sqrt()
        found = torch.where(torch.isfinite(norm) & (norm > 0), 1.0 / norm, 0.0)
        return found.to(like)

    def parts(self, groups: list[dict[str, Any]]) -> Iterator[Part]:
        """Everything that noise is added to, in the order of the groups."""
        return (part for part in self._all(groups) if _noisy(part.group))

    def _all(self, groups: list[dict[str, Any]]) -> Iterator[Part]:
        for number, group in enumerate(groups):
            if group["perturb"]:
                held = [p for p in group["params"] if p in self.live and p.requires_grad]
                yield from self._parts(number, group, held)

    def _parts(self, number: int, group: dict[str, Any], parameters: list[Tensor]) -> Iterator[Part]:
        kinds: dict[tuple[torch.device, torch.dtype, bool], list[Tensor]] = {}
        for p in parameters:
            kinds.setdefault((p.device, p.dtype, "h" not in self.live[p]), []).append(p)
        for (device, _, shared), held in kinds.items():
            limit = limit_for(device, self.backend is not None)
            key = (limit, *((tuple(p.shape), p.stride()) for p in held))
            if key not in self._plans:
                self._plans[key] = blocks(held, limit)
            moments = [self._moment(p) if shared else self.live[p]["h"] for p in held]
            previous, drift = ([self.live[p][name] for p in held] for name in ("previous", "drift"))
            yield Part(number, group, device, shared, held, previous, moments, drift, self._plans[key])

    def before(self, groups: list[dict[str, Any]]) -> None:
        """Ahead of the base's step: keep w_t, and update h of our own from the gradient."""
        for group in groups:
            for p in group["params"]:
                if p.grad is not None and p not in self.live and group["perturb"] and p.requires_grad:
                    self.live[p] = self._fresh(group, p)
        for part in self._all(groups):
            if not _noisy(part.group):  # the others' backup is w_t already
                torch._foreach_copy_(part.previous, [p.detach() for p in part.weights])
        self._follow(groups, shared=False)

    def after(self, groups: list[dict[str, Any]]) -> None:
        """After it: the drift of Adam's own moment, and how far the weights went."""
        self._follow(groups, shared=True)
        squares: list[Tensor] = []
        for part in self._all(groups):
            for block in part.blocks:
                w, previous = block.gather(part.weights), block.gather(part.previous)
                squares.append(self.call("squared_distance", w, previous, part.drift[0].dtype))
        home = squares[0].device if squares else torch.device("cpu")
        self.distance = torch.stack([x.double().to(home) for x in squares]).sum() if squares else None

    def tensors(self) -> dict[Tensor, dict[str, Tensor]]:
        """For a checkpoint."""
        return dict(self.live)

    def load(self, tensors: dict[Tensor, dict[str, Tensor]], distance: Tensor | None) -> None:
        """From a checkpoint; copies, in the dtypes they have there."""
        self.live = {
            p: {name: value.detach().to(p.device, copy=True) for name, value in held.items()}
            for p, held in tensors.items()
        }
        self.distance = None if distance is None else distance.clone()

    def _follow(self, groups: list[dict[str, Any]], shared: bool) -> None:
        for number, group in enumerate(groups):
            held = [p for p in group["params"] if group["perturb"] and p in self.live and p.requires_grad]
            for p in held:
                if p.grad is None:  # not used in this step: h stays, and does not drift
                    self.live[p]["drift"].zero_()
            beta1, beta2 = float(group["pert_beta1"]), float(group["pert_beta2"])
            for part in self._parts(number, group, [p for p in held if p.grad is not None]):
                if part.shared != shared:
                    continue
                gradients = [p.grad for p in part.weights if p.grad is not None]
                for block in part.blocks:
                    g, h, drift = (block.gather(t) for t in (gradients, part.h, part.drift))
                    self.call("follow_shared" if shared else "follow", g, h, drift, beta1, beta2)
                    block.scatter(drift, part.drift)
                    if not shared:
                        block.scatter(h, part.h)

    def _moment(self, p: Tensor) -> Tensor:
        held = self.base.state[p].get("exp_avg_sq") if p in self.base.state else None
        return held if isinstance(held, Tensor) else torch.zeros_like(self.live[p]["drift"])

    def _fresh(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        """At a parameter's own t = 0."""
        dtype = torch.promote_types(p.dtype, torch.float32)  # g^2 and h underflow in half precision
        drift = torch.zeros(p.shape, dtype=dtype, device=p.device)
        held = {"previous": p.detach().clone(), "drift": drift}
        if not (dtype == p.dtype and _has_our_moment(self.base, group)):
            held["h"] = torch.zeros_like(drift)
        return held


def _noisy(group: dict[str, Any]) -> bool:
    return bool(group["pert_gamma"] != 0 or group["pert_eps"] != 0)


def _has_our_moment(base: Optimizer, group: dict[str, Any]) -> bool:
    """Whether the base's second moment is h: no L2 penalty in the gradient, the same decay."""
    if type(base) not in (Adam, AdamW):
        return False
    decoupled = type(base) is AdamW or bool(group.get("decoupled_weight_decay", False))
    same = float(group["betas"][1]) == float(group["pert_beta1"]) > 0
    return same and (decoupled or group["weight_decay"] == 0)
