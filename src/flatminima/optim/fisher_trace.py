"""The Fisher-trace regularizer (Jia & Su 2020, eq. 6 and Algorithm 1) in place of `loss.backward()`.

R_alpha = (1/M) sum_i [L_i(w) - L_i(w - alpha g_i)], g_i detached, is about alpha mean ||g_i||^2, but its gradient is
*half* of that penalty's: grad R_alpha is about alpha mean H_i g_i = (alpha/2) grad mean ||g_i||^2. mean ||g_i||^2 is
proportional to the trace of the Fisher only where the whole gradient vanishes, with a factor M / batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatminima.core.perturbation import generator
from flatminima.errors import UsageError
from flatminima.optim import ranks
from flatminima.optim.difference import (
    DifferenceError,
    Gradients,
    Pass,
    Step,
    Weights,
    check_precision,
    compare,
    differenced,
    exact,
    norm,
)
from flatminima.optim.running_statistics import couples_the_batch, kept
from flatminima.optim.sub_batches import cut, join


@dataclass(frozen=True)
class Penalty:
    """What the last `backward` saw on this rank.

    Args:
        trace: mean over sub-batches of ||g_i||^2.
        value: R_alpha; to first order, alpha * trace, unless step="alpha".
        norm: of the combined gradient before clipping.
    """

    trace: float
    value: float
    norm: float


class FisherTrace:
    """`backward(loss_fn, x, y)` fills `.grad` with grad(L + beta R_alpha); any optimizer steps.

    Where nothing couples the samples of a batch, the mean of the sub-batches' gradients is the batch's: two passes.
    Where a layer normalises over the batch there are three, as in the authors' code: the loss over the whole batch,
    which alone moves the running statistics, and the penalty twice over sub-batches with their own statistics. Both
    passes of a sub-batch draw the same random numbers.

    Args:
        model: maps inputs to outputs; may be compiled, or wrapped in DistributedDataParallel.
        beta: weight of the penalty, >= 0; may be set between steps. 0: the plain gradient, one pass. The authors' code
            leaves it 0 for the first 60 epochs, the paper does not say so.
        alpha: of R_alpha, > 0.
        sub_batches: M, per batch over all ranks; contiguous parts, weighted by their samples.
        max_norm: clip the combined gradient to this norm, as the paper does and the authors' code does not.
        mode: "difference" of two gradients, or "exact": double backward, (alpha/2) grad mean ||g_i||^2.
        step: of the difference: "alpha": w - alpha g_i, the paper's; a number: the length of the displacement, the
            result scaled back to alpha; "auto": a tenth of L_i / ||g_i||, at most 0.2, which averages over ReLU
            kinks and stays on the near side of the minimum (see `error`).
        main_gradient: "auto", or "batch" for three passes where a layer of another kind couples the batch.
        active: difference only so many sub-batches a step, drawn at random, and scale up: unbiased, not in the
            paper. None: all.
        seed: of that draw.

    Source: Jia, Su, arXiv 1911.08192; authors' code SeanJia/InfoMCR.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> reg = FisherTrace(model, beta=1.0, alpha=0.1, sub_batches=2)
        >>> x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
        >>> loss = reg.backward(torch.nn.functional.cross_entropy, x, y)
        >>> model.weight.grad.shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        beta: float = 10.0,
        alpha: float = 1e-4,
        sub_batches: int = 8,
        max_norm: float | None = None,
        *,
        mode: Literal["difference", "exact"] = "difference",
        step: Step = "auto",
        main_gradient: Literal["auto", "batch"] = "auto",
        active: int | None = None,
        seed: int = 0,
    ) -> None:
        if not (alpha > 0 and math.isfinite(alpha)):
            raise UsageError(f"got alpha={alpha!r}; it is finite and > 0")
        if sub_batches < 1 or not (active is None or 0 < active <= sub_batches):
            raise UsageError(f"got {sub_batches=}, {active=}; at least one sub-batch, and 1 to all of them active")
        if max_norm is not None and not max_norm > 0:
            raise UsageError(f"got max_norm={max_norm!r}; a positive norm, or None not to clip")
        if mode not in ("difference", "exact") or main_gradient not in ("auto", "batch"):
            raise UsageError(f"got {mode=}, {main_gradient=}; 'difference' or 'exact', 'auto' or 'batch'")
        if step not in ("auto", "alpha") and not (isinstance(step, int | float) and step > 0):
            raise UsageError(f"got step={step!r}; 'auto', 'alpha', or the length of a displacement")
        self.model, self.beta, self.alpha, self.sub_batches, self.max_norm = model, beta, alpha, sub_batches, max_norm
        self.mode, self.step, self.main_gradient, self.active, self.seed = mode, step, main_gradient, active, seed
        self.steps = 0
        self.last: Penalty | None = None

    def backward(self, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any, *, scale: float = 1.0) -> Tensor:
        """Add `scale` times the regularised gradient to `.grad`.

        Args:
            loss_fn: maps (model(x), y) to the *mean* loss, a scalar.
            x, y: tensors, or lists or dictionaries of them, with the samples along the first axis.
            scale: `scaler.get_scale()` with a GradScaler; 1 / steps when accumulating. Clipping comes before it.

        Returns:
            The mean loss over the batch, without the penalty, detached.

        Raises:
            UsageError: a 16-bit difference; sizes that do not fit; ranks that do not divide the sub-batches.
        """
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise UsageError(f"got beta={self.beta!r}; the weight of the penalty is finite and >= 0")
        module = ranks.inner(self.model)
        weights = Weights(module)
        if self.mode == "difference" and self.beta > 0:
            check_precision(weights.all, self.step, self.alpha)
        ranks.share_buffers(self.model)
        accumulated = [p.grad for p in weights.all]
        try:
            for p in weights.all:
                p.grad = None
            loss, total = self._combined(weights, loss_fn, x, y)
        finally:
            for p, before in zip(weights.all, accumulated, strict=True):
                p.grad = before
        total = ranks.mean(self.model, total, weights.all)
        self._clip(total)
        for p, g in zip(weights.all, total, strict=True):
            if g is not None:
                g = g if scale == 1.0 else g.mul_(scale)
                p.grad = g if p.grad is None else p.grad.add_(g)
        self.steps += 1
        return loss

    def error(self, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any) -> DifferenceError:
        """The difference against double backward on the first sub-batch; about four passes over it, nothing changes."""
        weights = Weights(ranks.inner(self.model))
        check_precision(weights.all, self.step, self.alpha)
        xi, yi, _ = cut(x, y, self.sub_batches)[0]
        before = [p.grad for p in weights.all]
        devices = [d.index for d in {p.device for p in weights.all if p.is_cuda} if d.index is not None]
        try:
            for p in weights.all:
                p.grad = None
            weights.keep()
            with kept(weights.module):
                with torch.random.fork_rng(devices):
                    ours = differenced(weights, loss_fn, xi, yi, self.step, self.alpha)
                with torch.random.fork_rng(devices):
                    truth = exact(weights, loss_fn, xi, yi)
        finally:
            for p, grad in zip(weights.all, before, strict=True):
                p.grad = grad
        return compare(ours.product, truth.product)

    def state_dict(self) -> dict[str, Any]:
        """What the draw of active sub-batches needs to go on."""
        return {"steps": self.steps, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.seed = int(state["steps"]), int(state["seed"])

    def _combined(self, weights: Weights, loss_fn: Callable[..., Tensor], x: Any, y: Any) -> tuple[Tensor, Gradients]:
        if self.beta == 0:
            self.last = None
            return weights.gradient(loss_fn, x, y)
        parts = cut(x, y, ranks.local(self.model, self.sub_batches, "sub_batches"))
        n = sum(count for *_, count in parts)
        chosen = self._chosen(len(parts))
        whole = self.main_gradient == "batch" or couples_the_batch(weights.module)
        rest = [i for i in range(len(parts)) if i not in chosen]
        weights.keep()
        loss: Tensor = torch.zeros(())
        total: Gradients = [None] * len(weights.all)
        if whole:
            loss, total = weights.gradient(loss_fn, x, y)
        elif rest:
            loss, total = weights.gradient(
                loss_fn, join([parts[i][0] for i in rest]), join([parts[i][1] for i in rest])
            )
            share = sum(parts[i][2] for i in rest) / n
            loss, total = loss * share, [None if g is None else g.mul_(share) for g in total]
        trace = value = 0.0
        with kept(weights.module):
            for i in chosen:
                xi, yi, count = parts[i]
                found = self._pass(weights, loss_fn, xi, yi)
                share, upscale = count / n, len(parts) / len(chosen)
                trace += share * upscale * found.norm**2
                fall = found.fall if self.step == "alpha" and self.mode == "difference" else self.alpha * found.norm**2
                value += share * upscale * fall
                if not whole:
                    loss = loss + share * found.loss
                    total = _add(total, found.gradient, share)
                total = _add(total, found.product, self.beta * self.alpha * share * upscale)
        self.last = Penalty(trace, value, math.nan)
        return loss, total

    def _pass(self, weights: Weights, loss_fn: Callable[..., Tensor], x: Any, y: Any) -> Pass:
        if self.mode == "exact":
            return exact(weights, loss_fn, x, y)
        return differenced(weights, loss_fn, x, y, self.step, self.alpha)

    def _chosen(self, count: int) -> list[int]:
        if self.active is None or self.active >= self.sub_batches:
            return list(range(count))
        some = min(ranks.local(self.model, self.active, "active"), count)
        return sorted(torch.randperm(count, generator=generator(self.seed, self.steps))[:some].tolist())

    def _clip(self, total: Gradients) -> None:
        length = float(norm(total)) if self.max_norm is not None or self.last is not None else math.nan
        if self.last is not None:
            self.last = Penalty(self.last.trace, self.last.value, length)
        if self.max_norm is not None and self.max_norm < length < math.inf:
            for g in total:
                if g is not None:
                    g.mul_(self.max_norm / length)


def _add(total: Gradients, more: Gradients, factor: float) -> Gradients:
    """total + factor * more, in place where there is something; `more` is used up."""
    held = [(t, m) for t, m in zip(total, more, strict=True) if t is not None and m is not None]
    if held:
        torch._foreach_add_([t for t, _ in held], [m for _, m in held], alpha=factor)
    return [m.mul_(factor) if t is None and m is not None else t for t, m in zip(total, more, strict=True)]
