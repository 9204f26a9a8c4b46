"""H_i g_i of one sub-batch, by differencing two gradients or by double backward, and how far the two are apart.

The paper's alpha is weight of the penalty and length of the difference in one. On ReLU networks that is no derivative:
at alpha = 1e-4 one unit that switches is a jump divided by alpha (cosine to the exact product 0.4 on a ResNet-20, in
float64 too). So the length of the displacement, ||dw|| = d ||g_i||, is a choice of its own here. No one length serves:
what is short at the start leaps over the minimum of a sub-batch later, where gradients are steep and losses small. A
share of the distance L_i / ||g_i||, at which the loss would be 0 if it fell in a straight line, does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatminima.core.guard import differentiable
from flatminima.errors import UsageError
from flatminima.optim.counts import Part, watched
from flatminima.optim.guards import Guards
from flatminima.optim.running_statistics import Buffers
from flatminima.optim.shards import check_dense, check_values
from flatminima.optim.sub_batches import mapped

GradientList = list[Tensor | None]
Step = Literal["auto", "alpha"] | float

SHARE = 0.1  # of L / ||g||: between kinks (below) and truncation (above); the table is in docs/optimizers.md
LONGEST = 0.2  # on a plateau, and where the loss is not positive, L / ||g|| says nothing
_HALF_LENGTH = 0.1  # below it a difference in 16 bits is mostly rounding; asked for by name, never by default
_HALF_ALPHA = 1e-2


@dataclass(frozen=True)
class DifferenceError:
    """The differenced penalty gradient against the exact one, on one sub-batch.

    Args:
        relative: ||difference - exact|| / ||exact||.
        cosine: between the two; what an optimizer that normalises its gradient feels.
    """

    relative: float
    cosine: float


@dataclass(frozen=True)
class Pass:
    """One sub-batch at the weights w: loss, gradient g and its norm; H g and L(w) - L(w - d g) of a second pass.

    `part` is what the loss was computed from, so that it can be asked what it counts.
    """

    loss: Tensor
    gradient: GradientList
    norm: float
    product: GradientList
    fall: float
    part: Part


class ModuleWeights:
    """The trainable parameters of a module, with gradients taken off them.

    Args:
        guards: refuse whoever would take displaced weights for the real ones.
    """

    def __init__(self, module: nn.Module, guards: Guards | None = None) -> None:
        self.module = module
        self.guards = guards or Guards()
        self.all = [p for p in module.parameters() if p.requires_grad]
        if not self.all:
            raise UsageError("the model has no trainable parameter")
        check_values(self.all)
        for p in self.all:
            if p.is_complex():
                raise UsageError(f"got a parameter of dtype {p.dtype}; a difference of gradients needs real weights")
        self.originals: list[Tensor] = []
        self.buffers = Buffers()

    def keep(self) -> None:
        """Remember them for `displace` and `restore`, and the module's buffers."""
        self.originals = [p.detach().clone() for p in self.all]
        self.buffers = Buffers(self.module.modules())

    def displace(self, direction: GradientList, by: float) -> None:
        """w + by * direction."""
        pairs = [(p.detach(), g) for p, g in zip(self.all, direction, strict=True) if g is not None]
        self.guards.enter(list(self.all), self.module)
        torch._foreach_add_([p for p, _ in pairs], [g for _, g in pairs], alpha=by)
        torch.clear_autocast_cache()

    def restore(self) -> None:
        """Restore what `keep` noted, bit for bit."""
        torch._foreach_copy_([p.detach() for p in self.all], self.originals)
        torch.clear_autocast_cache()
        self.guards.leave()

    def move_buffers(self, x: Any) -> None:
        """A pass without gradients, for what it does to the buffers; the random numbers go on as they were."""
        state = random_state(self.all)
        try:
            with torch.no_grad():
                self.module(x)
        finally:
            set_random_state(state)

    def gradient(self, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any) -> tuple[Tensor, GradientList, Part]:
        """(loss, gradient, what it was computed from) by backward(), which also works where activations are
        checkpointed; .grad must be None."""
        with torch.enable_grad():
            outputs = self.module(x)
            watch = watched(outputs)
            loss = _mean_loss(loss_fn, outputs, y)
            loss.backward()
        found = [p.grad for p in self.all]
        for p in self.all:
            p.grad = None
        for g in found:
            check_dense(g)
        loss = loss.detach()
        return loss, found, _part(outputs, [t.grad for t in watch], y, loss)


def _part(outputs: Any, gradients: Sequence[Tensor | None], y: Any, loss: Tensor) -> Part:
    """What `Counts` needs of a pass; empty where its outputs are no tree of batches."""
    if not gradients:
        return Part(None, [], y, 0, float(loss))
    bare = mapped(lambda t: t.detach().clone().requires_grad_(t.requires_grad), outputs)
    return Part(bare, [None if g is None else g.detach() for g in gradients], y, 0, float(loss))


def _mean_loss(loss_fn: Callable[[Any, Any], Tensor], outputs: Any, y: Any) -> Tensor:
    """loss_fn(outputs, y), a scalar."""
    loss = loss_fn(outputs, y)
    if loss.dim() != 0:
        raise UsageError(f"loss_fn returned shape {tuple(loss.shape)}; it must return the mean over the samples")
    return loss


def norm(gradient: GradientList) -> Tensor:
    """2-norm over all parameters, () in float32 at least."""
    held = [g for g in gradient if g is not None]
    if not held:
        return torch.zeros(())
    double = any(g.dtype == torch.float64 for g in held)
    parts = torch._foreach_norm(held, 2, dtype=torch.float64 if double else torch.float32)
    found: Tensor = torch.linalg.vector_norm(torch.stack([t.to(parts[0].device) for t in parts]))
    return found


def differenced(
    weights: ModuleWeights, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any, step: Step, alpha: float
) -> Pass:
    """Two passes: at w and at w - d g, with the same random numbers. `weights.keep()` was called."""
    randomness = random_state(weights.all)
    loss, g, part = weights.gradient(loss_fn, x, y)
    weights.buffers.restore()
    length = float(norm(g))
    if not (0 < length < float("inf")):  # nothing to follow; an infinity is for the scaler to find
        return Pass(loss, g, length, [None] * len(g), 0.0, part)
    d = alpha if step == "alpha" else (_auto(float(loss), length) if step == "auto" else float(step)) / length
    try:
        with torch.no_grad():
            weights.displace(g, -d)
        set_random_state(randomness)
        there, product, _ = weights.gradient(loss_fn, x, y)
    finally:
        with torch.no_grad():
            weights.restore()
        weights.buffers.restore()
    for ours, theirs in zip(g, product, strict=True):
        if ours is not None and theirs is not None:
            theirs.neg_().add_(ours).div_(d)
    return Pass(loss, g, length, product, float(loss - there), part)


def _auto(loss: float, norm: float) -> float:
    """||dw|| of a sub-batch with this loss and gradient norm."""
    return min(SHARE * loss / norm, LONGEST) if loss > 0 else LONGEST


def exact(weights: ModuleWeights, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any) -> Pass:
    """Double backward. Kinks have no curvature here; compiled modules and fused attention are bypassed."""
    module = getattr(weights.module, "_orig_mod", weights.module)
    with torch.enable_grad(), differentiable(module):
        outputs = module(x)
        watch = watched(outputs)
        loss = _mean_loss(loss_fn, outputs, y)
        both = torch.autograd.grad(loss, [*weights.all, *watch], create_graph=True, allow_unused=True)
        g = both[: len(weights.all)]
        for t in g:
            check_dense(t)
        half = sum(((t * t).sum() for t in g if t is not None), torch.zeros(())) / 2
        product: GradientList = [None] * len(g)
        if half.requires_grad:
            product = list(torch.autograd.grad(half, weights.all, allow_unused=True))
    gradient: GradientList = [None if t is None else t.detach() for t in g]
    weights.buffers.restore()
    part = _part(outputs, both[len(weights.all) :], y, loss.detach())
    return Pass(loss.detach(), gradient, float(norm(gradient)), product, 0.0, part)


def check_precision(parameters: Sequence[Tensor], step: Step, alpha: float) -> None:
    """Refuse differences that would be rounding: 16-bit weights, or 16-bit passes under autocast."""
    half = {p.dtype for p in parameters if p.dtype in (torch.bfloat16, torch.float16)}
    for device in {p.device.type for p in parameters}:
        if torch.is_autocast_enabled(device):
            half.add(torch.get_autocast_dtype(device))
    enough = alpha >= _HALF_ALPHA if step == "alpha" else isinstance(step, int | float) and step >= _HALF_LENGTH
    if half & {torch.bfloat16, torch.float16} and not enough:
        raise UsageError(
            f"a difference of gradients in {', '.join(sorted(map(str, half)))} is mostly rounding: "
            f"run FisherTrace in float32 outside autocast, or accept a rough one with step={_HALF_LENGTH}"
        )


def compare(a: GradientList, b: GradientList) -> DifferenceError:
    """a against b."""
    pairs = [(x.double(), y.double()) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    apart = sum(float((x - y).square().sum()) for x, y in pairs)
    aa, bb, ab = (sum(float((pair[i] * pair[j]).sum()) for pair in pairs) for i, j in ((0, 0), (1, 1), (0, 1)))
    if not aa or not bb:
        raise UsageError("one of the two penalty gradients is zero, so there is no relative error")
    return DifferenceError((apart / bb) ** 0.5, ab / (aa * bb) ** 0.5)


def random_state(parameters: Sequence[Tensor]) -> list[tuple[torch.device, Tensor]]:
    """State of the generators that a pass over these weights may draw from."""
    devices = {p.device for p in parameters if p.is_cuda}
    return [(torch.device("cpu"), torch.get_rng_state()), *((d, torch.cuda.get_rng_state(d)) for d in devices)]


def set_random_state(state: list[tuple[torch.device, Tensor]]) -> None:
    """Set the generators to a state of `random_state`."""
    for device, value in state:
        if device.type == "cpu":
            torch.set_rng_state(value)
        else:
            torch.cuda.set_rng_state(value, device)
