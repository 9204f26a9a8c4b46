"""Sharpness-aware minimization (Foret et al. 2021, Algorithm 1) and its adaptive form (Kwon et al. 2021, eq. 8).

e = rho g / ||g||_2 over all parameters; adaptive: e = rho T^2 g / ||T g||_2 with T = |w| + eta. The step is taken from
w with the gradient at w + e. Where the base maximises, e has the other sign: the worst of the ball is its lowest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatminima.errors import UsageError
from flatminima.optim.ascent import Slope, check_arrival, climb, inverse_norm, slopes
from flatminima.optim.displacement import Gradients, Shared
from flatminima.optim.looksam import Reuse
from flatminima.optim.running_statistics import kept
from flatminima.optim.schedule import Clock, depends_on_epoch
from flatminima.optim.wrapper import Wrapper


@dataclass(frozen=True)
class Ascent:
    """Losses of SAM's two passes.

    Args:
        loss: L(w).
        rise: L(w + e) - L(w), the sharpness that SAM minimises.
    """

    loss: float
    rise: float


class SAM(Wrapper):
    """SAM around any base optimizer; two backward passes a step.

    `opt.step(closure)` runs the closure twice. By hand: backward at the weights, then `with opt.perturbed():` clears
    those gradients and a second backward pass fills them, then `opt.step()`. With a scaler, unscale after the block,
    once: the direction does not depend on the scale.

    Under DistributedDataParallel the norm comes from synchronised gradients, under FSDP2 it is that of all shards. For
    a displacement per rank, run DistributedDataParallel's first backward pass under `no_sync()`.

    Args:
        base: the optimizer that steps. Its groups may set `sam_rho` and `sam_adaptive` of their own.
        rho: radius, finite and >= 0. Where it is 0 for all groups the closure runs once: exactly the base.
        adaptive: scale each coordinate by T = |w| + eta; "matrices": only of parameters with two axes or more, T = 1
            for biases and norm layers.
        model: whose buffers the second pass must leave alone. Without it they are found as layers are called, which
            costs a call a layer, and a model compiled in place (`model.compile()`) hides them.
        eta: of T, finite and >= 0. The authors' code has 0.01.
        every: steps from one ascent to the next; between them one pass a step. By hand, ask `due`.
        reuse: alpha of LookSAM, >= 0: how much of the last ascent's direction the steps between add to their
            gradient (one tensor a parameter). 0: plain steps; the paper has 0.7.
        schedule: epoch -> factor of rho.
        start_epoch: the first epoch with an ascent, from 1.
        steps_per_epoch: advances `epoch`; None: set `opt.epoch` yourself, as `flatminima.training` and the
            integrations do; a warning tells where nobody does, and one of the two above goes by it.

    Source: Foret, Kleiner, Mobahi, Neyshabur, arXiv 2010.01412; Kwon, Kim, Park, Choi, arXiv 2102.11600; Liu, Mai,
    Chen, Hsieh, You, arXiv 2203.02714 (`every`, `reuse`).

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
        >>> round(opt.last.rise, 4)      # (5.5^2 - 5^2) / 2
        2.625
    """

    name = "sam"
    eta: Shared[float] = Shared()
    every: Shared[int] = Shared()
    reuse: Shared[float] = Shared()
    schedule: Shared[Callable[[float], float] | None] = Shared()
    start_epoch: Shared[float] = Shared()
    _losses: Shared[tuple[Any, Any] | None] = Shared()  # at w and at w + e
    _warned: Shared[bool] = Shared()  # that e is rounded away
    _since: Shared[int] = Shared()  # steps since the last ascent; -1: there was none

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        adaptive: bool | Literal["matrices"] = False,
        *,
        model: nn.Module | None = None,
        eta: float = 0.0,
        every: int = 1,
        reuse: float = 0.0,
        schedule: Callable[[float], float] | None = None,
        start_epoch: float = 1.0,
        steps_per_epoch: int | None = None,
    ) -> None:
        for key, value in (("eta", eta), ("reuse", reuse)):
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"got {key}={value!r}; it is finite and >= 0")
        if not (isinstance(every, int) and every >= 1):
            raise UsageError(f"got every={every!r}; an ascent every so many steps, from 1")
        if not start_epoch >= 1:
            raise UsageError(f"got start_epoch={start_epoch!r}; epochs count from 1")
        self.clock = Clock(steps_per_epoch)
        self._backup: dict[Tensor, Tensor] = {}
        self._reuse = Reuse()
        numbers = {"sam_step": 0, "sam_epoch": 1.0, "sam_since": -1}
        super().__init__(base, {"sam_rho": rho, "sam_adaptive": adaptive}, numbers=numbers, model=model)
        self.eta, self.every, self.reuse = eta, every, reuse
        self.schedule, self.start_epoch = schedule, start_epoch
        self._losses, self._since, self._warned = None, -1, False

    @property
    def epoch(self) -> float:
        """Epoch of the coming step, from 1. Set it at the start of each epoch, or give `steps_per_epoch`."""
        return self.clock.epoch

    @epoch.setter
    def epoch(self, value: float) -> None:
        self.clock.epoch = value

    @property
    def due(self) -> bool:
        """Whether the coming step wants a second pass, at w + e."""
        return (self._since < 0 or self._since + 1 >= self.every) and any(self._rho(g) > 0 for g in self.param_groups)

    @property
    def last(self) -> Ascent | None:
        """Losses of the last ascent in which they were seen: `step(closure)` with a closure that returns its loss."""
        if self._losses is None:
            return None
        here, there = (float(loss) for loss in self._losses)
        return Ascent(here, there - here)

    def note(self, here: Any, there: Any) -> None:
        """Tell `last` the losses at w and at w + e, where someone else runs the passes."""
        losses = [loss.detach() if isinstance(loss, Tensor) else loss for loss in (here, there)]
        if all(isinstance(loss, int | float) or (isinstance(loss, Tensor) and loss.numel() == 1) for loss in losses):
            self._losses = (losses[0], losses[1])

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """The second pass: weights w + e, gradients cleared, buffers kept."""
        with kept(self.model), self._block():
            self._at.let_go()
            yield
        self._at.leave(self._parameters())

    def _evaluate(self, closure: Callable[[], Any], before: Gradients) -> Any:
        self._complete()
        entered, blocks = self._at.entered, self._at.blocks
        with torch.enable_grad():
            loss = closure()
        if before.absent() or self._at.blocks > blocks:  # a skipped batch; or the closure has seen to the second pass
            return loss
        if before.untouched():  # it does nothing: the passes were made by hand
            return loss
        if not entered:
            self._refuse_added(before)
        if not self.due:
            return loss
        closures = [*self._at.micro_batches, closure]
        here = [*self._at.micro_losses, loss]
        with self.perturbed(), torch.enable_grad():
            there = [again() for again in closures]
        if all(x is not None for x in (*here, *there)):
            self.note(sum(here) / len(here), sum(there) / len(there))
        return loss

    def _micro_batch(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            return closure()

    def _by_epoch(self) -> str:
        if self.start_epoch > 1:
            return f"start_epoch={self.start_epoch:g}"
        return "schedule=" if self.schedule is not None and depends_on_epoch(self.schedule) else ""

    def _needs_block(self) -> bool:
        return self.due

    def _displace(self) -> None:
        if self._at.holds_a_blocks():
            raise UsageError(
                "got a second `with opt.perturbed():` in one step, which would displace along the first one's gradient "
                "and lose it: run the micro-batches of a step plainly, then all of them again in one block"
            )
        held = slopes(self.param_groups, self._rho, self.eta)
        if not held:
            raise UsageError("no gradients, along which SAM displaces: call backward() before perturbed()")
        inverse = inverse_norm(held)
        for slope in held:
            self._keep(slope)
            climb(slope, inverse)
        if not self._warned and self._at.blocks & (self._at.blocks - 1) == 0:  # the first, then more and more rarely
            originals, refuse = [original for _, original in self._at.moved], self._at.blocks + self.clock.step == 0
            self._warned = check_arrival(held, originals, inverse, refuse=refuse and self.schedule is None)
        if self.every > 1 and self.reuse > 0:
            self._reuse.remember([pair for s in held for pair in zip(s.parameters, s.gradients, strict=True)])
        for p in self._parameters():
            p.grad = None

    def _keep(self, slope: Slope) -> None:
        """Copies to restore from; large ones keep their memory from step to step."""
        originals = [w.clone() for w in slope.weights] if slope.is_small() else self._copied(slope)
        self._at.moved = [*self._at.moved, *zip(slope.weights, originals, strict=True)]

    def _copied(self, slope: Slope) -> list[Tensor]:
        originals = []
        for p, w in zip(slope.parameters, slope.weights, strict=True):
            held = self._backup.get(p)
            if held is None or held.shape != w.shape or held.device != w.device or held.dtype != w.dtype:
                held = self._backup[p] = torch.empty_like(w)
            originals.append(held)
        torch._foreach_copy_(originals, slope.weights)
        return originals

    def _rho(self, group: dict[str, Any]) -> float:
        """Of the coming step."""
        if self.epoch < self.start_epoch:
            return 0.0
        rho = float(group["sam_rho"])
        return rho if self.schedule is None else rho * self.schedule(self.epoch)

    def _before_base(self) -> None:
        if self.every == 1 or self.reuse == 0:
            return
        if self._at.entered:
            self._reuse.learn(self._parameters())
        elif self._since >= 0:
            self._reuse.add(self._parameters(), self.reuse)

    def _after_base(self) -> None:
        self._since = 0 if self._at.entered else (self._since + 1 if self._since >= 0 else -1)
        self.clock.step += 1

    def _blank(self) -> None:
        if self.every > 1 and self.reuse > 0:
            self._reuse.blank(self._parameters())

    def _tensors(self) -> dict[Tensor, dict[str, Tensor]]:
        return self._reuse.tensors()

    def _numbers(self) -> dict[str, Any]:
        return {"sam_step": self.clock.step, "sam_epoch": self.clock.by_hand, "sam_since": self._since}

    def _load(self, tensors: dict[Tensor, dict[str, Tensor]], numbers: dict[str, Any]) -> None:
        self.clock.load(int(numbers["sam_step"]), float(numbers["sam_epoch"]))
        self._since = int(numbers["sam_since"])
        self._reuse.load(tensors)

    def _check(self, group: dict[str, Any]) -> None:
        rho, adaptive = group["sam_rho"], group["sam_adaptive"]
        if not (isinstance(rho, int | float) and math.isfinite(rho) and rho >= 0):
            raise UsageError(f"got sam_rho={rho!r}; the radius is finite and >= 0")
        if adaptive not in (True, False, "matrices"):
            raise UsageError(f"got sam_adaptive={adaptive!r}; it is True, False or 'matrices'")
