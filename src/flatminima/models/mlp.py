"""Multi-layer perceptrons: N17's two-layer nets of growing width and its 10-layer net, and the default
784-512-512-10.

Images are flattened by the network itself, so (n, channels, height, width) and (n, features) both go in.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from flatminima.errors import ModelError
from flatminima.models.layers import activation_layer


def mlp(widths: Sequence[int] = (784, 512, 512, 10), *, activation: str = "relu", bias: bool = True) -> nn.Sequential:
    """Linear layers with an activation between them; returns logits.

    Args:
        widths: features in, hidden units, ..., classes; at least two numbers, each at least 1.
        activation: "relu", "gelu", "tanh", "sigmoid", "elu", "silu" or "softplus".
        bias: whether the linear layers have biases.

    Returns:
        A Sequential; weights and biases as torch initialises them (uniform within 1/sqrt(fan in)), from the
        global random state.

    Raises:
        ModelError: fewer than two widths, or one that is not positive. UnknownName: no such activation.

    Examples:
        >>> sum(p.numel() for p in mlp().parameters())  # 785*512 + 513*512 + 513*10
        669706
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ModelError(f"widths={tuple(widths)}: name the inputs, any hidden units and the classes, each >= 1")
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation_layer(activation)]
    return nn.Sequential(*layers[:-1])  # no activation on the logits
