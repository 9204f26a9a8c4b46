"""The Fisher-trace regularizer (Jia & Su 2020, eq. 6 and Algorithm 1) in place of `loss.backward()`.

R_alpha = (1/M) sum_i [L_i(w) - L_i(w - alpha g_i)], g_i detached, is about alpha mean ||g_i||^2, but its gradient is
*half* of that penalty's: grad R_alpha is about alpha mean H_i g_i = (alpha/2) grad mean ||g_i||^2. mean ||g_i||^2 is
proportional to the trace of the Fisher only where the whole gradient vanishes, with a factor M / batch size.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatminima.core.moved_weights import mark_moved, put_back
from flatminima.core.perturbation import generator
from flatminima.errors import UsageError
from flatminima.optim import ddp
from flatminima.optim.combination import Count, LossFn, Piece, Sums, add, compared, pieces_of, scale, summed_parts
from flatminima.optim.difference import (
    DifferenceError,
    GradientList,
    ModuleWeights,
    Pass,
    Step,
    check_precision,
    compare,
    differenced,
    exact,
    norm,
)
from flatminima.optim.guards import Guards
from flatminima.optim.running_statistics import couples_the_batch
from flatminima.optim.sub_batches import cut

_Compared = tuple[float, Tensor, GradientList, bool]


@dataclass(frozen=True)
class Penalty:
    """Numbers of the last `backward` on this rank.

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
        sub_batches: M, per batch over all ranks; contiguous parts, weighted by what the loss counts in them.
        max_norm: clip the combined gradient to this norm, as the paper does and the authors' code does not.
        mode: "difference" of two gradients, or "exact": double backward, (alpha/2) grad mean ||g_i||^2.
        step: of the difference: "alpha": w - alpha g_i, the paper's; a number: the length of the displacement, the
            result scaled back to alpha; "auto": a tenth of L_i / ||g_i||, at most 0.2, which averages over ReLU
            kinks and stays on the near side of the minimum (see `error`).
        main_gradient: "auto", or "batch" for three passes where a layer of another kind or the loss couples the batch.
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
        self.combined = 0  # backward calls whose main gradient was a mean over sub-batches
        self._measured = False  # whether such a mean is known to weigh its parts as the loss does
        self.last: Penalty | None = None
        self._guards = Guards("wait until FisherTrace.backward() has returned")

    def backward(self, loss_fn: LossFn, x: Any, y: Any, *, scale: float = 1.0, count: Count | None = None) -> Tensor:
        """Add `scale` times the regularised gradient to `.grad`.

        A sub-batch weighs what the loss counts in it, found from the loss itself where the model returns a tree of
        tensors with a row a sample. One in which nothing counts is absent.

        Args:
            loss_fn: maps (model(x), y) to the *mean* loss, a scalar.
            x, y: tensors, or lists or dictionaries of them, with the samples along the first axis.
            scale: `float(scaler.scale(torch.ones(())))` with a GradScaler, which then knows its scale; 1 / steps when
                accumulating. Clipping comes before it.
            count: maps (x, y) of a part to what its mean loss divides by, where the model itself returns the loss:
                its unmasked tokens, the sum of its class weights.

        Warns:
            UserWarning: the mean over sub-batches is not the batch's gradient, so that `main_gradient` becomes "batch".
                The two are compared at the first call, and also at the 2nd, 4th, 8th, ... where the counts are not
                found from the loss.

        Returns:
            The mean loss over the batch, without the penalty, detached.

        Raises:
            UsageError: a 16-bit difference; sizes that do not fit; ranks that do not divide the sub-batches; weights
                that FSDP has sharded.
        """
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise UsageError(f"got beta={self.beta!r}; the weight of the penalty is finite and >= 0")
        module = ddp.inner(self.model)
        ddp.refuse_shards(module)
        weights = ModuleWeights(module, self._guards)
        if self.mode == "difference" and self.beta > 0:
            check_precision(weights.all, self.step, self.alpha)
        ddp.share_buffers(self.model)
        marks: list[int] = []
        try:
            with ddp.in_step(self.model):
                marks += mark_moved(weights.all)  # waits for a measurement, and none begins in another thread
                with _set_aside(weights.all):
                    loss, total = self._combined(weights, loss_fn, x, y, count)
            total = ddp.mean(self.model, total, weights.all)
            self._clip(total)
            for p, g in zip(weights.all, total, strict=True):
                if g is not None:
                    g = g if scale == 1.0 else g.mul_(scale)
                    p.grad = g if p.grad is None else p.grad.add_(g)
        finally:  # another thread's backward would take these gradients for its own
            put_back(marks)
        self.steps += 1
        return loss

    def error(self, loss_fn: LossFn, x: Any, y: Any) -> DifferenceError:
        """The difference against double backward on the first sub-batch; about four passes over it, nothing changes."""
        ddp.refuse_shards(ddp.inner(self.model))
        weights = ModuleWeights(ddp.inner(self.model), self._guards)
        check_precision(weights.all, self.step, self.alpha)
        xi, yi, _ = cut(x, y, self.sub_batches)[0]
        devices = [d.index for d in {p.device for p in weights.all if p.is_cuda} if d.index is not None]
        with _set_aside(weights.all):
            weights.keep()
            try:
                with torch.random.fork_rng(devices):
                    ours = differenced(weights, loss_fn, xi, yi, self.step, self.alpha)
                with torch.random.fork_rng(devices):
                    truth = exact(weights, loss_fn, xi, yi)
            finally:
                weights.buffers.restore()
        return compare(ours.product, truth.product)

    def state_dict(self) -> dict[str, Any]:
        """State of the draw of active sub-batches, and what is known of the loss."""
        found = {"combined": self.combined, "measured": self._measured, "main_gradient": self.main_gradient}
        return {"steps": self.steps, "seed": self.seed, **found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.seed = int(state["steps"]), int(state["seed"])
        self.combined, self._measured = int(state.get("combined", 0)), bool(state.get("measured", False))
        self.main_gradient = state.get("main_gradient", self.main_gradient)

    def _combined(
        self, weights: ModuleWeights, loss_fn: LossFn, x: Any, y: Any, count: Count | None
    ) -> tuple[Tensor, GradientList]:
        if self.beta == 0:
            self.last = None
            return self._checked(*weights.gradient(loss_fn, x, y)[:2])
        parts = cut(x, y, ddp.local_count(self.model, self.sub_batches, "sub_batches"))
        chosen = self._chosen(len(parts))
        whole = self.main_gradient == "batch" or couples_the_batch(weights.module)
        pieces, total = pieces_of(parts, chosen, whole, count)
        loss, main = weights.gradient(loss_fn, x, y)[:2] if whole else (torch.zeros(()), [])
        weights.keep()
        try:
            sums = summed_parts(weights, loss_fn, pieces, lambda p: self._pass(weights, loss_fn, p), main=not whole)
            compare = None
            if sums.weight == 0 and not whole:  # nothing counts in the whole batch: what the loss itself says of that
                loss, main = weights.gradient(loss_fn, x, y)[:2]
            elif not whole:
                loss, main = sums.loss / sums.weight, scale(sums.main, 1 / sums.weight)
                sums.main = main
                compare = partial(_compared, weights, loss_fn, pieces, sums, x, y)
            loss, main = self._checked(loss, main, compare)
            if sums.weight == 0:
                self.last = Penalty(0.0, 0.0, math.nan)
                return loss, main
        finally:
            weights.buffers.restore()
        if weights.buffers.moved and not whole:  # by the parts; now as a pass over the batch moves them, once
            weights.move_buffers(x)
        if total is None:  # of all parts, by those that were passed
            total = sums.weight / sums.samples * sum(samples for *_, samples in parts)
        upscale = len(parts) / len(chosen) / total
        value = sums.falls if self.step == "alpha" and self.mode == "difference" else self.alpha * sums.squares
        self.last = Penalty(sums.squares * upscale, value * upscale, math.nan)
        return loss, add(main, sums.product, self.beta * self.alpha * upscale)

    def _checked(
        self, loss: Tensor, main: GradientList, compare: Callable[[], _Compared] | None = None
    ) -> tuple[Tensor, GradientList]:
        """These, or the whole batch's own where the parts' mean is another on some rank: then from now on.

        Every rank comes here once a call, whatever its batch: what counts on none of one may count on another's.

        Args:
            compare: of the parts' mean; None where there is none.
        """
        mine = compare is not None
        due = self.combined == 0 or not (self._measured or self.combined & (self.combined + 1))
        counted, due_somewhere = ddp.greatest(self.model, mine, mine and due)
        self.combined += int(counted)
        if not due_somewhere:
            return loss, main
        off, whole_loss, whole, found = compare() if compare is not None else (0.0, loss, main, True)
        off, unmeasured = ddp.greatest(self.model, off, not found)
        self._measured = not unmeasured
        if off == 0:
            return loss, main
        self.main_gradient = "batch"
        warnings.warn(
            f"the mean of the sub-batches' gradients is {off:.1%} off the gradient of the batch: the loss is no mean "
            "over samples, or a layer couples them. From now on the main gradient takes a pass of its own, as with "
            "main_gradient='batch'; where the loss counts something else than samples, give backward(..., count=)",
            stacklevel=4,
        )
        return whole_loss, whole

    def _pass(self, weights: ModuleWeights, loss_fn: LossFn, piece: Piece) -> Pass:
        if not piece.penalised:
            found = weights.gradient(loss_fn, piece.x, piece.y)
            weights.buffers.restore()
            return Pass(found[0], found[1], float(norm(found[1])), [], 0.0, found[2])
        if self.mode == "exact":
            return exact(weights, loss_fn, piece.x, piece.y)
        return differenced(weights, loss_fn, piece.x, piece.y, self.step, self.alpha)

    def _chosen(self, count: int) -> list[int]:
        if self.active is None or self.active >= self.sub_batches:
            return list(range(count))
        some = min(ddp.local_count(self.model, self.active, "active"), count)
        return sorted(torch.randperm(count, generator=generator(self.seed, self.steps))[:some].tolist())

    def _clip(self, total: GradientList) -> None:
        length = float(norm(total)) if self.max_norm is not None or self.last is not None else math.nan
        if self.last is not None:
            self.last = Penalty(self.last.trace, self.last.value, length)
        if self.max_norm is not None and self.max_norm < length < math.inf:
            for g in total:
                if g is not None:
                    g.mul_(self.max_norm / length)


def _compared(
    weights: ModuleWeights, loss_fn: LossFn, pieces: Sequence[Piece], sums: Sums, x: Any, y: Any
) -> _Compared:
    """What `compared` finds, and whether the parts' weights are the loss's own."""
    found = sums.measured and all(piece.count is None for piece in pieces)
    return *compared(weights, loss_fn, pieces, sums, x, y), found


@contextmanager
def _set_aside(parameters: Sequence[Tensor]) -> Iterator[None]:
    """No gradients within the block, and afterwards those of before."""
    accumulated = [p.grad for p in parameters]
    try:
        for p in parameters:
            p.grad = None
        yield
    finally:
        for p, before in zip(parameters, accumulated, strict=True):
            p.grad = before
