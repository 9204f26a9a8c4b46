"""Spectral complexity: products of spectral norms times how far each layer moved (Bartlett et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from flatminima.core.statistic import Statistics
from flatminima.errors import Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.measures._initial import refuse_other_shape
from flatminima.measures._matrices import complexity_of_matrices, instead
from flatminima.measures._measure import catalogued_measure
from flatminima.measures._over_margin import check_options, log_factors, with_margin
from flatminima.statistics import FeedForward, FlatWeights, LinearLayer, OperatorNorms, Weights


@catalogued_measure
def spectral_complexity(
    minimum: Statistics,
    *,
    initial: nn.Module | Mapping[str, Tensor] | None = None,
    fraction: float = 0.05,
    over_margin: bool = True,
) -> Estimate:
    """ln of ``gamma^-2 prod_i ||W_i||_2^2 sum_j ||W_j - W_j^0||_F^2 / ||W_j||_2^2``.

    Convolutions have the spectral norm of the operator they are on this network's images, and the Frobenius norm of
    their kernel, as in the paper.

    Args:
        minimum: a Minimum.
        initial: W^0 as the untrained model or its state dict, seen through the trained network's BatchNorm; None: 0,
            when each term of the sum is a layer's stable rank.
        fraction: of the margin.
        over_margin: divide by the margin; without, any ReLU network will do.

    Returns:
        Estimate in nats, exact for the data; details: log_product (without margin and sum), ratios (the terms of the
        sum by layer), ratio_sum (for initial=None the measure "fro-over-spec"), log_margin. Undefined: not a ReLU
        network, not a classifier, a margin that is not positive, a layer of zeros, no layer that moved.

    Raises:
        UsageError: initial weights that do not fit, a fraction outside (0, 1].

    Source:
        Jiang et al. 2020, arXiv 1912.02178, appendix C, eq. 29, 30 (spec-init-main, spec-orig-main), 33
        (fro-over-spec); Bartlett, Foster & Telgarsky 2017; Pitas et al. 2017. Transformers: Yang et al., arXiv
        2202.02842, over all weight matrices, without a margin, initial=None alone.
    """
    check_options("figure", fraction)
    try:
        (network, norms), log_margin = with_margin(minimum, fraction, over_margin, FeedForward(), OperatorNorms())
    except Undefined:
        found = instead(minimum, lambda: complexity_of_matrices(minimum)) if initial is None else None
        if found is None:
            raise
        return found
    weights = None if initial is None else minimum[Weights()]
    ratios, log_product = {}, 2 * sum(log_factors(network).values())
    for i, (layer, norm) in enumerate(zip(network.layers, norms.layers, strict=True)):
        if norm.two == 0:
            raise Undefined(f"layer {layer.name!r} is all zeros: the product of norms is 0")
        moved = layer.matrix if initial is None or weights is None else layer.matrix - _initial(layer, initial, weights)
        ratios[f"{i}: {layer.name}"] = float(moved.square().sum()) / norm.two**2
        log_product += 2 * math.log(norm.two)
    total = math.fsum(ratios.values())
    if total == 0:
        raise Undefined("every layer is at its initial weights: the complexity is 0")
    value = log_product + math.log(total) - 2 * (log_margin or 0.0)
    details = {"log_product": log_product, "ratios": ratios, "ratio_sum": total, "log_margin": log_margin}
    return Estimate(value, details=details)


def _initial(layer: LinearLayer, initial: nn.Module | Mapping[str, Tensor], weights: FlatWeights) -> Tensor:
    """The layer's matrix at the initial weights, with the trained network's BatchNorm and factors."""
    name = layer.parameter
    if name == "":
        return layer.matrix  # constants do not move
    if name is None or layer.arrange is None:
        raise UsageError(f"the weights of layer {layer.name!r} are made from several parameters: initial=None alone")
    weight = _weight(name, initial, made=layer.view is None).detach().double().cpu()
    if name in weights.names:
        refuse_other_shape(name, weight, weights.shapes[weights.names.index(name)])
    try:
        matrix = layer.arrange(weight if layer.view is None else layer.view(weight))
    except (RuntimeError, IndexError):
        matrix = weight
    if matrix.shape != layer.matrix.shape:
        raise UsageError(f"initial {name!r} has the shape {tuple(weight.shape)}: give those of the same network")
    if layer.scale is None:
        return matrix
    return matrix * (layer.scale.unsqueeze(0) if layer.diagonal else layer.scale.unsqueeze(1))


def _weight(name: str, initial: nn.Module | Mapping[str, Tensor], made: bool) -> Tensor:
    """The parameter, or the weight that a parametrization makes from others."""
    state = initial.state_dict() if isinstance(initial, nn.Module) else initial
    if name in state:
        return state[name]
    path, _, attribute = name.rpartition(".")
    modules = dict(initial.named_modules()) if isinstance(initial, nn.Module) else {}
    if made and path in modules and is_parametrized(modules[path], attribute):
        with torch.no_grad():
            return getattr(modules[path], attribute)  # type: ignore[no-any-return]
    what = "give the network itself, whose parametrization makes it" if made else "give those of the same network"
    raise UsageError(f"the initial weights lack {name!r}: {what}")
