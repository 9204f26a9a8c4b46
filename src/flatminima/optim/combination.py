"""The loss, its gradient and the penalty's, from passes over the parts of a batch, each weighted by what it counts.

Once the mean over parts is compared with the gradient of the whole batch: a loss that is no weighted mean of its
samples, or a layer that couples them, shows there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.optim.counts import Counts
from flatminima.optim.difference import GradientList, ModuleWeights, Pass, norm, random_state, set_random_state
from flatminima.optim.sub_batches import join

_APART = {torch.float64: 1e-6, torch.float32: 5e-3}  # relative: rounding, and kernels that choose by batch size
_APART_HALF = 0.1
_CANCELLED = 1e-3  # of the parts' own gradients: a mean below that is mostly their rounding
LossFn = Callable[[Any, Any], Tensor]
Count = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Piece:
    """A part of the batch: inputs, targets, samples; whether it is differenced; what it counts, None to be found."""

    x: Any
    y: Any
    samples: int
    penalised: bool
    count: float | None = None


def pieces_of(
    parts: Sequence[tuple[Any, Any, int]], chosen: Sequence[int], whole: bool, count: Count | None
) -> tuple[list[Piece], float | None]:
    """The parts to pass over, those that are not differenced as one; and the weight of all, where that is known."""

    def piece(x: Any, y: Any, samples: int, penalised: bool) -> Piece:
        return Piece(x, y, samples, penalised, None if count is None else float(count(x, y)))

    pieces = [piece(*parts[i], True) for i in chosen]
    rest = [parts[i] for i in range(len(parts)) if i not in chosen]
    total = None
    if rest:
        last = piece(join([r[0] for r in rest]), join([r[1] for r in rest]), sum(r[2] for r in rest), False)
        total = None if count is None else sum(p.count or 0.0 for p in [*pieces, last])
        pieces += [] if whole else [last]
    return pieces, total


@dataclass
class Sums:
    """Weighted sums over parts: of losses, gradients, products, squared norms, falls, norms; and of the weights."""

    parameters: int
    weight: float = 0.0
    samples: int = 0
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    main: GradientList = field(default_factory=list)
    product: GradientList = field(default_factory=list)
    squares: float = 0.0
    falls: float = 0.0
    norms: float = 0.0
    weights: list[float] = field(default_factory=list)  # of the pieces, in their order
    measured: bool = True

    def __post_init__(self) -> None:
        self.main, self.product = [None] * self.parameters, [None] * self.parameters

    def add(self, piece: Piece, found: Pass, weight: float, *, main: bool) -> None:
        """One part; what is absent adds nothing, not even its NaN."""
        self.samples += piece.samples
        if weight == 0:
            return
        self.weight += weight
        self.loss = self.loss.to(found.loss.device) + weight * found.loss
        self.norms += weight * found.norm
        if main:
            self.main = add(self.main, found.gradient, weight)
        if piece.penalised:
            self.squares += weight * found.norm**2
            self.falls += weight * found.fall
            self.product = add(self.product, found.product, weight)


def summed_parts(
    weights: ModuleWeights, loss_fn: LossFn, pieces: Sequence[Piece], run: Callable[[Piece], Pass], *, main: bool
) -> Sums:
    """Every part's pass, added up.

    Args:
        run: the pass over a part. main: whether the parts' gradients are wanted.
    """
    sums, counts = Sums(len(weights.all)), Counts(loss_fn)
    found_weights: dict[int, float] = {}
    waiting: list[tuple[int, Pass]] = []  # parts before the first that can be compared with
    for i, piece in enumerate(pieces):
        if piece.count == 0:
            found_weights[i] = 0.0
            sums.samples += piece.samples
            continue
        found = run(piece)
        found = replace(found, part=replace(found.part, samples=piece.samples))
        weight = counts.weigh(found.part) if piece.count is None else piece.count
        if weight is None:
            waiting.append((i, found))
            continue
        found_weights[i] = weight
        sums.add(piece, found, weight, main=main)
    for i, found in waiting:
        weight = counts.weigh(found.part, last=True)
        found_weights[i] = float(pieces[i].samples) if weight is None else weight
        sums.add(pieces[i], found, found_weights[i], main=main)
    sums.weights, sums.measured = [found_weights[i] for i in range(len(pieces))], counts.measured
    return sums


def compared(
    weights: ModuleWeights, loss_fn: LossFn, pieces: Sequence[Piece], sums: Sums, x: Any, y: Any
) -> tuple[float, Tensor, GradientList]:
    """Relative distance of the parts' mean gradient from the whole batch's; 0 within rounding; and the whole's.

    Args:
        sums: with `main` divided by `weight`. x, y: the batch.
    """
    state = random_state(weights.all)
    try:
        loss, whole = _gradient(weights, loss_fn, x, y)
        off = _off(sums.main, whole, sums)
        if off > 0:
            _, again = _gradient(weights, loss_fn, x, y)
            if _off(again, whole, sums) > 0:  # dropout and its kin: every pass differs, so look without it
                with _in_eval_mode(weights.module):
                    main: GradientList = [None] * len(weights.all)
                    for piece, weight in zip(pieces, sums.weights, strict=True):
                        if weight:
                            main = add(main, _gradient(weights, loss_fn, piece.x, piece.y)[1], weight / sums.weight)
                    still = _gradient(weights, loss_fn, x, y)[1]
                    off = _off(main, still, sums)
                    if off > 0 and sums.measured and _off(_gradient(weights, loss_fn, x, y)[1], still, sums) > 0:
                        off = 0.0  # random in eval mode too: what the loss says of itself is all there is
    finally:
        weights.buffers.restore()
        set_random_state(state)
    return off, loss, whole


def add(total: GradientList, more: GradientList, factor: float) -> GradientList:
    """total + factor * more, in place where there is something; `more` is used up."""
    held = [(t, m) for t, m in zip(total, more, strict=True) if t is not None and m is not None]
    if held:
        torch._foreach_add_([t for t, _ in held], [m for _, m in held], alpha=factor)
    return [m.mul_(factor) if t is None and m is not None else t for t, m in zip(total, more, strict=True)]


def scale(gradient: GradientList, factor: float) -> GradientList:
    """factor * gradient, in place."""
    held = [g for g in gradient if g is not None]
    if held and factor != 1.0:
        torch._foreach_mul_(held, factor)
    return gradient


def _gradient(weights: ModuleWeights, loss_fn: LossFn, x: Any, y: Any) -> tuple[Tensor, GradientList]:
    loss, found, _ = weights.gradient(loss_fn, x, y)
    weights.buffers.restore()
    return loss, found


def _off(a: GradientList, b: GradientList, sums: Sums) -> float:
    """||a - b|| / ||b||, 0 within rounding or where it is not finite."""
    apart = [y if x is None else x if y is None else x - y for x, y in zip(a, b, strict=True)]
    length = max(float(norm(b)), _CANCELLED * sums.norms / sums.weight)
    off = float(norm(apart)) / length if length > 0 else 0.0
    kinds = {g.dtype for g in b if g is not None}
    for device in {g.device.type for g in b if g is not None}:
        if torch.is_autocast_enabled(device):
            kinds.add(torch.get_autocast_dtype(device))
    allowed = max((_APART.get(kind, _APART_HALF) for kind in kinds), default=0.0)
    return off if allowed < off < float("inf") else 0.0


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    for m, _ in modes:
        m.training = False
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
