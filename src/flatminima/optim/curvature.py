"""PertOPT's memory: for each parameter h, the previous weights, and a buffer that holds |h_t - h_{t-1}|, then -sigma.

Between two steps the buffer holds the drift of h and `previous` holds w_{t-1}, from which sigma_t is made when the
noise is drawn, with the epoch of that moment; afterwards they hold -sigma_t and w_t, the backup. So three tensors do
for seven. A network may change its dtype, device or memory format between two steps: its state follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from flatminima.errors import UsageError
from flatminima.optim.blocks import Block, blocks, limit_for, walk
from flatminima.optim.kernels import kernel
from flatminima.optim.noise import NoiseStream
from flatminima.optim.shards import box, gradient, is_sharded, like, local, total

_NONE = {"perturb": False}  # a group that is left out


@dataclass
class _Part:
    """Parameters of one group, device, dtype and kind of h, with their lists side by side; this rank's parts."""

    number: int  # of the group
    group: dict[str, Any]
    device: torch.device
    shared: bool
    parameters: list[Tensor]
    weights: list[Tensor]
    previous: list[Tensor]
    h: list[Tensor]
    drift: list[Tensor]
    blocks: list[Block]


class CurvatureState:
    """The tensors of all parameters that have had a gradient."""

    def __init__(self, base: Optimizer, backend: str | None) -> None:
        self.base = base
        self.backend = backend
        self.live: dict[Tensor, dict[str, Tensor]] = {}
        self.distance: Tensor | None = None  # ||w_t - w_{t-1}||^2, () float64
        self.settled = False  # some sigma_t is drawn: signs tell which
        self._plans: dict[tuple[Any, ...], list[Block]] = {}

    def call(self, name: str, *arguments: Any) -> Any:
        """A kernel, compiled if asked for."""
        return kernel(name, self.backend)(*arguments)

    def pull(self, like: Tensor) -> Any:
        """1 / ||w_t - w_{t-1}||, or 0 where nothing moved: then nothing tells how fast curvature changes.

        A number where it costs no wait for an accelerator.
        """
        if self.distance is None:
            return 0.0
        if self.distance.device.type == "cpu":
            norm = math.sqrt(float(self.distance))
            return 1.0 / norm if 0 < norm < math.inf else 0.0
        norms = self.distance.sqrt()
        return torch.where(torch.isfinite(norms) & (norms > 0), 1.0 / norms, 0.0).to(like)

    def parts(self, groups: list[dict[str, Any]]) -> list[_Part]:
        """Everything that noise is added to, in the order of the groups."""
        return [part for part in self._all(groups) if _noisy(part.group)]

    def fit(self) -> None:
        """The state in the dtype, device and memory format that its weights have now."""
        for p, held in self.live.items():
            high = torch.promote_types(p.dtype, torch.float32)
            for name, t in held.items():
                dtype = p.dtype if name == "previous" else high
                if t.dtype == dtype and t.device == p.device and t.stride() == p.stride() and t.shape == p.shape:
                    continue
                if t.shape != p.shape:
                    raise UsageError(
                        f"got state of shape {tuple(t.shape)} for a parameter of shape {tuple(p.shape)}: "
                        "make a new PertOPT after changing a network's shape"
                    )
                if t.dtype != dtype or t.device != p.device or t.is_contiguous() != p.is_contiguous():
                    held[name] = like(p, t, dtype)

    def offsets(self, groups: list[dict[str, Any]]) -> dict[Tensor, int]:
        """Offset of each parameter's noise in the stream."""
        perturbed = [p for group in groups if group["perturb"] for p in group["params"]]
        return dict(zip(perturbed, accumulate((p.numel() for p in perturbed), initial=0), strict=False))

    def before(self, groups: list[dict[str, Any]]) -> None:
        """Ahead of the base's step: keep w_t, and update h of our own from the gradient."""
        self.fit()
        for group in groups:
            for p in group["params"]:
                if p.grad is not None and group["perturb"] and p.requires_grad:
                    if p not in self.live:
                        self.live[p] = self._fresh(group, p)
                    elif "h" not in self.live[p] and not self._shares(group, p):
                        self.live[p]["h"] = self._moment(p).detach().clone()  # up to now it was the same
        for part in self._all([group if not _noisy(group) else _NONE for group in groups]):
            torch._foreach_copy_(part.previous, part.weights)  # the others' backup is w_t already
        self._follow(groups, shared=False)

    def after(self, groups: list[dict[str, Any]]) -> None:
        """Note, after the base's step, the drift of Adam's own moment and how far the weights went."""
        self._follow(groups, shared=True)
        self.distance = None
        squares: list[tuple[Tensor, Tensor]] = []
        for part in self._all(groups):
            dtype, p = part.drift[0].dtype, part.parameters[0]
            if is_sharded(p) and not part.blocks:  # nothing here, but the other ranks wait for our sum
                squares.append((p, part.drift[0].new_zeros(())))
            for _, (w, previous) in walk(part.blocks, part.weights, part.previous):
                squares.append((p, self.call("squared_distance", w, previous, dtype)))
        if squares:
            self.distance = total(squares)
        self.settled = False

    def mean_h(self) -> float | None:
        """Mean of h over the coordinates here; None: there are none."""
        every = [local(held["h"] if "h" in held else self._moment(p)) for p, held in self.live.items()]
        count = sum(t.numel() for t in every)
        return float(torch.stack([t.double().sum().cpu() for t in every]).sum()) / count if count else None

    def load(self, tensors: dict[Tensor, dict[str, Tensor]], distance: Tensor | None, settled: bool) -> None:
        """Load from a checkpoint; copies, in the dtypes they have there."""
        self.live = {
            p: {name: value.detach().clone().to(p.device) for name, value in held.items()}
            for p, held in tensors.items()
        }
        self.distance = None if distance is None else distance.clone()
        self.settled = settled

    def blank(self, groups: list[dict[str, Any]]) -> None:
        """Zeros for every parameter, which a checkpoint that is about to be read fills."""
        self.live = {
            p: self._fresh(group, p)
            for group in groups
            for p in group["params"]
            if group["perturb"] and p.requires_grad and p.grad is not None
        }

    def _all(self, groups: list[dict[str, Any]]) -> list[_Part]:
        found: list[_Part] = []
        for number, group in enumerate(groups):
            if group["perturb"]:
                held = [p for p in group["params"] if p in self.live and p.requires_grad]
                found += self._parts(number, group, held)
        return found

    def _parts(self, number: int, group: dict[str, Any], parameters: list[Tensor]) -> Iterator[_Part]:
        kinds: dict[tuple[Any, ...], list[Tensor]] = {}
        for p in parameters:
            layout = (p.device_mesh, p.placements) if is_sharded(p) else None  # type: ignore[attr-defined]
            kinds.setdefault((p.device, p.dtype, "h" not in self.live[p], layout), []).append(p)
        for (device, _, shared, _), held in kinds.items():
            weights = [local(p) for p in held]
            limit = limit_for(device, self.backend is not None)
            key = (limit, *((w.shape, w.stride()) for w in weights))
            if key not in self._plans:
                self._plans[key] = blocks(weights, limit)
            moments = [local(self._moment(p) if shared else self.live[p]["h"]) for p in held]
            previous, drift = ([local(self.live[p][name]) for p in held] for name in ("previous", "drift"))
            yield _Part(number, group, device, shared, held, weights, previous, moments, drift, self._plans[key])

    def _follow(self, groups: list[dict[str, Any]], shared: bool) -> None:
        for number, group in enumerate(groups):
            held = [p for p in group["params"] if group["perturb"] and p in self.live and p.requires_grad]
            for p in held:
                if p.grad is None:  # not used in this step: h stays, and does not drift
                    local(self.live[p]["drift"]).zero_()
            beta1, beta2 = float(group["pert_beta1"]), float(group["pert_beta2"])
            with_gradient = [p for p in held if p.grad is not None and ("h" not in self.live[p]) == shared]
            for part in self._parts(number, group, with_gradient):
                gradients = [gradient(p) for p in part.parameters]
                for block, (g, h, drift) in walk(part.blocks, gradients, part.h, part.drift):
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
        drift = torch.zeros_like(p, dtype=dtype, requires_grad=False)
        held = {"previous": p.detach().clone(), "drift": drift}
        if not self._shares(group, p):
            held["h"] = torch.zeros_like(drift)
        return held

    def _shares(self, group: dict[str, Any], p: Tensor) -> bool:
        """Whether the base's second moment is h: no L2 penalty in the gradient, the same decay, float32 at least."""
        if type(self.base) not in (Adam, AdamW) or p.dtype in (torch.float16, torch.bfloat16):
            return False
        held = self.base.state[p].get("exp_avg_sq") if p in self.base.state else None
        if held is not None and (held.dtype != p.dtype or held.shape != p.shape):
            return False
        decoupled = type(self.base) is AdamW or bool(group.get("decoupled_weight_decay", False))
        same = float(group["betas"][1]) == float(group["pert_beta1"]) > 0
        return same and (decoupled or group["weight_decay"] == 0)


class Levels:
    """The noise of one step for any block of any part."""

    def __init__(self, make: Callable[[torch.device], NoiseStream], offsets: dict[Tensor, int]) -> None:
        self._make = make
        self._offsets = offsets
        self._streams: dict[torch.device, NoiseStream] = {}

    def of(self, part: _Part, block: Block) -> Tensor:
        """(size of the block,) int16."""
        stream = self._streams.get(part.device)
        if stream is None:
            stream = self._streams.setdefault(part.device, self._make(part.device))
        runs: list[tuple[int, int]] = []
        for i in block.members:
            p = part.parameters[i]
            if is_sharded(p):
                return self._of_shards(part, block, stream)
            start = self._offsets[p]
            if block.span is not None:
                runs.append((start + block.span.start, block.size))
            elif runs and sum(runs[-1]) == start:
                runs[-1] = (runs[-1][0], runs[-1][1] + p.numel())
            else:
                runs.append((start, p.numel()))
        return _join([stream.at(*run) for run in runs])

    def _of_shards(self, part: _Part, block: Block, stream: NoiseStream) -> Tensor:
        """What the whole parameters get, at this rank's places."""
        pieces: list[Tensor] = []
        for i in block.members:
            p = part.parameters[i]
            span = block.span or slice(0, part.weights[i].numel())
            (first, last), *rest = box(p) or [(0, 1)]
            row = math.prod(p.shape[1:])
            start = self._offsets[p] + first * row
            if all((a, b) == (0, n) for (a, b), n in zip(rest, p.shape[1:], strict=True)):
                pieces.append(stream.at(start + span.start, span.stop - span.start))
                continue
            rows = stream.at(start, (last - first) * row).view(last - first, *p.shape[1:])
            pieces.append(rows[(slice(None), *(slice(a, b) for a, b in rest))].reshape(-1)[span])
        return _join(pieces)


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _noisy(group: dict[str, Any]) -> bool:
    return bool(group["pert_gamma"] != 0 or group["pert_eps"] != 0)
