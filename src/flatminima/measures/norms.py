"""Capacity measures of the weights: parameter count, and norms over margins (Neyshabur et al. 2017, sec. 2.3).

Values are natural logarithms, since products over layers overflow; ranking is the same. A margin that is not positive
makes them undefined: its square would hide the sign. Each layer's matrix is that of the network with BatchNorm folded
into the linear map before it; a BatchNorm that follows none is a diagonal layer of its own and named as such. Numbers
that multiply activations (residual scaling, LoRA's alpha / r) multiply the product, wherever they are written.

Width h_i of a capacity has one meaning: the units of layer i, for a convolution channels times positions, as the
paper's W_i are the unrolled maps of h_{i-1} to h_i units. A diagonal layer has the units of the layer it multiplies,
which count once.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from flatminima.core.statistic import Statistics
from flatminima.errors import Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.measures._matrices import instead, over_matrices
from flatminima.measures._measure import catalogued_measure
from flatminima.measures._over_margin import (
    Normalise,
    Product,
    check_options,
    log_factors,
    network_and_margin,
    with_margin,
)
from flatminima.statistics import FeedForward, FeedForwardNetwork, OperatorNorms, ParameterCount, Weights


@catalogued_measure
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


@catalogued_measure
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


@catalogued_measure
def frobenius_norm(
    minimum: Statistics, *, normalise: Product = "capacity", fraction: float = 0.05, over_margin: bool = True
) -> Estimate:
    """ln of ``gamma^-2 prod_i 4 ||W_i||_F^2``, gamma the margin (N17, l2 norm).

    Args:
        minimum: a Minimum.
        normalise: "capacity" keeps the factors 4; "figure" drops them, as the paper's figures do; "balanced": ln of
            ``d (gamma^-2 prod_i ||W_i||_F^2)^{1/d}``, the sum over layers once all have the same norm (Jiang et al.).
        fraction: of the margin.
        over_margin: divide by the margin; without, any ReLU network will do.

    Of a transformer (a network with LayerNorm or RMSNorm) ``ln prod_i ||W_i||_F^2`` over all weight matrices,
    embeddings and head too, adapters merged, without constants and margin: what Yang et al. measure, no bound.

    Returns:
        Estimate in nats, exact for the data; details: log_margin, layers (each factor), factors (of numbers that
        multiply activations), folded BatchNorms, diagonal (BatchNorms and scales that are layers of their own), widths
        (h_i), branches (the network is no chain, and the product no bound).
        Undefined: neither a ReLU network nor a transformer, not a classifier, a margin that is not positive, a layer of
        zeros.

    Raises:
        UsageError: an unknown normalisation, a fraction outside (0, 1].

    Source:
        Neyshabur et al., arXiv 1706.08947, sec. 2.3; transformers: Yang et al., arXiv 2202.02842 (Jiang et al.,
        eq. 37).
    """
    check_options(normalise, fraction, get_args(Product))
    try:
        network, log_margin = network_and_margin(minimum, fraction, over_margin)
    except Undefined:
        found = instead(minimum, lambda: over_matrices(minimum, lambda m: m.frobenius, normalise == "balanced"))
        if found is None:
            raise
        return found
    constant = math.log(4.0) if normalise == "capacity" else 0.0
    factors = {
        _key(i, layer.name): 2 * _log(float(layer.matrix.norm()), layer.name) + constant
        for i, layer in enumerate(network.layers)
    }
    return _product(factors, log_margin, network, normalise)


@catalogued_measure
def group_norm(
    minimum: Statistics,
    *,
    p: float = 1.0,
    q: float = math.inf,
    normalise: Normalise = "figure",
    fraction: float = 0.05,
    over_margin: bool = True,
) -> Estimate:
    """ln of ``gamma^-2 prod_i ||W_i||_{p,q}^2``, ``||W||_{p,q} = (sum_i (sum_j |W_ij|^p)^{q/p})^{1/q}`` (N17).

    Rows i are a layer's outputs, j their incoming weights, a filter's all in one row. (1, inf) is the largest l1 norm
    of a row, the paper's l1 norm; (2, 2) is `frobenius_norm`.

    Args:
        minimum: a Minimum.
        p, q: at least 1; inf means the largest.
        normalise: "figure" is the product alone; "capacity" multiplies each factor by 4, and each hidden layer's by
            its width h_i to the power ``2 max(1 - 1/p - 1/q, 0)``, as in the capacity of 2015.
        fraction: of the margin.
        over_margin: divide by the margin; without, any ReLU network will do.

    Returns:
        Estimate in nats, exact for the data; details and undefined as `frobenius_norm`.

    Raises:
        UsageError: p or q below 1, an unknown normalisation, a fraction outside (0, 1].

    Source:
        Neyshabur et al., arXiv 1706.08947, sec. 2.3; Neyshabur, Tomioka & Srebro 2015, theorem 1 (its d - 1 hidden
        layers have the factor 4; here the output layer has it too, as in the capacities of 2017).
    """
    check_options(normalise, fraction)
    if not (p >= 1 and q >= 1):
        raise UsageError(f"got p={p!r}, q={q!r}; a group norm has both at least 1 (or math.inf)")
    network, log_margin = network_and_margin(minimum, fraction, over_margin)
    last = len(network.layers) - 1
    exponent = 2 * max(1 - 1 / p - 1 / q, 0.0)
    factors = {}
    for i, layer in enumerate(network.layers):
        rows = layer.matrix.T if layer.diagonal else layer.matrix
        factor = 2 * _log(float(rows.norm(p, dim=1).norm(q)), layer.name)
        if normalise == "capacity":
            factor += math.log(4.0) + (exponent * math.log(layer.width) if i < last else 0.0)
        factors[_key(i, layer.name)] = factor
    return _product(factors, log_margin, network).with_details(p=p, q=q)


@catalogued_measure
def spectral_norm(
    minimum: Statistics,
    *,
    normalise: Product = "capacity",
    convolutions: Literal["operator", "kernel"] = "operator",
    fraction: float = 0.05,
    over_margin: bool = True,
) -> Estimate:
    """ln of ``gamma^-2 prod_i h_i ||W_i||_2^2``, h_i the layer's units (N17, spectral).

    Args:
        minimum: a Minimum.
        normalise: "capacity" keeps h_i; "figure" drops it; "balanced": ln of ``d (gamma^-2 prod_i ||W_i||^2)^{1/d}``,
            the sum over layers once all have the same norm (Jiang et al. 2020).
        convolutions: "operator": the linear map with its strides and padding on this network's images, h_i its
            units, channels times positions; "kernel": the matrix (channels, channels * kernel), h_i its rows, which
            many programs take and which bounds nothing.
        fraction: of the margin.
        over_margin: divide by the margin; without, any ReLU network will do.

    Of a transformer ``ln prod_i ||W_i||_2^2``, as `frobenius_norm` (Jiang et al., eq. 32).

    Returns:
        Estimate in nats, exact for the data; details: those of `frobenius_norm`, and residual, the largest of the
        singular values' (below 1e-4 of the squared norm). Undefined: as `frobenius_norm`, or a convolution's norm
        does not converge. With shortcuts the product is no bound: see `lipschitz`.

    Raises:
        UsageError: an unknown normalisation or kind of convolution, a fraction outside (0, 1].

    Source:
        Neyshabur et al., arXiv 1706.08947, sec. 2.3 (erratum N-a: the step from the l2 norm would keep a factor 4).
    """
    check_options(normalise, fraction, get_args(Product))
    if convolutions not in ("operator", "kernel"):
        raise UsageError(f"got convolutions={convolutions!r}; expected 'operator' or 'kernel'")
    try:
        return _spectral(minimum, normalise, convolutions, fraction, over_margin)
    except Undefined:
        found = instead(minimum, lambda: over_matrices(minimum, lambda m: m.two, normalise == "balanced"))
        if found is None:
            raise
        return found


def _spectral(
    minimum: Statistics, normalise: Product, convolutions: str, fraction: float, over_margin: bool
) -> Estimate:
    """`spectral_norm` of a ReLU network."""
    if convolutions == "operator":
        (network, norms), log_margin = with_margin(minimum, fraction, over_margin, FeedForward(), OperatorNorms())
        found = [(norm.two, layer.width) for norm, layer in zip(norms.layers, network.layers, strict=True)]
        residual = max((norm.residual for norm in norms.layers), default=0.0)
    else:
        network, log_margin = network_and_margin(minimum, fraction, over_margin)
        found = [_kernel(layer.matrix, layer.diagonal) for layer in network.layers]
        residual = 0.0
    factors, widths = {}, [width for _, width in found]
    for i, (layer, (norm, outputs)) in enumerate(zip(network.layers, found, strict=True)):
        width = math.log(outputs) if normalise == "capacity" else 0.0
        factors[_key(i, layer.name)] = 2 * _log(norm, layer.name) + width
    estimate = _product(factors, log_margin, network, normalise)
    return estimate.with_details(convolutions=convolutions, residual=residual, widths=widths)


@catalogued_measure
def path_norm(
    minimum: Statistics,
    *,
    p: int = 2,
    normalise: Normalise = "figure",
    fraction: float = 0.05,
    over_margin: bool = True,
) -> Estimate:
    """ln of the lp path norm over margin: ``gamma^-2 sum_paths prod |W|^p`` for p = 2, squared for p = 1 (N17).

    Computed by one forward pass of ones through |w|^p; biases are edges from a constant 1, BatchNorm is folded,
    max-pooling counts every path through its window. An activation of slopes up to L (leaky ReLU, PReLU, ReLU6, hard
    tanh) has the factor max(1, L), and its value at 0 is an edge from a constant 1.

    Args:
        minimum: a Minimum.
        p: 1 or 2.
        normalise: "figure" as in the paper's figures; "capacity" adds 4^d and, for p = 2, the product of widths h_i,
            the layers' units (channels times positions).
        fraction: of the margin.
        over_margin: divide by the margin; without, any ReLU network will do.

    Returns:
        Estimate in nats, exact for the data; details: log_path_norm (P_p itself), log_margin, depth, widths.
        Undefined: not a ReLU network, not a classifier, a margin that is not positive, no path from input or bias.

    Raises:
        UsageError: p other than 1 and 2, an unknown normalisation, a fraction outside (0, 1].

    Source:
        Neyshabur et al., arXiv 1706.08947, sec. 2.3; Neyshabur, Salakhutdinov & Srebro 2015 (path-SGD).
    """
    if p not in (1, 2):
        raise UsageError(f"got p={p!r}; path norms are built for p=1 and p=2")
    check_options(normalise, fraction)
    network, log_margin = network_and_margin(minimum, fraction, over_margin)
    log_norm = network.log_path_norm_1 if p == 1 else network.log_path_norm_2
    if log_norm == -math.inf:
        raise Undefined("every path through the network has a weight that is 0: the path norm is 0")
    value = 2 * log_norm - 2 * (log_margin or 0.0)
    if normalise == "capacity":
        value += len(network.layers) * math.log(4.0)
        if p == 2:
            value += sum(math.log(layer.width) for layer in network.layers)
    details = {"p": p, "log_path_norm": log_norm, "log_margin": log_margin, "depth": len(network.layers)}
    return Estimate(value, details=details | {"max_pooled": network.max_pooled, "widths": _widths(network)})


def _kernel(matrix: Tensor, diagonal: bool) -> tuple[float, int]:
    """2-norm and outputs of a layer as the matrix that holds its weights."""
    if diagonal:
        return float(matrix.abs().max()), 1
    return float(torch.linalg.matrix_norm(matrix, 2)), matrix.shape[0]


def _product(
    factors: dict[str, float], log_margin: float | None, network: FeedForwardNetwork, normalise: Product = "figure"
) -> Estimate:
    numbers = log_factors(network)
    value = sum(factors.values()) + 2 * sum(numbers.values()) - 2 * (log_margin or 0.0)
    if normalise == "balanced":
        value = math.log(len(factors)) + value / len(factors)
    details: dict[str, object] = {"log_margin": log_margin, "layers": factors, "factors": numbers}
    details["folded"] = network.folded
    details |= {"diagonal": network.diagonals, "branches": network.branches, "widths": _widths(network)}
    return Estimate(value, details=details)


def _widths(network: FeedForwardNetwork) -> list[int]:
    return [layer.width for layer in network.layers]


def _log(norm: float, name: str) -> float:
    if norm == 0:
        raise Undefined(f"layer {name!r} is all zeros: the product of norms is 0")
    return math.log(norm)


def _key(index: int, name: str) -> str:
    return f"{index}: {name}"
