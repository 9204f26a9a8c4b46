"""The arithmetic of PertOPT on one flat block (Wang et al. 2018, Algorithm 1); eager or through torch.compile.

Written for memory traffic. `drift` holds |h_t - h_{t-1}| with infinity where the gradient gate is shut, until the
noise of step t is drawn; then it holds -sigma_t, whose sign tells element by element what is drawn already. The
infinity makes sigma zero by itself. Comparisons are made in place on floats and NaN is replaced at the end, because
`where` and `fmin` cost ten times an arithmetic operation on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from flatminima.optim.noise import HALF_RANGE

_TINY = 2e-38  # the smallest float32 that is not flushed: a shut gate gives x / 0 = inf, and never 0 / 0


def kappa(previous: Tensor, dtype: torch.dtype, gamma: Any, eps: Any) -> Tensor:
    """kappa_i = (gamma / ln(1 + epoch)) |w_{t-1,i}| + eps; gamma comes annealed."""
    return _scaled_plus(previous.to(dtype).abs(), gamma, eps)


def width(previous: Tensor, h: Tensor, drift: Tensor, gamma: Any, eps: Any, scale: Any, pull: Any) -> Tensor:
    """sigma_i = min(1 / (ln(1 + epoch) sqrt(eta (h_i + rho_i kappa_i))), kappa_i), 0 where the gate is shut.

    rho_i = drift_i * pull, pull = 1 / ||w_t - w_{t-1}|| or 0 where nothing moved.
    scale = 1 / (ln(1 + epoch) sqrt(eta)).
    """
    bound, by_curvature = _both(previous, h, drift, gamma, eps, scale, pull)
    return torch.maximum(by_curvature, bound).neg_()


def settle(w: Tensor, previous: Tensor, h: Tensor, drift: Tensor, gamma: Any, eps: Any, scale: Any, pull: Any) -> None:
    """drift becomes -sigma_t and previous w_t. Writes come last: an error changes nothing."""
    bound, by_curvature = _both(previous, h, drift, gamma, eps, scale, pull)
    torch.maximum(by_curvature, bound, out=drift)
    previous.copy_(w)


def settle_rest(
    w: Tensor, previous: Tensor, h: Tensor, drift: Tensor, gamma: Any, eps: Any, scale: Any, pull: Any
) -> None:
    """The same where some elements are settled already: in a step's next micro-batch, or after an interruption."""
    done = torch.signbit(drift)
    bound, by_curvature = _both(previous, h, drift.abs(), gamma, eps, scale, pull)
    drift.copy_(torch.where(done, drift, torch.maximum(by_curvature, bound)))
    previous.copy_(w)


def _both(
    previous: Tensor, h: Tensor, drift: Tensor, gamma: Any, eps: Any, scale: Any, pull: Any
) -> tuple[Tensor, Tensor]:
    """-kappa, and minus the width that the curvature allows; both with the sign bit set, also where they are 0."""
    bound = _scaled_plus(previous.to(drift.dtype).abs(), -gamma, -eps)
    if isinstance(pull, float):
        curvature = torch.addcmul(h, drift, bound, value=-pull)
        curvature.nan_to_num_(nan=torch.inf, posinf=torch.inf)  # inf * 0: the gate is shut and nothing moved
    else:
        curvature = h - (drift * bound).mul_(pull)
        curvature = torch.where(curvature != curvature, torch.inf, curvature)  # what inductor writes vector code for
    return bound, curvature.rsqrt_().mul_(-scale)


def _scaled_plus(x: Tensor, factor: Any, addend: Any) -> Tensor:
    """factor x + addend, in one pass where the numbers are no tensors."""
    if isinstance(factor, float) and isinstance(addend, float):
        return torch.add(_tensor(addend), x, alpha=factor)
    return x.mul_(factor).add_(addend)


def displace(w: Tensor, drift: Tensor, levels: Tensor) -> None:
    """w = w + u with u_i ~ U(-sigma_i, sigma_i); drift holds -sigma."""
    # compiled, levels are floats, which an addition in place would write back
    middle = levels + 0.5 if levels.is_floating_point() else levels.to(drift.dtype).add_(0.5)
    w.addcmul_(middle, drift, value=-1.0 / HALF_RANGE)


def follow(g: Tensor, h: Tensor, drift: Tensor, beta1: Any, beta2: Any) -> None:
    """h_{t+1} = beta1 h_t + (1 - beta1) g^2 and drift = |h_{t+1} - h_t| = (1 - beta1) |g^2 - h_t|."""
    square = g.to(h.dtype).square()
    change = (square - h).mul_(1 - beta1)
    h.add_(change)
    torch.div(change.abs_().add_(_TINY), _open(square, beta2), out=drift)


def follow_shared(g: Tensor, h: Tensor, drift: Tensor, beta1: Any, beta2: Any) -> None:
    """The same drift from h_{t+1}, which the base optimizer has already made: (1 - beta1) / beta1 |g^2 - h_{t+1}|."""
    square = g.to(h.dtype).square()
    change = _scaled_plus((square - h).abs_(), (1 - beta1) / beta1, _TINY)
    torch.div(change, _open(square, beta2), out=drift)


def _open(square: Tensor, beta2: Any) -> Tensor:
    """1 where |g| < beta2, else 0; NaN counts as shut. In place."""
    return square.lt_(beta2 * beta2)


def squared_distance(w: Tensor, previous: Tensor, dtype: torch.dtype) -> Tensor:
    """||w - previous||^2, () in `dtype`."""
    difference = w.to(dtype) - previous.to(dtype)
    return torch.dot(difference, difference)


_ALL: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (displace, settle, settle_rest, follow, follow_shared, squared_distance)
}


@lru_cache(maxsize=64)
def kernel(name: str, backend: str | None) -> Callable[..., Any]:
    """A kernel by name, compiled if a backend is given; made once, since torch.compile costs as much as a kernel.

    Numbers reach a compiled one as tensors: a new epoch is then no new compilation. Levels reach it as float32, which
    holds them exactly: inductor writes no vector code for int16, and the kernel would take three times as long.
    """
    plain = _ALL[name]
    if backend is None:
        return plain
    compiled = torch.compile(plain, backend=backend, dynamic=True)

    def call(*arguments: Any) -> Any:
        return compiled(*map(_for_vectors, arguments))

    return call


def _for_vectors(argument: Any) -> Any:
    if isinstance(argument, float):
        return _tensor(argument)
    is_levels = isinstance(argument, Tensor) and argument.dtype == torch.int16
    return argument.to(torch.float32) if is_levels else argument


@lru_cache(maxsize=256)
def _tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)  # of no dimension: it makes no other dtype of what it is added to
