"""Capacity measures of the weights: parameter count, and norms over margins (Neyshabur et al. 2017, sec. 2.3).

Values are natural logarithms, since products over layers overflow; ranking is the same. A margin that is not positive
makes them undefined: its square would hide the sign.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from flatminima.errors import Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.measures._measure import measure
from flatminima.measures.margin import margin as margin_measure
from flatminima.statistic import Statistics
from flatminima.statistics import FeedForward, FeedForwardNetwork, Outputs, ParameterCount, Weights

Normalise = Literal["capacity", "figure"]


@measure
def parameter_count(minimum: Statistics) -> Estimate:
    """Number of trainable parameters, tied ones once, frozen ones left out.

    Args:
        minimum: a Minimum.

    Returns:
        Estimate, exact; details: frozen, the number of parameters left out.

    Source:
        Neyshabur et al., arXiv 1706.08947, eq. 1: the dimension of w in the VC bound.
    """
    count, weights = minimum[ParameterCount(), Weights()]
    return Estimate(float(count), details={"frozen": weights.frozen})


@measure
def vc_dimension(minimum: Statistics) -> Estimate:
    """Order of the VC dimension, ``d dim(w)``: depth times trainable parameters, logarithms and constants dropped.

    Args:
        minimum: a Minimum.

    Returns:
        Estimate, exact; details: depth, parameters. Undefined: not a ReLU network.

    Source:
        Neyshabur et al., arXiv 1706.08947, eq. 1 (Bartlett, Harvey, Liaw, Mehrabian 2017).
    """
    count, network = minimum[ParameterCount(), FeedForward()]
    depth = len(network.layers)
    return Estimate(float(depth * count), details={"depth": depth, "parameters": count})


@measure
def frobenius_norm(minimum: Statistics, *, normalise: Normalise = "capacity", fraction: float = 0.05) -> Estimate:
    """ln of ``gamma^-2 prod_i 4 ||W_i||_F^2``, gamma the margin (N17, l2 norm).

    Args:
        minimum: a Minimum.
        normalise: "capacity" keeps the factors 4; "figure" drops them, as the paper's figures do.
        fraction: of the margin.

    Returns:
        Estimate in nats, exact for the data; details: log_margin, layers (each factor), folded BatchNorms.
        Undefined: not a ReLU network, not a classifier, a margin that is not positive, a layer of zeros.

    Raises:
        UsageError: an unknown normalisation, a fraction outside (0, 1].

    Source:
        Neyshabur et al., arXiv 1706.08947, sec. 2.3.
    """
    network, log_margin = _network(minimum, normalise, fraction)
    constant = math.log(4.0) if normalise == "capacity" else 0.0
    factors = {
        _key(i, layer.name): 2 * _log(float(layer.matrix.norm()), layer.name) + constant
        for i, layer in enumerate(network.layers)
    }
    return _product(factors, log_margin, network)


@measure
def spectral_norm(minimum: Statistics, *, normalise: Normalise = "capacity", fraction: float = 0.05) -> Estimate:
    """ln of ``gamma^-2 prod_i h_i ||W_i||_2^2``, h_i the layer's outputs (N17, spectral).

    Convolutions enter as matrices (channels, channels x kernel), as in the paper's figures; h_i is their channels.

    Args:
        minimum: a Minimum.
        normalise: "capacity" keeps h_i; "figure" drops it.
        fraction: of the margin.

    Returns:
        Estimate in nats, exact for the data; details and undefined as `frobenius_norm`.

    Raises:
        UsageError: an unknown normalisation, a fraction outside (0, 1].

    Source:
        Neyshabur et al., arXiv 1706.08947, sec. 2.3 (erratum N-a: the step from the l2 norm would keep a factor 4).
    """
    network, log_margin = _network(minimum, normalise, fraction)
    factors = {}
    for i, layer in enumerate(network.layers):
        top = layer.matrix.abs().max() if layer.diagonal else torch.linalg.matrix_norm(layer.matrix, 2)
        outputs = layer.matrix.shape[1] if layer.diagonal else layer.matrix.shape[0]
        width = math.log(outputs) if normalise == "capacity" else 0.0
        factors[_key(i, layer.name)] = 2 * _log(float(top), layer.name) + width
    return _product(factors, log_margin, network)


@measure
def path_norm(minimum: Statistics, *, p: int = 2, normalise: Normalise = "figure", fraction: float = 0.05) -> Estimate:
    """ln of the lp path norm over margin: ``gamma^-2 sum_paths prod |W|^p`` for p = 2, squared for p = 1 (N17).

    Computed by one forward pass of ones through |w|^p; biases are edges from a constant 1, BatchNorm is folded,
    max-pooling counts every path through its window.

    Args:
        minimum: a Minimum.
        p: 1 or 2.
        normalise: "figure" as in the paper's figures; "capacity" adds 4^d and, for p = 2, the product of widths h_i.
        fraction: of the margin.

    Returns:
        Estimate in nats, exact for the data; details: log_path_norm (P_p itself), log_margin, depth.
        Undefined: not a ReLU network, not a classifier, a margin that is not positive, no path from input or bias.

    Raises:
        UsageError: p other than 1 and 2, an unknown normalisation, a fraction outside (0, 1].

    Source:
        Neyshabur et al., arXiv 1706.08947, sec. 2.3; Neyshabur, Salakhutdinov & Srebro 2015 (path-SGD).
    """
    if p not in (1, 2):
        raise UsageError(f"got p={p!r}; path norms are built for p=1 and p=2")
    network, log_margin = _network(minimum, normalise, fraction)
    log_norm = network.log_path_norm_1 if p == 1 else network.log_path_norm_2
    if log_norm == -math.inf:
        raise Undefined("every path through the network has a weight that is 0: the path norm is 0")
    value = 2 * log_norm - 2 * log_margin
    if normalise == "capacity":
        value += len(network.layers) * math.log(4.0)
        if p == 2:
            value += sum(math.log(layer.matrix.shape[0]) for layer in network.layers if not layer.diagonal)
    details = {"p": p, "log_path_norm": log_norm, "log_margin": log_margin, "depth": len(network.layers)}
    return Estimate(value, details=details | {"max_pooled": network.max_pooled})


def _network(minimum: Statistics, normalise: str, fraction: float) -> tuple[FeedForwardNetwork, float]:
    """The network and ln of its margin."""
    if normalise not in ("capacity", "figure"):
        raise UsageError(f"got normalise={normalise!r}; expected 'capacity' or 'figure'")
    network, _ = minimum[FeedForward(), Outputs()]
    gamma = margin_measure(minimum, fraction=fraction)
    if gamma.value is None:
        raise Undefined(str(gamma.undefined))
    if gamma.value <= 0:
        raise Undefined(f"the margin is not positive ({gamma.value:.3g} at {fraction:.0%}): the capacity is infinite")
    return network, math.log(gamma.value)


def _product(factors: dict[str, float], log_margin: float, network: FeedForwardNetwork) -> Estimate:
    value = sum(factors.values()) - 2 * log_margin
    return Estimate(value, details={"log_margin": log_margin, "layers": factors, "folded": network.folded})


def _log(norm: float, name: str) -> float:
    if norm == 0:
        raise Undefined(f"layer {name!r} is all zeros: the product of norms is 0")
    return math.log(norm)


def _key(index: int, name: str) -> str:
    return f"{index}: {name}"
