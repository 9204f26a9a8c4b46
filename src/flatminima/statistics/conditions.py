"""Conditions C1 to C3 of Neyshabur et al. (2017, App. B) on the samples: what their Theorem 1 assumes of a network.

For networks of fully connected layers with ReLU between them and no biases, f = W_d D_{d-1} W_{d-1} ... D_1 W_1 x with
D_i the 0/1 diagonal of layer i's active units at x. Such a network is homogeneous, so samples are taken at length 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.samples import leaves
from flatminima.core.statistic import Cost, Statistic
from flatminima.errors import Undefined, UsageError
from flatminima.statistics.feedforward import FeedForward
from flatminima.statistics.network_graph import FeedForwardNetwork

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum

_AGREE = {torch.float64: 1e-9, torch.float32: 1e-3}  # relative, between the chain written out and the network
_AGREE_DEFAULT = 5e-2


@dataclass(frozen=True)
class SampleConditions:
    """The smallest constants with which C1 to C3 hold at each of n samples.

    Attributes:
        inverse_mu (n,): 1/mu of C1.  c2 (n,), c3 (n,).
        active (n, d): ||D_i W_i||_F of each layer.
        outputs (n,): ||f(x)||_2.
        frobenius (d,): ||W_i||_F.
        widths: h_0 (inputs), h_1, ..., h_d.
    """

    inverse_mu: Tensor
    c2: Tensor
    c3: Tensor
    active: Tensor
    outputs: Tensor
    frobenius: Tensor
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Conditions(Statistic[SampleConditions]):
    """C1 to C3 on random samples; a sample costs d^2/2 products of two layers.

    Args:
        samples: how many; None: all.
        seed: of the draw.

    Raises:
        Undefined: not a chain of linear layers with ReLU between them, biases, an input of zeros.
    """

    samples: int | None = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"got samples={self.samples}; it must be at least 1")

    def compute(self, minimum: Minimum) -> SampleConditions:
        network = minimum[FeedForward()]
        _refuse_other(network)
        indices = minimum.samples.order(self.seed)[: self.samples]
        batch = minimum.batch(indices)
        inputs, *others = leaves(batch.inputs)
        if others:
            raise Undefined("the conditions are of a network of one input")
        with minimum.open(), torch.no_grad():
            outputs = minimum.forward(batch.inputs).double().cpu()
        x = inputs.detach().double().cpu().flatten(1)
        weights = [layer.matrix for layer in network.layers]
        _same_network(weights, x, outputs, _AGREE.get(inputs.dtype, _AGREE_DEFAULT))
        lengths = x.norm(dim=1, keepdim=True)
        if not bool((lengths > 0).all()):
            raise Undefined("a sample is all zeros: the conditions are of inputs of length 1")
        return sample_conditions(weights, x / lengths)

    def cost(self, minimum: Minimum) -> Cost:
        looked = min(self.samples or len(minimum.samples), len(minimum.samples))
        return Cost(forward=looked / len(minimum.samples))


def sample_conditions(weights: Sequence[Tensor], x: Tensor) -> SampleConditions:
    """The conditions of the chain of `weights` (h_i, h_{i-1}) at the rows of x (n, h_0), of length 1."""
    rows = [_at(weights, sample) for sample in x]
    inverse_mu, c2, c3, active, outputs = zip(*rows, strict=True)
    frobenius = torch.stack([w.norm() for w in weights])
    widths = (weights[0].shape[1], *(len(w) for w in weights))
    a, b, c, d, e = (torch.tensor(values, dtype=torch.float64) for values in (inverse_mu, c2, c3, active, outputs))
    return SampleConditions(a, b, c, d, e, frobenius, widths)


def _at(weights: Sequence[Tensor], x: Tensor) -> tuple[float, float, float, list[float], float]:
    """1/mu, C2, C3, ||D_i W_i||_F and ||f|| at one sample."""
    maps, signal, c2, c3 = [x.unsqueeze(1)], x, 0.0, 0.0
    for i, w in enumerate(weights):
        z = w @ signal
        c2 = max(c2, _density(z))
        masked = w if i + 1 == len(weights) else w * (z > 0).unsqueeze(1)
        total = float(masked.norm())
        largest = float(w.norm(dim=1).max())
        c3 = max(c3, largest * math.sqrt(len(w)) / total) if total else math.inf
        maps.append(masked)
        signal = masked @ signal
    norms = _products(maps)
    return _smoothness(norms, maps), c2, c3, [norms[i, i] for i in range(1, len(maps))], float(signal.norm())


def _density(z: Tensor) -> float:
    """C2 of one layer, max_j (j/h) / |z|_(j) over the order statistics of |z|."""
    ordered = z.abs().sort().values
    ranks = torch.arange(1, len(z) + 1, dtype=torch.float64) / len(z)
    return float((ranks / ordered).max())  # inf where a unit's input is 0


def _products(maps: Sequence[Tensor]) -> dict[tuple[int, int], float]:
    """Frobenius norms of the products maps[b] ... maps[a], 0 <= a <= b."""
    norms = {}
    for a, product in enumerate(maps):
        for b in range(a, len(maps)):
            product = maps[b] @ product if b > a else product
            norms[a, b] = float(product.norm())
    return norms


def _smoothness(norms: dict[tuple[int, int], float], maps: Sequence[Tensor]) -> float:
    """1/mu: the largest ||prod_{c+1..b}|| ||prod_{a..c}|| / (sqrt(h_c) ||prod_{a..b}||), 0 <= a <= c < b <= d (N-e)."""
    worst = 0.0
    for (a, b), whole in norms.items():
        for c in range(a, b):
            parts = norms[c + 1, b] * norms[a, c] / math.sqrt(len(maps[c]))
            worst = max(worst, parts / whole if whole else math.inf)
    return worst


def _refuse_other(network: FeedForwardNetwork) -> None:
    """Refuse all but fully connected layers in a row, naming what is none."""
    of = "the conditions are of fully connected layers in a row"
    for layer in network.layers:
        if layer.operator is not None:
            raise Undefined(f"{of}, and {layer.name!r} is a convolution or another layer that shares weights")
        if layer.diagonal:
            raise Undefined(f"{of}, and {layer.name!r} multiplies entry by entry, as a BatchNorm of its own does")
    if network.branches:
        raise Undefined(f"{of}, and the network adds or joins activations (shortcuts)")


def _same_network(weights: Sequence[Tensor], x: Tensor, outputs: Tensor, tolerance: float) -> None:
    """The chain written out must be the network: no biases, no other activation, no pooling."""
    fits = x.shape[1] == weights[0].shape[1] and all(b.shape[1] == len(a) for a, b in pairwise(weights))
    if fits:
        signal = x
        for i, w in enumerate(weights):
            signal = (signal if i == 0 else signal.clamp_min(0)) @ w.T
        fits = signal.shape == outputs.shape and bool(
            (signal - outputs).abs().max() <= tolerance * outputs.abs().max().clamp_min(1e-300)
        )
    if not fits:
        raise Undefined("the network is not W_d relu(... relu(W_1 x)): the conditions know no biases, no other layers")
